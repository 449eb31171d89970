//! A stream to or from a socket of the host (VIRTIO 1.2, 5.10).

use super::{measure, number};
use crate::boot_info::BootInfo;
use crate::virtio::{Buffer, Device, Memory, NEXT, Queue, WRITE};

const DEVICE_TYPE: u32 = 19;

// Offsets in `struct virtio_vsock_hdr`, and in a packet's buffer, where data follows at a distance.
const SRC_CID: u64 = 0;
const DST_CID: u64 = 8;
const SRC_PORT: u64 = 16;
const DST_PORT: u64 = 20;
const LEN: u64 = 24;
const TYPE: u64 = 28;
const OP: u64 = 30;
const BUF_ALLOC: u64 = 36;
const FWD_CNT: u64 = 40;
const HEADER_SIZE: usize = 44;
const DATA: u64 = 64;

const STREAM: u16 = 1;
const OP_REQUEST: u16 = 1;
const OP_RESPONSE: u16 = 2;
const OP_RW: u16 = 5;
const OP_CREDIT_UPDATE: u16 = 6;
const OP_CREDIT_REQUEST: u16 = 7;

const HOST_CID: u64 = 2;
const PORT: u32 = 5000;
const PACKET: u32 = 64 << 10;
/// Bytes that we say we can take, as Linux does.
const WINDOW: u32 = 256 << 10;

/// Packets in each queue, more than the credit of either side lets be under way.
const DEPTH: usize = 16;

/// A connection. Counts of bytes are modulo 2^32.
struct Stream {
    receive: Queue,
    received: [Buffer; DEPTH],
    send: Queue,
    sent: [Buffer; DEPTH],
    /// Where the next packet to send goes.
    next: usize,
    /// How much the peer can take beyond what it has taken.
    peer_end: u32,
    written: u32,
    taken: u32,
    /// How much of what was taken the peer knows of.
    told: u32,
}

/// Packets of 64 KiB to the host's port 5000 with `send=1`, from it with `send=0`, with `interrupts=0` or `1`; counts
/// bytes.
pub fn vsock(boot_info: &BootInfo) -> Result<(), &'static str> {
    let interrupts = number(boot_info, "interrupts")? != 0;
    let sends = number(boot_info, "send")? != 0;
    let mut memory = Memory::new();
    let device = Device::find(DEVICE_TYPE, 0)?;
    let receive = device.queue(0, interrupts, &mut memory)?;
    let send = device.queue(1, interrupts, &mut memory)?;
    let _events = device.queue(2, false, &mut memory)?;
    let mut packets = || [(); DEPTH].map(|()| memory.take(DATA + u64::from(PACKET)));
    let (received, sent) = (packets(), packets());
    let mut stream =
        Stream { receive, received, send, sent, next: 0, peer_end: 0, written: 0, taken: 0, told: 0 };
    for (head, packet) in (0..).step_by(2).zip(received) {
        stream.receive.describe(head, packet.address, HEADER_SIZE, NEXT | WRITE);
        stream.receive.describe(head + 1, packet.address + DATA, PACKET as usize, WRITE);
        stream.receive.add(head);
    }
    for packet in sent {
        packet.set(SRC_CID, u64::from(device.config(0)));
        packet.set(DST_CID, HOST_CID);
        packet.set(SRC_PORT, PORT);
        packet.set(DST_PORT, PORT);
        packet.set(TYPE, STREAM);
        packet.set(BUF_ALLOC, WINDOW);
    }
    device.begin()?;
    stream.send(OP_REQUEST, 0);
    stream.send.submit();
    measure(boot_info, || stream.turn(sends))?;
    device.check()
}

impl Stream {
    /// Takes what there is and sends what it may; returns how many bytes went the measured way.
    fn turn(&mut self, sends: bool) -> Result<u64, &'static str> {
        let (taken, written) = (self.taken, self.written);
        while let Some((head, _)) = self.receive.take() {
            let packet = self.received[usize::from(head / 2)];
            match packet.get::<u16>(OP) {
                OP_RW => self.taken = self.taken.wrapping_add(packet.get(LEN)),
                // Who asks has used up its credit, of which it hears below.
                OP_RESPONSE | OP_CREDIT_UPDATE | OP_CREDIT_REQUEST => {}
                _ => return Err("the host closed the connection"),
            }
            self.peer_end = packet.get::<u32>(FWD_CNT).wrapping_add(packet.get(BUF_ALLOC));
            self.receive.add(head);
        }
        self.receive.submit();
        while self.send.take().is_some() {}
        while sends && self.peer_end.wrapping_sub(self.written) >= PACKET {
            self.send(OP_RW, PACKET);
        }
        if self.taken.wrapping_sub(self.told) >= WINDOW / 2 {
            self.send(OP_CREDIT_UPDATE, 0);
        }
        self.send.submit();
        let done = if sends { self.written.wrapping_sub(written) } else { self.taken.wrapping_sub(taken) };
        Ok(done.into())
    }

    fn send(&mut self, op: u16, length: u32) {
        let (head, packet) = (self.next as u16 * 2, self.sent[self.next]);
        self.next = (self.next + 1) % DEPTH;
        packet.set(OP, op);
        packet.set(LEN, length);
        packet.set(FWD_CNT, self.taken);
        self.told = self.taken;
        self.written = self.written.wrapping_add(length);
        self.send.describe(head, packet.address, HEADER_SIZE, if length == 0 { 0 } else { NEXT });
        self.send.describe(head + 1, packet.address + DATA, length as usize, 0);
        self.send.add(head);
    }
}
