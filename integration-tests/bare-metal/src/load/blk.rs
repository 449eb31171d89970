//! Requests to a disk (VIRTIO 1.2, 5.2).

use super::{measure, number};
use crate::boot_info::BootInfo;
use crate::machine::time_stamp;
use crate::virtio::{Buffer, Device, Memory, NEXT, Queue, WRITE};

const DEVICE_TYPE: u32 = 2;
/// VIRTIO_BLK_F_FLUSH, without which a device may write through its cache.
const FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_MQ.
const MULTIPLE_QUEUES: u64 = 1 << 12;
const SECTOR: u64 = 512;

/// Descriptors of a request: header, data, status.
const CHAIN: u16 = 3;

/// Each request's header and status, in cache lines of their own.
const SLOT: u64 = 128;
const STATUS: u64 = 64;

/// Where the next requests go.
struct Sectors {
    /// Of the whole disk.
    capacity: u64,
    /// Of one request.
    step: u64,
    random: bool,
    state: u64,
}

impl Sectors {
    /// The first sector of the next request.
    fn next(&mut self) -> u64 {
        let places = self.capacity / self.step;
        if self.random {
            // Marsaglia's xorshift.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
        } else {
            self.state += 1;
        }
        self.state % places * self.step
    }
}

/// Requests of `size` bytes, `write=0` or `1`, `random=0` or `1`, `depth` of them at a time in each of `queues` queues,
/// with `interrupts=0` or `1`; counts requests. With `flush=0`, the driver is one that does not flush.
pub fn blk(boot_info: &BootInfo) -> Result<(), &'static str> {
    let option = |name| number(boot_info, name);
    let (size, write, depth) = (option("size")?, option("write")? != 0, option("depth")? as u16);
    let mut memory = Memory::new();
    let flush = if option("flush") == Ok(0) { 0 } else { FLUSH };
    let device = Device::find(DEVICE_TYPE, flush | MULTIPLE_QUEUES)?;
    let mut sectors = Sectors {
        capacity: u64::from(device.config(0)) | u64::from(device.config(4)) << 32,
        step: size / SECTOR,
        random: option("random")? != 0,
        state: time_stamp() | 1,
    };
    let mut queues: [Option<(Queue, Buffer)>; 4] = [const { None }; 4];
    for (index, place) in (0..option("queues")? as u32).zip(&mut queues) {
        let mut queue = device.queue(index, option("interrupts")? != 0, &mut memory)?;
        if depth * CHAIN > queue.size {
            return Err("the queue is too small for this depth");
        }
        let slots = memory.take(u64::from(depth) * SLOT);
        for slot in 0..depth {
            let (head, offset) = (slot * CHAIN, u64::from(slot) * SLOT);
            let data = memory.take(size).address;
            queue.describe(head, slots.address + offset, 16, NEXT);
            queue.describe(head + 1, data, size as usize, if write { NEXT } else { NEXT | WRITE });
            queue.describe(head + 2, slots.address + offset + STATUS, 1, WRITE);
            slots.set(offset, u64::from(write));
        }
        *place = Some((queue, slots));
    }
    device.begin()?;

    for (queue, slots) in queues.iter_mut().flatten() {
        for slot in 0..depth {
            begin(queue, *slots, slot, &mut sectors);
        }
        queue.submit();
    }
    measure(boot_info, || {
        let mut done = 0;
        for (queue, slots) in queues.iter_mut().flatten() {
            while let Some((head, _)) = queue.take() {
                let slot = head / CHAIN;
                if slots.get::<u8>(u64::from(slot) * SLOT + STATUS) != 0 {
                    return Err("a request failed");
                }
                begin(queue, *slots, slot, &mut sectors);
                done += 1;
            }
            queue.submit();
        }
        Ok(done)
    })?;
    device.check()
}

fn begin(queue: &mut Queue, slots: Buffer, slot: u16, sectors: &mut Sectors) {
    let offset = u64::from(slot) * SLOT;
    slots.set(offset + 8, sectors.next());
    slots.set(offset + STATUS, u8::MAX);
    queue.add(slot * CHAIN);
}
