//! The host's ends of a guest's network and socket, served while it runs.

use std::ffi::CString;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kindling_integration_tests::error::{Context, Result};
use kindling_integration_tests::harness::Tap;

/// The local experimental type of IEEE 802.
const ETHERTYPE: u16 = 0x88b5;
/// The port that the guest connects to.
const PORT: u32 = 5000;

/// How often a thread that waits for the guest looks whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// How many frames are sent at a time: 64 bytes each, or 64,000 if they are `large`.
pub fn batch(large: bool) -> u16 {
    if large { 4 } else { 64 }
}

/// While `run` runs a guest, sends a batch of frames for every frame from it. In the network's namespace.
pub fn with_frames(large: bool, run: impl FnOnce() -> Result<String>) -> Result<String> {
    let socket =
        |protocol| packet_socket(protocol).doing(|| format!("cannot open a packet socket on {}", Tap::NAME));
    // Frames are sent as what they say they are, not by the socket's protocol: it has none and receives nothing.
    let (requests, frames) = (socket(ETHERTYPE)?, socket(0)?);
    // The small ones are cut out of one by the kernel, which costs it less than to send each.
    let (frame, count) = match batch(large) {
        count if large => (segment(64_000, 1448), count),
        count => (segment(54 + 10 * count, 10), 1),
    };
    beside(
        run,
        |ended| send_frames(&requests, &frames, &frame, count.into(), ended),
        "cannot send frames to the guest",
    )
}

/// While `run` runs a guest, reads from the connection that it makes, or else writes to it; `path` is the Unix socket of
/// the guest's device.
pub fn with_stream(path: &Path, read: bool, run: impl FnOnce() -> Result<String>) -> Result<String> {
    let mut path = path.as_os_str().to_owned();
    path.push(format!("_{PORT}"));
    // The last guest's.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).doing(|| format!("cannot listen at {}", path.display()))?;
    beside(run, |ended| serve_stream(&listener, read, ended), "cannot serve the guest's connection")
}

/// Runs both; `peer` has to return soon after its flag is set.
fn beside(
    run: impl FnOnce() -> Result<String>,
    peer: impl FnOnce(&AtomicBool) -> io::Result<()> + Send,
    doing: &str,
) -> Result<String> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let peer = scope.spawn(|| peer(&ended));
        let said = run();
        ended.store(true, Ordering::Relaxed);
        let peer = peer.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
        said.and_then(|said| peer.doing(|| doing.to_owned()).map(|()| said))
    })
}

/// A packet socket that receives what is of a type and takes a `struct virtio_net_hdr` before each frame.
fn packet_socket(protocol: u16) -> io::Result<OwnedFd> {
    let name = CString::new(Tap::NAME)?;
    let protocol = protocol.to_be();
    // SAFETY: plain numbers.
    let socket = check(unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into())
    })?;
    // SAFETY: just opened, nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let set = |level, option, value: *const libc::c_void, size: usize| {
        // SAFETY: the callers' values are as large as they say.
        check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, size as libc::socklen_t) })
    };
    let header: libc::c_int = 1;
    set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const header).cast(), size_of_val(&header))?;
    let poll = libc::timeval { tv_sec: 0, tv_usec: POLL.as_micros() as libc::suseconds_t };
    set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const poll).cast(), size_of_val(&poll))?;

    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    // SAFETY: the name ends with a zero.
    address.sll_ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) }.cast_signed();
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: a valid address of that size.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(socket)
}

/// A TCP segment of `size` bytes with its headers, which the kernel or the receiver is to cut to packets with at most
/// `payload` bytes of data, behind its `struct virtio_net_hdr`.
fn segment(size: u16, payload: u16) -> Vec<u8> {
    let [low, high] = payload.to_le_bytes();
    // NEEDS_CSUM and GSO_TCPV4; headers of 54 bytes, packets, the sum from byte 34 on at its byte 16.
    let header = [1, 1, 54, 0, low, high, 34, 0, 16, 0];
    let [high, low] = (size - 14).to_be_bytes();
    let addresses = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    // Type and IPv4, with total length, time to live and protocol.
    let internet = [0x08, 0x00, 0x45, 0, high, low, 0, 0, 0, 0, 64, 6];
    let mut bytes = [&header[..], &addresses, &internet].concat();
    // The rest of the header; the ports, two numbers; the length of the TCP header.
    bytes.resize(header.len() + 46, 0);
    bytes.push(5 << 4);
    bytes.resize(header.len() + usize::from(size), 0);
    bytes
}

fn send_frames(
    requests: &OwnedFd,
    frames: &OwnedFd,
    frame: &[u8],
    count: usize,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    // SAFETY: all zeros is a valid header without anything.
    let mut messages = vec![unsafe { std::mem::zeroed::<libc::mmsghdr>() }; count];
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let mut request = [0u8; 256];
    while !ended.load(Ordering::Relaxed) {
        // SAFETY: the buffer is as large as it says.
        let received =
            unsafe { libc::recv(requests.as_raw_fd(), request.as_mut_ptr().cast(), request.len(), 0) };
        if received < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == ErrorKind::WouldBlock || is_down(&error) {
                continue;
            }
            return Err(error);
        }
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            // SAFETY: each message has one part, the frame, which the kernel only reads.
            let sent = unsafe { libc::sendmmsg(frames.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
            match check(sent) {
                Ok(sent) => rest = &mut rest[sent as usize..],
                Err(error) if is_down(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What a packet socket says of a tap without a monitor: the guest has ended.
fn is_down(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENOBUFS))
}

fn serve_stream(listener: &UnixListener, read: bool, ended: &AtomicBool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut stream: UnixStream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !ended.load(Ordering::Relaxed) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            // What the guest said tells why.
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    };
    let mut bytes = vec![0; 256 << 10];
    loop {
        let result = if read { stream.read(&mut bytes) } else { stream.write(&bytes) };
        match result {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The monitor ends without reading all.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
