//! Tests of the bus with devices that note what reaches them.

use std::{
    sync::{
        Mutex, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use proptest::prelude::*;

use super::*;

/// Answers reads with its tag and notes every access: offset and, of a write, the data.
#[derive(Default)]
struct Probe {
    tag: u8,
    seen: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Probe {
    fn new(tag: u8) -> Arc<Self> {
        Arc::new(Self { tag, ..Self::default() })
    }

    fn take_seen(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl BusDevice for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(self.tag);
        self.seen.lock().unwrap().push((offset, Vec::new()));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.seen.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn read(bus: &Bus, addr: u64, width: usize) -> Option<Vec<u8>> {
    let mut data = vec![0; width];
    let claimed = bus.read(addr, &mut data);
    if !claimed {
        assert!(data.iter().all(|byte| *byte == 0xff), "unclaimed read left {data:x?}");
    }
    claimed.then_some(data)
}

#[test]
fn access_reaches_the_device_with_its_own_offset_and_width() {
    let bus = Bus::new();
    let (low, high) = (Probe::new(1), Probe::new(2));
    bus.insert(0x1000, 0x100, low.clone()).unwrap();
    bus.insert(0x1100, 0x100, high.clone()).unwrap();

    assert_eq!(read(&bus, 0x1000, 1), Some(vec![1]));
    assert_eq!(read(&bus, 0x10f8, 8), Some(vec![1; 8]));
    assert!(bus.write(0x1100, &[7, 8]));
    assert!(bus.write(0x11fc, &[1, 2, 3, 4]));

    assert_eq!(low.take_seen(), [(0, vec![]), (0xf8, vec![])]);
    assert_eq!(high.take_seen(), [(0, vec![7, 8]), (0xfc, vec![1, 2, 3, 4])]);
}

#[test]
fn access_without_a_device_reads_all_ones_and_says_so() {
    let bus = Bus::new();
    assert_eq!(read(&bus, 0, 8), None);
    bus.insert(0x1000, 0x10, Probe::new(1)).unwrap();
    for addr in [0, 0xfff, 0x1010, u64::MAX] {
        assert_eq!(read(&bus, addr, 1), None);
        assert!(!bus.write(addr, &[0]));
    }
}

#[test]
fn access_across_either_end_of_a_range_is_unclaimed_even_with_a_neighbour() {
    let bus = Bus::new();
    let (low, high) = (Probe::new(1), Probe::new(2));
    bus.insert(0x1000, 0x10, low.clone()).unwrap();
    bus.insert(0x1010, 0x10, high.clone()).unwrap();
    for (addr, width) in [(0xfff, 2), (0x100f, 2), (0x100d, 4), (0x1009, 8), (0x101f, 2)] {
        assert_eq!(read(&bus, addr, width), None, "{width} bytes at {addr:#x}");
        assert!(!bus.write(addr, &vec![0; width]));
    }
    assert!(low.take_seen().is_empty() && high.take_seen().is_empty());
}

#[test]
fn widths_that_no_register_has_are_unclaimed() {
    let bus = Bus::new();
    let probe = Probe::new(1);
    bus.insert(0, 0x1000, probe.clone()).unwrap();
    for width in [0, 3, 5, 6, 7, 9, 16, 4096] {
        assert_eq!(read(&bus, 0, width), None);
        assert!(!bus.write(0, &vec![0; width]));
    }
    assert!(probe.take_seen().is_empty());
}

#[test]
fn register_that_a_device_ignores_reads_all_ones() {
    struct Silent;
    impl BusDevice for Silent {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }
    let bus = Bus::new();
    bus.insert(0, 8, Arc::new(Silent)).unwrap();
    assert_eq!(read(&bus, 0, 4), Some(vec![0xff; 4]));
}

#[test]
fn overlap_is_refused_naming_both_ranges() {
    let bus = Bus::new();
    bus.insert(0x1000, 0x100, Probe::new(1)).unwrap();
    for (base, size) in [(0x1000, 0x100), (0xf00, 0x101), (0x10ff, 1), (0x1040, 1), (0, u64::MAX)] {
        let refused = bus.insert(base, size, Probe::new(2)).unwrap_err();
        assert_eq!(refused, Error::Overlap { base, size, taken_base: 0x1000, taken_size: 0x100 });
    }
    assert_eq!(
        bus.insert(0x1080, 0x100, Probe::new(2)).unwrap_err().to_string(),
        "device range of 0x100 bytes at 0x1080 overlaps that of 0x100 bytes at 0x1000"
    );
    assert_eq!(read(&bus, 0x1080, 1), Some(vec![1]));
    assert_eq!(read(&bus, 0x1100, 1), None);
}

#[test]
fn empty_and_wrapping_ranges_are_refused() {
    let bus = Bus::new();
    assert_eq!(bus.insert(8, 0, Probe::new(1)), Err(Error::Empty { base: 8 }));
    assert_eq!(bus.insert(u64::MAX, 2, Probe::new(1)), Err(Error::WrapAround { base: u64::MAX, size: 2 }));
    assert_eq!(bus.insert(2, u64::MAX, Probe::new(1)), Err(Error::WrapAround { base: 2, size: u64::MAX }));
}

#[test]
fn last_address_can_be_used() {
    let bus = Bus::new();
    bus.insert(u64::MAX - 3, 4, Probe::new(1)).unwrap();
    assert_eq!(read(&bus, u64::MAX - 3, 4), Some(vec![1; 4]));
    assert_eq!(read(&bus, u64::MAX, 1), Some(vec![1]));
    assert_eq!(read(&bus, u64::MAX, 2), None);
}

#[test]
fn removed_device_is_handed_back_and_answers_no_more() {
    let bus = Bus::new();
    let probe = Probe::new(1);
    bus.insert(0x1000, 0x100, probe.clone()).unwrap();
    assert_eq!(bus.remove(0x1001).err(), Some(Error::NotFound { base: 0x1001 }));

    let removed: Arc<dyn BusDevice> = bus.remove(0x1000).unwrap();
    assert!(Arc::ptr_eq(&removed, &(probe as Arc<dyn BusDevice>)));
    assert_eq!(read(&bus, 0x1000, 1), None);
    assert_eq!(bus.remove(0x1000).err(), Some(Error::NotFound { base: 0x1000 }));
    bus.insert(0x1080, 0x100, Probe::new(2)).unwrap();
}

/// Replaces itself and puts another device beside it when written to.
struct Hotplug {
    bus: Weak<Bus>,
    removed: OnceLock<bool>,
}

impl BusDevice for Hotplug {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        let bus = self.bus.upgrade().unwrap();
        bus.insert(0x2000, 0x100, Probe::new(9)).unwrap();
        assert_eq!(read(&bus, 0x2000, 1), Some(vec![9]));
        self.removed.set(bus.remove(0x1000).is_ok()).unwrap();
    }
}

#[test]
fn device_may_change_the_bus_while_it_handles_an_access() {
    let bus = Arc::new(Bus::new());
    let hotplug = Arc::new(Hotplug { bus: Arc::downgrade(&bus), removed: OnceLock::new() });
    bus.insert(0x1000, 0x100, hotplug.clone()).unwrap();
    assert!(bus.write(0x1000, &[1]));
    assert_eq!(hotplug.removed.get(), Some(&true));
    assert_eq!(read(&bus, 0x1000, 1), None);
    assert_eq!(read(&bus, 0x2000, 1), Some(vec![9]));
}

#[test]
fn accesses_go_on_while_devices_come_and_go() {
    let bus = Arc::new(Bus::new());
    bus.insert(0x1000, 0x100, Probe::new(1)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (bus, stop) = (bus.clone(), stop.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(read(&bus, 0x1000, 4), Some(vec![1; 4]));
                    assert!(matches!(read(&bus, 0x800, 1).as_deref(), None | Some([2])));
                    thread::yield_now();
                }
            })
        })
        .collect();
    for _ in 0..1000 {
        bus.insert(0x800, 0x100, Probe::new(2)).unwrap();
        bus.remove(0x800).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
}

proptest! {
    #[test]
    fn insertion_is_refused_exactly_when_an_address_is_taken(
        ranges in prop::collection::vec((0_u64..64, 1_u64..16), 1..20),
    ) {
        let bus = Bus::new();
        let mut taken = [0_u8; 80];
        for ((base, size), tag) in ranges.into_iter().zip(1..) {
            let wanted = &mut taken[base as usize..(base + size) as usize];
            let free = wanted.iter().all(|owner| *owner == 0);
            prop_assert_eq!(bus.insert(base, size, Probe::new(tag)).is_ok(), free);
            if free {
                wanted.fill(tag);
            }
        }
        for (owner, addr) in taken.into_iter().zip(0..) {
            prop_assert_eq!(read(&bus, addr, 1), (owner != 0).then(|| vec![owner]));
        }
    }
}
