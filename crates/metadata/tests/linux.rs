//! Linux's own TCP as the guest's: a tap takes the place of the guest's network device, and leaves check sums and the
//! cutting of segments to the endpoint as a guest would. These tests need root, for a network namespace with a tap in it, which
//! ends with its test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{endpoint, metric, service};
use kindling_metadata::{DEFAULT_ADDRESS, Endpoint, MAX_FRAME_BYTES, Service, Version};
use serde_json::json;

const HEADER_BYTES: usize = 12;

fn check(what: &str, result: libc::c_int) {
    assert!(result >= 0, "{what}: {}", io::Error::last_os_error());
}

/// A tap with an address on the link of the service, in the network namespace of this thread.
fn tap() -> File {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: zeroes are a valid value of this structure, which is made of numbers.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    interface.ifr_name[0] = b't' as libc::c_char;
    interface.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let header: libc::c_int = HEADER_BYTES as libc::c_int;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4;
    // SAFETY: the requests read and write an `ifreq`, a number, and nothing.
    unsafe {
        check("TUNSETIFF", libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut interface));
        check("TUNSETVNETHDRSZ", libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header));
        let offloads = libc::c_ulong::from(offloads);
        check("TUNSETOFFLOAD", libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, offloads));
    }
    // SAFETY: this makes a descriptor, and touches no memory.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check("socket", socket);
    // SAFETY: the descriptor is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for (request, address) in [
        (libc::SIOCSIFADDR, Ipv4Addr::new(169, 254, 0, 2)),
        (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 0, 0)),
    ] {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: both are socket addresses of 16 bytes.
        interface.ifr_ifru.ifru_addr =
            unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
        // SAFETY: the request reads an `ifreq`, and this is one.
        check("an address", unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut interface) });
    }
    interface.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the request reads an `ifreq`, and this is one.
    check("up", unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut interface) });
    tap
}

/// Moves frames between tap and endpoint until `end`, waking when either has something to do.
fn run(tap: &File, endpoint: &Endpoint, end: &File) {
    let mut message = vec![0; 70_000];
    loop {
        let mut frame = [0; HEADER_BYTES + MAX_FRAME_BYTES];
        while let Some(len) = endpoint.next_frame(Instant::now(), &mut frame[HEADER_BYTES..]) {
            (&mut &*tap).write_all(&frame[..HEADER_BYTES + len]).unwrap();
        }
        let timeout = endpoint.next_timeout(Instant::now()).map_or(-1, |time| time.as_millis() as i32 + 1);
        let watch = |file: &File| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut files = [watch(tap), watch(end)];
        // SAFETY: the call writes to two structures, which there are.
        unsafe { libc::poll(files.as_mut_ptr(), 2, timeout) };
        if files[1].revents != 0 {
            return;
        }
        if files[0].revents != 0 {
            let len = (&mut &*tap).read(&mut message).unwrap();
            let frame = &message[HEADER_BYTES..len];
            // Linux has other things to say too.
            if endpoint.is_for_us(frame) {
                endpoint.receive(Instant::now(), frame);
            }
        }
    }
}

/// Runs a test on a thread with a network of its own, where the service can be reached.
fn with_service(service: &Arc<Service>, test: impl FnOnce() + Send + 'static) {
    let endpoint = endpoint(service);
    let thread = std::thread::spawn(move || {
        // SAFETY: this changes which network the thread sees, and no memory.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = io::Error::last_os_error();
        assert!(result == 0, "this test needs root (CAP_SYS_ADMIN) for a network namespace: {error}");
        let (tap, (end, ending)) = (tap(), io::pipe().unwrap());
        let end = File::from(OwnedFd::from(end));
        std::thread::scope(|scope| {
            scope.spawn(|| run(&tap, &endpoint, &end));
            let result = scope.spawn(test).join();
            drop(ending);
            result
        })
    });
    if let Err(panic) = thread.join().unwrap() {
        resume_unwind(panic);
    }
}

fn connect() -> TcpStream {
    let address = (DEFAULT_ADDRESS, 80).into();
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn read(stream: &TcpStream) -> (String, String) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "the connection ended after {head:?}");
    }
    let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; len.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// What a connection of its own gets, unless it ends before.
fn try_ask(request: &str) -> Option<String> {
    let mut stream = connect();
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn ask(stream: &mut TcpStream, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    read(stream)
}

#[test]
fn linux_reads_large_and_small_documents_by_one_connection_and_by_fifty() {
    let text = "0123456789".repeat(5_000);
    let service = service(Version::V2, json!({"large": text, "small": "x"}));
    let document = service.get().to_string();
    with_service(&service, move || {
        let mut stream = connect();
        let put = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
        let token = ask(&mut stream, put).1;
        let get = |path: &str| {
            format!("GET {path} HTTP/1.1\r\nX-metadata-token: {token}\r\nAccept: application/json\r\n\r\n")
        };
        for _ in 0..100 {
            assert_eq!(ask(&mut stream, &get("/small")).1, "\"x\"");
            assert!(ask(&mut stream, &get("/")).1 == document);
        }
        let mut streams: Vec<_> = (0..50).map(|_| connect()).collect();
        for stream in &mut streams {
            stream.write_all(get("/").as_bytes()).unwrap();
        }
        for stream in &streams {
            assert!(read(stream).1 == document);
        }
        // More at once than can be, from threads of their own.
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..200)
                .map(|_| {
                    scope.spawn(|| {
                        let get = get("/").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
                        // One that was slow to ask has had to give way to another, and comes again.
                        let answer = std::iter::repeat_with(|| try_ask(&get)).flatten().next();
                        assert!(answer.as_ref() == Some(&document));
                    })
                })
                .collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    });
    assert_eq!(metric(&service, "connections_timed_out"), 0);
    assert_eq!(metric(&service, "rx_dropped_malformed"), 0);
}

#[test]
fn linux_is_told_when_a_request_is_too_long() {
    let service = service(Version::V1, json!({"small": "x"}));
    with_service(&service, || {
        // Linux hands over a segment of 64 KiB at a time where the window lets it.
        let request = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000));
        let mut stream = connect();
        let _ = stream.write_all(request.as_bytes());
        let (head, _) = read(&stream);
        assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
        assert_eq!(ask(&mut connect(), "GET /small HTTP/1.1\r\n\r\n").1, "x");
    });
}
