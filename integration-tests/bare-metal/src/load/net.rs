//! Frames to and from a network (VIRTIO 1.2, 5.1).

use super::{measure, number};
use crate::boot_info::BootInfo;
use crate::virtio::{Buffer, Device, Memory, Queue, WRITE};

const DEVICE_TYPE: u32 = 1;
/// CSUM, GUEST_CSUM, HOST_TSO4, MRG_RXBUF.
const FEATURES: u64 = 1 << 0 | 1 << 1 | 1 << 11 | 1 << 15;
const GUEST_TSO4: u64 = 1 << 7;

/// `struct virtio_net_hdr` with its `num_buffers`.
const HEADER: u64 = 12;
const NUM_BUFFERS: u64 = 10;
/// Frames longer than this need segmentation.
const MAX_PLAIN: u64 = 1514;
const MIN_FRAME: u64 = 64;

/// A buffer to receive to, as large as Linux makes them for large frames.
const RECEIVE_BUFFER: u64 = 4096;

/// Frames of `size` bytes, with `interrupts=0` or `1`; counts frames. With `send=1` as many are under way as the queue
/// holds, or `depth`. With `send=0` frames are asked for, so that none is lost: each small frame of ours stands
/// for `batch`, and at first there are `depth` of them.
pub fn net(boot_info: &BootInfo) -> Result<(), &'static str> {
    let option = |name| number(boot_info, name);
    let (sends, depth, interrupts) = (option("send")? != 0, option("depth")?, option("interrupts")? != 0);
    let size = option("size")?;
    let features = if size > MAX_PLAIN { FEATURES | GUEST_TSO4 } else { FEATURES };
    let size = if sends { size } else { MIN_FRAME };
    let mut memory = Memory::new();
    let device = Device::find(DEVICE_TYPE, features)?;
    let receive = device.queue(0, interrupts, &mut memory)?;
    let mut send = device.queue(1, interrupts, &mut memory)?;
    for index in 0..depth.min(send.size.into()) as u16 {
        let frame = memory.take(HEADER + size);
        write_frame(frame, size);
        send.describe(index, frame.address, (HEADER + size) as usize, 0);
        send.add(index);
    }
    device.begin()?;
    if sends {
        send.submit();
        measure(boot_info, || Ok(send_again(&mut send)))?;
    } else {
        receive_frames(boot_info, receive, &mut send, option("batch")?, &mut memory)?;
    }
    device.check()
}

fn send_again(queue: &mut Queue) -> u64 {
    let mut sent = 0;
    while let Some((head, _)) = queue.take() {
        queue.add(head);
        sent += 1;
    }
    queue.submit();
    sent
}

fn receive_frames(
    boot_info: &BootInfo,
    mut queue: Queue,
    send: &mut Queue,
    batch: u64,
    memory: &mut Memory,
) -> Result<(), &'static str> {
    let buffers = memory.take(u64::from(queue.size) * RECEIVE_BUFFER);
    for index in 0..queue.size {
        let address = buffers.address + u64::from(index) * RECEIVE_BUFFER;
        queue.describe(index, address, RECEIVE_BUFFER as usize, WRITE);
        queue.add(index);
    }
    queue.submit();
    send.submit();
    let (mut more, mut owed) = (0u16, 0);
    measure(boot_info, || {
        let mut received = 0;
        while let Some((index, _)) = queue.take() {
            if more == 0 {
                more = buffers.get(u64::from(index) * RECEIVE_BUFFER + NUM_BUFFERS);
            }
            more -= 1;
            received += u64::from(more == 0);
            queue.add(index);
        }
        queue.submit();
        owed += received;
        while owed >= batch {
            let Some((head, _)) = send.take() else { break };
            send.add(head);
            owed -= batch;
        }
        send.submit();
        Ok(received)
    })
}

/// A frame to an address that nobody has: of an experimental type, or a TCP segment to be cut to packets.
fn write_frame(buffer: Buffer, size: u64) {
    const FRAME: usize = HEADER as usize;
    let mut bytes = [0; FRAME + MIN_FRAME as usize];
    bytes[FRAME..][..14].copy_from_slice(b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x88\xb5");
    if size > MAX_PLAIN {
        // NEEDS_CSUM and GSO_TCPV4; headers of 54 bytes, segments of 1,448, the sum from byte 34 on at its byte 16.
        bytes[..9].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16]);
        // IPv4; total length; time to live, protocol; the length of the TCP header.
        bytes[FRAME + 12..][..3].copy_from_slice(&[0x08, 0x00, 0x45]);
        bytes[FRAME + 16..][..2].copy_from_slice(&((size - 14) as u16).to_be_bytes());
        bytes[FRAME + 22..][..2].copy_from_slice(&[64, 6]);
        bytes[FRAME + 46] = 5 << 4;
    }
    for (offset, byte) in (0..).zip(bytes) {
        buffer.set(offset, byte);
    }
}
