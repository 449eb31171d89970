//! Ethernet and ARP (RFC 826), as far as the endpoint needs them, and the port by which packets get in and out of the
//! TCP/IP stack.

use std::net::Ipv4Addr;

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Bytes at the beginning of a frame that tell whether it is for the service.
pub const HEAD_BYTES: usize = ETHERNET_BYTES + ARP_BYTES;

/// Most bytes of a frame that the service sends.
pub const MAX_FRAME_BYTES: usize = ETHERNET_BYTES + MTU;

pub(super) const ETHERNET_BYTES: usize = 14;
const ARP_BYTES: usize = 28;

/// Bytes of the largest packet that goes to a guest.
const MTU: usize = 1_500;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];

/// What an ARP request from Ethernet for IPv4 begins with: kinds and lengths of addresses, and the operation.
const ARP_REQUEST: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 1];
const ARP_REPLY: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 2];

pub(super) type Mac = [u8; 6];

/// A frame for the service, as far as its head tells.
pub(super) enum Head {
    /// Somebody asks for the MAC.
    ArpRequest { from: Mac, from_address: [u8; 4] },
    /// A packet of IPv4.
    Ipv4 { from: Mac },
}

impl Head {
    /// What a frame that begins with `head` is; `None` if it is not for the service. Which MAC it is sent to does not matter:
    /// a guest without a route of its own to the service sends to its gateway.
    pub fn read(head: &[u8], service: Ipv4Addr) -> Option<Self> {
        let (ethernet, payload) = head.split_first_chunk::<ETHERNET_BYTES>()?;
        let [_, _, _, _, _, _, from @ .., high, low] = *ethernet;
        match [high, low] {
            IPV4 => {
                let destination = payload.get(16..20)?;
                (destination == service.octets()).then_some(Self::Ipv4 { from })
            }
            ARP => {
                let (kind, addresses) = payload.split_first_chunk::<8>()?;
                let (from, addresses) = addresses.split_first_chunk()?;
                let (from_address, addresses) = addresses.split_first_chunk()?;
                let wanted = addresses.get(6..10)?;
                (*kind == ARP_REQUEST && wanted == service.octets())
                    .then_some(Self::ArpRequest { from: *from, from_address: *from_address })
            }
            _ => None,
        }
    }
}

/// The reply that `address` is at `mac`.
pub(super) fn arp_reply(mac: Mac, address: Ipv4Addr, to: Mac, to_address: [u8; 4]) -> Vec<u8> {
    let mut frame = ethernet(mac, to, ARP).to_vec();
    for part in [&ARP_REPLY[..], &mac, &address.octets(), &to, &to_address] {
        frame.extend_from_slice(part);
    }
    frame
}

/// The header before a packet of IPv4.
pub(super) fn ipv4_header(from: Mac, to: Mac) -> [u8; ETHERNET_BYTES] {
    ethernet(from, to, IPV4)
}

fn ethernet(from: Mac, to: Mac, ethertype: [u8; 2]) -> [u8; ETHERNET_BYTES] {
    let mut header = [0; ETHERNET_BYTES];
    let bytes = to.into_iter().chain(from).chain(ethertype);
    header.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    header
}

/// Up to one packet for the stack, and room for one from it.
pub(super) struct Port<'a> {
    received: Option<&'a [u8]>,
    room: &'a mut [u8],
    sent: Option<usize>,
}

impl<'a> Port<'a> {
    /// Packets are never larger than the MTU; for one that does not fit into `room` there is none.
    pub fn new(received: Option<&'a [u8]>, room: &'a mut [u8]) -> Self {
        Self { received, room, sent: None }
    }

    /// Bytes of the packet that is in the room now, if there is one.
    pub fn sent(&self) -> Option<usize> {
        self.sent
    }
}

impl Device for Port<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Room<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Room { room: self.room, sent: &mut self.sent }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.sent.is_none().then_some(Room { room: self.room, sent: &mut self.sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        // A guest leaves the sums of what it sends to us, and we do not need them: nothing has been on a wire.
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = checksum;
        capabilities
    }
}

pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

pub(super) struct Room<'a> {
    room: &'a mut [u8],
    sent: &'a mut Option<usize>,
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        match self.room.get_mut(..len) {
            Some(room) => {
                *self.sent = Some(len);
                write(room)
            }
            // Not with rooms of the MTU.
            None => write(&mut vec![0; len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

    fn arp_request() -> Vec<u8> {
        let parts: [&[u8]; 8] = [
            &[0xff; 6],
            &[2, 0, 0, 0, 0, 2],
            &ARP,
            &ARP_REQUEST,
            &[2, 0, 0, 0, 0, 1],
            &[10, 0, 0, 2],
            &[0; 6],
            &ADDRESS.octets(),
        ];
        parts.concat()
    }

    #[test]
    fn only_whole_requests_for_the_address_are_arp_for_the_service() {
        let request = arp_request();
        assert_eq!(request.len(), HEAD_BYTES);
        let Some(Head::ArpRequest { from, from_address }) = Head::read(&request, ADDRESS) else {
            panic!("not recognised")
        };
        assert_eq!((from, from_address), ([2, 0, 0, 0, 0, 1], [10, 0, 0, 2]));
        for len in 0..request.len() {
            assert!(Head::read(&request[..len], ADDRESS).is_none(), "{len}");
        }
        // All but MACs, addresses asked by and the MAC asked for decide.
        for at in (12..22).chain(38..42) {
            let mut other = request.clone();
            other[at] ^= 2;
            assert!(Head::read(&other, ADDRESS).is_none(), "{at}");
        }
    }

    #[test]
    fn packets_for_the_address_are_recognised_whatever_else_they_are() {
        let mut frame = [0x45; 34];
        frame[12..14].copy_from_slice(&IPV4);
        assert!(Head::read(&frame, ADDRESS).is_none());
        frame[30..].copy_from_slice(&ADDRESS.octets());
        assert!(matches!(Head::read(&frame, ADDRESS), Some(Head::Ipv4 { from: [0x45, ..] })));
        assert!(Head::read(&frame[..33], ADDRESS).is_none());
        frame[13] = 0xdd;
        assert!(Head::read(&frame, ADDRESS).is_none());
    }

    #[test]
    fn a_reply_says_who_has_the_address() {
        let reply = arp_reply([6, 1, 2, 3, 4, 5], ADDRESS, [2, 0, 0, 0, 0, 1], [10, 0, 0, 2]);
        let hex: String = reply.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "0200000000010601020304050806\
             00010800060400020601020304\
             05a9fea9fe0200000000010a000002"
        );
    }
}
