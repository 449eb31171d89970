//! The configuration space (VIRTIO 1.2, 2.5).

mod common;

use std::sync::Arc;

use kindling_virtio_device::ConfigSpace;

fn read<const N: usize>(config: &ConfigSpace, offset: u64) -> [u8; N] {
    let mut data = [0xee; N];
    config.read(offset, &mut data);
    data
}

#[test]
fn what_lies_beyond_the_end_reads_as_zero() {
    let config = ConfigSpace::new(b"abcdef");
    assert_eq!(read(&config, 0), *b"abcdef");
    assert_eq!(read(&config, 1), *b"bc");
    assert_eq!(read(&config, 4), *b"ef\0\0");
    for offset in [6, 7, 1 << 32, u64::MAX - 1, u64::MAX] {
        assert_eq!(read(&config, offset), [0; 8], "{offset}");
    }
    assert_eq!(read(&config, 0), []);
    assert_eq!(read(&ConfigSpace::new(&[]), 0), [0; 4]);
}

#[test]
fn a_change_raises_the_generation_and_tells_the_driver() {
    let (config, interrupt) = (ConfigSpace::new(&[0; 8]), common::driver(8, 0).interrupt);
    config.update(|bytes| bytes[0] = 1);
    assert_eq!((config.generation(), interrupt.config()), (1, 0), "no driver");
    config.set_interrupt(Some(interrupt.clone()));
    config.update(|bytes| bytes[7] = 2);
    assert_eq!((config.generation(), interrupt.config()), (2, 1));
    config.set_interrupt(None);
    config.update(|bytes| bytes[0] = 3);
    assert_eq!((config.generation(), interrupt.config()), (3, 1));
    assert_eq!(read(&config, 0), [3, 0, 0, 0, 0, 0, 0, 2]);
}

#[test]
fn bytes_that_stay_what_they_were_are_no_change() {
    let (config, interrupt) = (ConfigSpace::new(&[5; 4]), common::driver(8, 0).interrupt);
    config.set_interrupt(Some(interrupt.clone()));
    config.update(|bytes| bytes.fill(5));
    assert_eq!((config.generation(), interrupt.config()), (0, 0));
}

#[test]
fn the_driver_is_not_told_what_it_wrote_itself() {
    let (config, interrupt) = (ConfigSpace::new(&[0; 4]), common::driver(8, 0).interrupt);
    config.set_interrupt(Some(interrupt.clone()));
    config.update_by_driver(|bytes| bytes[1] = 7);
    assert_eq!((config.generation(), interrupt.config()), (0, 0));
    assert_eq!(read(&config, 0), [0, 7, 0, 0]);
}

#[test]
fn a_driver_that_minds_the_generation_never_sees_half_a_change() {
    let config = ConfigSpace::new(&[0; 16]);
    let writer = Arc::clone(&config);
    let writer = std::thread::spawn(move || {
        for value in 1..=20_000_u64 {
            writer.update(|bytes| {
                for half in bytes.chunks_exact_mut(8) {
                    half.copy_from_slice(&value.to_le_bytes());
                }
            });
        }
    });
    let (mut last, mut seen) = (0, 0);
    while last < 20_000 {
        // VIRTIO 1.2, 2.5.1: read again when the generation has changed.
        let before = config.generation();
        let halves = (u64::from_le_bytes(read(&config, 0)), u64::from_le_bytes(read(&config, 8)));
        if config.generation() == before {
            assert_eq!(halves.0, halves.1);
            assert_eq!(halves.0, u64::from(before), "the bytes of this generation");
            last = halves.0;
            seen += 1;
        }
    }
    writer.join().unwrap();
    assert!(seen > 0);
}
