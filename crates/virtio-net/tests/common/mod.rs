//! A device whose tap is a Unix socket that keeps messages apart, its driver, and the host's end.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::ErrorKind;
use std::os::fd::{FromRawFd, OwnedFd};

use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver, MockQueue};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use kindling_virtio_net::{Backend, HEADER_BYTES, Net};

pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;

/// Feature numbers (VIRTIO 1.2, 5.1.3).
pub const GUEST_CSUM: u64 = 1 << 1;
pub const MTU: u64 = 1 << 3;
pub const MAC: u64 = 1 << 5;
pub const LARGE: u64 = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const CTRL_VQ: u64 = 1 << 17;
pub const MQ: u64 = 1 << 22;

/// The host's end of a queue pair.
pub struct Host(OwnedFd);

impl Host {
    /// Sends a frame behind a header; returns whether there was room for it.
    pub fn try_send(&self, header: &[u8; HEADER_BYTES], frame: &[u8]) -> bool {
        use std::io::Write;
        let message = [header, frame].concat();
        match (&mut &std::fs::File::from(self.0.try_clone().unwrap())).write(&message) {
            Ok(sent) => {
                assert_eq!(sent, message.len());
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    pub fn send(&self, frame: &[u8]) {
        assert!(self.try_send(&[0; HEADER_BYTES], frame), "the socket is full");
    }

    /// The next frame of the guest with its header, if there is one.
    pub fn receive(&self) -> Option<Vec<u8>> {
        use std::io::Read;
        let mut message = vec![0; 70_000];
        match (&mut &std::fs::File::from(self.0.try_clone().unwrap())).read(&mut message) {
            Ok(len) => {
                message.truncate(len);
                Some(message)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

pub fn socket_pair() -> (OwnedFd, Host) {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call writes two descriptors, for which there is room.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }, 0);
    // SAFETY: the descriptors are new, and nobody else's.
    let [device, host] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (device, Host(host))
}

/// A device with so many queue pairs, and their other ends.
pub fn device(pairs: usize) -> (Net, Vec<Host>) {
    let (sockets, hosts) = (0..pairs).map(|_| socket_pair()).unzip();
    let backend = Backend::sockets(sockets).unwrap();
    (Net::new(backend, Some([2, 0, 0, 0, 0, 1]), None).unwrap(), hosts)
}

/// A running device with one queue pair.
pub struct Rig {
    pub net: Net,
    pub driver: MockDriver,
    /// `None` when it sleeps.
    pub inline: Option<Inline>,
    pub host: Host,
}

impl Rig {
    /// The driver accepts everything but `refused`.
    pub fn without(refused: u64) -> Self {
        let (net, mut hosts) = device(1);
        Self::of(net, hosts.remove(0), refused)
    }

    pub fn of(mut net: Net, host: Host, refused: u64) -> Self {
        let driver = MockDriver::with_features(&net, (net.features() | COMMON_FEATURES) & !refused);
        let inline = Inline::start(net.activate(driver.activation()).unwrap()).unwrap();
        Self { net, driver, inline: Some(inline), host }
    }

    /// Lets the device do what there is to do, which must come to an end.
    pub fn run(&mut self) {
        let steps = self.inline.as_mut().unwrap().run(10_000).unwrap();
        assert!(steps < 10_000, "the device is busy with nothing");
    }

    pub fn rx(&mut self) -> &mut MockQueue {
        &mut self.driver.queues[0]
    }

    pub fn tx(&mut self) -> &mut MockQueue {
        &mut self.driver.queues[1]
    }

    pub fn metric(&self, name: &str) -> u64 {
        metric(&self.net, name)
    }

    /// Sends a frame, which is taken as it is.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.tx().add(&[Buffer::Readable(&[0; HEADER_BYTES]), Buffer::Readable(frame)]);
    }

    /// The next frame that the guest received, without its header, and with the number of its buffers.
    pub fn received(&mut self) -> Option<(Vec<u8>, u16)> {
        let first = self.rx().take_used()?;
        assert!(first.written >= 12, "a frame without a header");
        let num_buffers = u16::from_le_bytes([first.data[10], first.data[11]]);
        let mut frame = first.data[12..first.written as usize].to_vec();
        for _ in 1..num_buffers {
            let next = self.rx().take_used().expect("all buffers of a frame at once");
            frame.extend(&next.data[..next.written as usize]);
        }
        Some((frame, num_buffers))
    }
}

pub fn metric(device: &dyn Device, name: &str) -> u64 {
    device.metrics().value(name).expect("a metric of that name").number()
}

/// Numbers that look random and are always the same.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// A frame of `len` bytes, unlike any other.
    pub fn frame(&mut self, len: usize) -> Vec<u8> {
        let mut frame: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        frame.truncate(len);
        frame
    }

    /// A frame of any size up to `largest`.
    pub fn frame_up_to(&mut self, largest: usize) -> Vec<u8> {
        let len = 14 + self.below(largest - 13);
        self.frame(len)
    }
}
