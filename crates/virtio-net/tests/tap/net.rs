//! A network namespace of one's own, and packets made by hand.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::resume_unwind;

pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Runs a test on a thread with a network of its own, which ends with it.
pub fn in_namespace(test: fn()) {
    let thread = std::thread::spawn(move || {
        // SAFETY: this changes which network the thread sees, and no memory.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        let error = io::Error::last_os_error();
        assert!(result == 0, "this test needs root (CAP_SYS_ADMIN) for a network namespace: {error}");
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

fn interface(name: &str) -> libc::ifreq {
    // SAFETY: zeroes are a valid value of this structure, which is made of numbers.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    interface
}

fn request(request: libc::Ioctl, interface: &mut libc::ifreq) {
    // SAFETY: this makes a descriptor, and touches no memory.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: the descriptor is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the requests that this is called with read or write an `ifreq`, and this is one.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut *interface) };
    assert!(result == 0, "ioctl {request:#x}: {}", io::Error::last_os_error());
}

pub fn set_up(name: &str, up: bool) {
    let mut interface = interface(name);
    interface.ifr_ifru.ifru_flags = if up { libc::IFF_UP as i16 } else { 0 };
    request(libc::SIOCSIFFLAGS, &mut interface);
}

/// Gives an interface the host's address.
pub fn set_address(name: &str) {
    for (what, address) in
        [(libc::SIOCSIFADDR, HOST), (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0))]
    {
        let mut interface = interface(name);
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: both are socket addresses of 16 bytes.
        interface.ifr_ifru.ifru_addr =
            unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
        request(what, &mut interface);
    }
}

/// Deletes an interface (RTM_DELLINK).
pub fn delete(name: &str) {
    // SAFETY: this makes a descriptor, and touches no memory.
    let socket =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    // SAFETY: the descriptor is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut attribute = [(4 + name.len() as u16 + 1).to_ne_bytes(), libc::IFLA_IFNAME.to_ne_bytes()].concat();
    attribute.extend(name.bytes());
    attribute.resize((attribute.len() + 1).next_multiple_of(4), 0);
    let mut message = (32 + attribute.len() as u32).to_ne_bytes().to_vec();
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8 + 16]);
    message.extend(attribute);
    let mut answer = [0_u8; 64];
    // SAFETY: the calls read the message and write the answer, of the lengths given.
    unsafe {
        libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0);
        assert!(libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) >= 20);
    }
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    assert_eq!(error, 0, "deleting {name}: {}", io::Error::from_raw_os_error(-error));
}

fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| {
        part.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

pub fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &GUEST_MAC, &kind.to_be_bytes(), payload].concat()
}

/// The question who has the host's address.
pub fn arp_request() -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let arp = [&fixed[..], &GUEST_MAC, &GUEST.octets(), &[0; 6], &HOST.octets()].concat();
    ethernet([0xff; 6], 0x0806, &arp)
}

/// A packet from the guest to the host.
pub fn ipv4(host_mac: [u8; 6], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header = [&[0x45, 0][..], &len.to_be_bytes(), &[0, 0, 0x40, 0, 64, protocol, 0, 0]].concat();
    header.extend(GUEST.octets());
    header.extend(HOST.octets());
    let check = !sum(&[&header]);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    ethernet(host_mac, 0x0800, &[&header, payload].concat())
}

/// The sum that a check sum of UDP or TCP begins with, for who leaves the rest to somebody else.
fn pseudo_sum(protocol: u8, len: usize) -> u16 {
    sum(&[&GUEST.octets(), &HOST.octets(), &[0, protocol], &(len as u16).to_be_bytes()])
}

pub fn icmp_echo(host_mac: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut icmp = [&[8, 0, 0, 0, 0, 7, 0, 1][..], payload].concat();
    let check = !sum(&[&icmp]);
    icmp[2..4].copy_from_slice(&check.to_be_bytes());
    ipv4(host_mac, 1, &icmp)
}

/// The check sum is left to be completed.
pub fn udp(host_mac: [u8; 6], from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len();
    let check = pseudo_sum(17, len);
    let header = [from, to, len as u16, check].map(u16::to_be_bytes).concat();
    ipv4(host_mac, 17, &[&header, payload].concat())
}

/// The check sum is left to be completed.
pub fn tcp(host_mac: [u8; 6], ports: (u16, u16), at: (u32, u32), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [ports.0, ports.1].map(u16::to_be_bytes).concat();
    segment.extend([at.0, at.1].map(u32::to_be_bytes).concat());
    segment.extend([5 << 4, flags, 0xff, 0xff]);
    segment.extend(pseudo_sum(6, 20 + payload.len()).to_be_bytes());
    segment.extend([0; 2]);
    ipv4(host_mac, 6, &[&segment, payload].concat())
}
