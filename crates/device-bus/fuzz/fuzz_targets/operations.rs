#![no_main]
//! Insertions, removals, reads and writes on a bus, compared with a list that is searched from end to end.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use kindling_device_bus::{Bus, BusDevice};
use libfuzzer_sys::fuzz_target;

/// An address near the start of the address space, or near its end, so that ranges meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Low(u8),
    High(u8),
    Anywhere(u64),
}

impl Address {
    fn get(self) -> u64 {
        match self {
            Self::Low(address) => address.into(),
            Self::High(distance) => u64::MAX - u64::from(distance),
            Self::Anywhere(address) => address,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Insert { base: Address, size: Size },
    Remove { base: Address },
    RemoveNth { index: u8 },
    Read { addr: Address, width: u8 },
    Write { addr: Address, width: u8, value: u8 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Small(u8),
    Any(u64),
}

/// What a device was asked to do: read or write, offset, data.
type Access = (bool, u64, Vec<u8>);

struct Recorder {
    tag: u8,
    last: Arc<Mutex<Option<(u8, Access)>>>,
}

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        assert!(data.iter().all(|byte| *byte == 0xff));
        data.fill(self.tag);
        self.note((false, offset, data.to_vec()));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.note((true, offset, data.to_vec()));
    }
}

impl Recorder {
    fn note(&self, access: Access) {
        if let Ok(mut last) = self.last.lock() {
            *last = Some((self.tag, access));
        }
    }
}

/// One device as the model knows it. Addresses are u128, so that the end needs no care.
struct Entry {
    base: u128,
    end: u128,
    tag: u8,
}

/// The device that has all `width` bytes at `addr`, as its tag and the offset.
fn expected(model: &[Entry], addr: u64, width: usize) -> Option<(u8, u64)> {
    let (start, end) = (u128::from(addr), u128::from(addr) + width as u128);
    let entry = model.iter().find(|entry| entry.base <= start && end <= entry.end)?;
    matches!(width, 1 | 2 | 4 | 8).then(|| (entry.tag, (start - entry.base) as u64))
}

fuzz_target!(|operations: Vec<Operation>| {
    let bus = Bus::new();
    let mut model: Vec<Entry> = Vec::new();
    let last = Arc::new(Mutex::new(None));
    let take_last = || last.lock().ok().and_then(|mut last| last.take());

    for (operation, tag) in operations.into_iter().zip((0..=254).cycle()) {
        match operation {
            Operation::Insert { base, size } => {
                let base = base.get();
                let size = match size {
                    Size::Small(size) => size.into(),
                    Size::Any(size) => size,
                };
                let (start, end) = (u128::from(base), u128::from(base) + u128::from(size));
                let possible = size > 0
                    && end <= 1 << 64
                    && model.iter().all(|entry| end <= entry.base || entry.end <= start);
                let device = Arc::new(Recorder { tag, last: Arc::clone(&last) });
                assert_eq!(bus.insert(base, size, device).is_ok(), possible);
                if possible {
                    model.push(Entry { base: start, end, tag });
                }
            }
            Operation::Remove { base } => {
                let index = model.iter().position(|entry| entry.base == u128::from(base.get()));
                assert_eq!(bus.remove(base.get()).is_ok(), index.is_some());
                if let Some(index) = index {
                    model.swap_remove(index);
                }
            }
            Operation::RemoveNth { index } => {
                if usize::from(index) < model.len() {
                    let entry = model.swap_remove(index.into());
                    assert!(bus.remove(entry.base as u64).is_ok());
                }
            }
            Operation::Read { addr, width } => {
                let mut data = vec![0; (width % 18).into()];
                let claimed = bus.read(addr.get(), &mut data);
                let expected = expected(&model, addr.get(), data.len());
                assert_eq!(claimed, expected.is_some());
                let answer = expected.map_or(0xff, |(tag, _)| tag);
                assert!(data.iter().all(|byte| *byte == answer));
                assert_eq!(take_last(), expected.map(|(tag, offset)| (tag, (false, offset, data))));
            }
            Operation::Write { addr, width, value } => {
                let data = vec![value; (width % 18).into()];
                let claimed = bus.write(addr.get(), &data);
                let expected = expected(&model, addr.get(), data.len());
                assert_eq!(claimed, expected.is_some());
                assert_eq!(take_last(), expected.map(|(tag, offset)| (tag, (true, offset, data))));
            }
        }
    }
});
