//! Each kind of request, done and refused, on both engines (VIRTIO 1.2, 5.2.6).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use common::*;
use kindling_virtio_blk::{Blk, BlkConfig, CacheMode, FileDisk, IoEngine};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use vm_memory::{Bytes, GuestAddress};

const FLUSH_FEATURE: u64 = 1 << 9;

fn config(engine: IoEngine) -> BlkConfig {
    BlkConfig { engine, cache: CacheMode::Writeback, id: "root".into(), ..BlkConfig::default() }
}

#[test]
fn reads_give_what_is_in_the_file() {
    for engine in ENGINES {
        let image = Image::new(64);
        let mut guest = Guest::open(&image, &config(engine));
        assert_eq!(guest.read(0, 512), image.read(0, 512));
        assert_eq!(guest.read(7, 57 * 512), image.read(7, 57 * 512));
        assert_eq!(guest.call(IN, 64, &[], 0), (OK, Vec::new()), "nothing, at the very end");
        assert_eq!((guest.metric("reads"), guest.metric("read_bytes")), (3, 58 * 512));
        assert_eq!(guest.metric("invalid_requests"), 0);
    }
}

#[test]
fn writes_are_in_the_file_and_are_read_back() {
    for engine in ENGINES {
        let image = Image::new(64);
        let mut guest = Guest::open(&image, &config(engine));
        let data: Vec<u8> = (0..4096_u32).map(|byte| (byte % 253) as u8).collect();
        assert_eq!(guest.call(OUT, 5, &data, 0).0, OK);
        assert_eq!(image.read(5, 4096), data);
        assert_eq!(image.read(4, 512), [pattern(4); 512]);
        assert_eq!(image.read(13, 512), [pattern(13); 512]);
        assert_eq!(guest.read(5, 4096), data);
        assert_eq!((guest.metric("writes"), guest.metric("write_bytes")), (1, 4096));
        assert_eq!((guest.metric("write_latency"), guest.metric("read_latency")), (1, guest.metric("reads")));
    }
}

#[test]
fn a_request_may_be_cut_into_descriptors_in_any_way() {
    for engine in ENGINES {
        let image = Image::new(16);
        let mut guest = Guest::open(&image, &config(engine));
        let header = header(OUT, 3);
        let data = [0x77; 1024];
        for indirect in [false, true] {
            let buffers = [
                Buffer::Readable(&header[..1]),
                Buffer::Readable(&header[1..9]),
                Buffer::Readable(&[&header[9..], &data[..3]].concat()),
                Buffer::Readable(&data[3..]),
                Buffer::Writable(1),
            ];
            let queue = &mut guest.driver.queues[0];
            if indirect {
                queue.add_indirect(&buffers)
            } else {
                queue.add(&buffers)
            };
            assert_eq!(answer(guest.wait(0)), (OK, Vec::new()));
            assert_eq!(image.read(3, 1024), data);
            // Data and status share a descriptor.
            let header = common::header(IN, 2);
            let buffers = [
                Buffer::Readable(&header),
                Buffer::Writable(511),
                Buffer::Writable(2),
                Buffer::Writable(1024),
            ];
            let queue = &mut guest.driver.queues[0];
            if indirect {
                queue.add_indirect(&buffers)
            } else {
                queue.add(&buffers)
            };
            let (status, read) = answer(guest.wait(0));
            assert_eq!((status, read.len()), (OK, 1536));
            assert_eq!(read, image.read(2, 1536));
        }
    }
}

#[test]
fn requests_beyond_the_end_are_refused_without_touching_the_file() {
    for engine in ENGINES {
        let image = Image::new(16);
        let before = image.read(0, 16 * 512);
        let mut guest = Guest::open(&image, &config(engine));
        for sector in [16, 15, 17, u64::MAX, u64::MAX / 512, 1 << 55] {
            assert_eq!(guest.call(OUT, sector, &[0xff; 1024], 0).0, IOERR, "write at {sector}");
            let (status, data) = guest.call(IN, sector, &[], 1024);
            assert_eq!((status, data), (IOERR, vec![0; 1024]), "read at {sector}");
        }
        for list in [segment(16, 1, 0), segment(0, 17, 0), segment(u64::MAX, 2, 0), segment(3, 0, 0)] {
            assert_eq!(guest.call(DISCARD, 0, &list, 0).0, IOERR);
            assert_eq!(guest.call(WRITE_ZEROES, 0, &list, 0).0, IOERR);
        }
        assert_eq!(image.read(0, 16 * 512), before);
        assert_eq!(std::fs::metadata(&image.path).unwrap().len(), 16 * 512);
        assert_eq!(guest.metric("invalid_requests"), 20);
        assert_eq!(guest.metric("writes") + guest.metric("reads") + guest.metric("write_errors"), 0);
    }
}

#[test]
fn malformed_requests_are_refused_and_the_next_is_served() {
    for engine in ENGINES {
        let image = Image::new(16);
        let mut guest = Guest::open(&image, &config(engine));
        assert_eq!(guest.call(OUT, 0, &[0xff; 511], 0).0, IOERR, "no whole sector to write");
        assert_eq!(guest.call(IN, 0, &[], 513).0, IOERR, "no whole sector to read");
        assert_eq!(guest.call(GET_ID, 0, &[], 19).0, IOERR, "no room for the name");
        for len in [15, 17, 0, 16 * 17] {
            assert_eq!(guest.call(DISCARD, 0, &vec![1; len], 0).0, IOERR, "a list of {len} bytes");
        }
        // No whole header.
        guest.driver.queues[0].add(&[Buffer::Readable(&header(IN, 0)[..15]), Buffer::Writable(513)]);
        assert_eq!(answer(guest.wait(0)), (IOERR, vec![0; 512]));
        // No status.
        let head = guest.driver.queues[0].add(&[Buffer::Readable(&header(FLUSH, 0))]);
        let used = guest.wait(0);
        assert_eq!((used.head, used.written), (head, 0));
        assert_eq!(guest.metric("invalid_requests"), 9);
        assert_eq!(guest.read(1, 512), [pattern(1); 512]);
        assert!(!guest.driver.interrupt.is_reset_needed());
    }
}

#[test]
fn requests_of_unknown_kind_are_unsupported() {
    for engine in ENGINES {
        let mut guest = Guest::open(&Image::new(16), &config(engine));
        for kind in [2, 3, 5, 14, 24, 0x8000_0000, u32::MAX] {
            assert_eq!(guest.call(kind, 0, &[1; 512], 512), (UNSUPP, vec![0; 512]), "type {kind}");
        }
        assert_eq!(guest.metric("unsupported_requests"), 7);
    }
}

#[test]
fn the_serial_number_is_the_name_padded_or_cut_to_20_bytes() {
    for (name, expected) in [
        ("root", &b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
        ("a_name_with_more_than_20_bytes", &b"a_name_with_more_tha"[..]),
    ] {
        for engine in ENGINES {
            let config = BlkConfig { id: name.into(), ..config(engine) };
            let mut guest = Guest::open(&Image::new(16), &config);
            assert_eq!(guest.call(GET_ID, 0, &[], 20), (OK, expected.to_vec()));
            let (status, more) = guest.call(GET_ID, 0, &[], 32);
            assert_eq!((status, &more[..20], &more[20..]), (OK, expected, &[0; 12][..]));
        }
    }
}

#[test]
fn flush_is_served_when_it_was_negotiated() {
    for engine in ENGINES {
        let mut guest = Guest::open(&Image::new(16), &config(engine));
        assert_eq!(guest.device.features() & FLUSH_FEATURE, FLUSH_FEATURE);
        assert_eq!(guest.call(FLUSH, 0, &[], 0).0, OK);
        assert_eq!(guest.metric("flushes"), 1);

        let unsafe_config = BlkConfig { cache: CacheMode::Unsafe, ..config(engine) };
        let mut guest = Guest::open(&Image::new(16), &unsafe_config);
        assert_eq!(guest.device.features() & FLUSH_FEATURE, 0);
        assert_eq!(guest.call(FLUSH, 0, &[], 0).0, UNSUPP);
    }
}

#[test]
fn a_driver_without_features_is_served_what_needs_none() {
    for engine in ENGINES {
        let image = Image::new(16);
        let device = open(&image, &config(engine));
        let driver = MockDriver::with_features(&device, COMMON_FEATURES & 1 << 32);
        let mut guest = Guest::with_driver(device, driver);
        assert_eq!(guest.call(OUT, 1, &[9; 512], 0).0, OK);
        assert_eq!(guest.read(1, 512), [9; 512]);
        assert_eq!(guest.call(FLUSH, 0, &[], 0).0, UNSUPP);
        assert_eq!(guest.call(DISCARD, 0, &segment(0, 1, 0), 0).0, UNSUPP);
        assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(0, 1, 0), 0).0, UNSUPP);
    }
}

#[test]
fn a_driver_that_declines_flushes_has_its_writes_and_zeroes_made_durable() {
    for engine in ENGINES {
        let image = Image::new(16);
        let device = open(&image, &config(engine));
        let features = (device.features() | COMMON_FEATURES) & !FLUSH_FEATURE;
        let driver = MockDriver::with_features(&device, features);
        let mut guest = Guest::with_driver(device, driver);
        assert_eq!(guest.call(OUT, 1, &[9; 512], 0).0, OK);
        let list = [segment(2, 1, 0), segment(5, 1, 0)].concat();
        assert_eq!(guest.call(WRITE_ZEROES, 0, &list, 0).0, OK);
        assert_eq!(guest.call(DISCARD, 0, &segment(7, 1, 0), 0).0, OK);
        assert_eq!(guest.read(1, 1024), [[9; 512], [0; 512]].concat());
        assert_eq!(guest.read(5, 512), [0; 512]);
        assert_eq!(guest.call(FLUSH, 0, &[], 0).0, UNSUPP);
    }
}

#[test]
fn a_read_only_disk_is_read_and_refuses_all_else() {
    for engine in ENGINES {
        let image = Image::new(16);
        let before = image.read(0, 16 * 512);
        let disk = FileDisk::open(&image.path, true, false).unwrap();
        let mut guest = Guest::new(Blk::new(Arc::new(disk), &config(engine)).unwrap());
        let features = guest.device.features();
        assert_eq!(features >> 5 & 1, 1, "RO");
        assert_eq!(features & (1 << 13 | 1 << 14), 0, "neither DISCARD nor WRITE_ZEROES");
        assert_eq!(guest.call(OUT, 1, &[9; 512], 0).0, IOERR);
        assert_eq!(guest.call(DISCARD, 0, &segment(0, 1, 0), 0).0, IOERR);
        assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(0, 1, 0), 0).0, IOERR);
        assert_eq!(guest.read(0, 16 * 512), before);
        assert_eq!(guest.call(FLUSH, 0, &[], 0).0, OK);
        assert_eq!(image.read(0, 16 * 512), before);
    }
}

#[test]
fn discarded_blocks_are_given_back_to_the_host() {
    for engine in ENGINES {
        let image = Image::new(4096);
        std::fs::File::open(&image.path).unwrap().sync_all().unwrap();
        let blocks = || std::fs::metadata(&image.path).unwrap().blocks();
        let before = blocks();
        let mut guest = Guest::open(&image, &config(engine));
        let list = [segment(1024, 1024, 0), segment(3072, 1024, 0)].concat();
        assert_eq!(guest.call(DISCARD, 0, &list, 0).0, OK);
        assert!(blocks() <= before - 2048, "{} of {before} blocks are still there", blocks());
        assert_eq!(std::fs::metadata(&image.path).unwrap().len(), 4096 * 512);
        assert_eq!(guest.read(1023, 512), [pattern(1023); 512]);
        assert_eq!(guest.read(2048, 512), [pattern(2048); 512]);
        assert_eq!((guest.metric("discards"), guest.metric("discarded_bytes")), (1, 1 << 20));
    }
}

#[test]
fn zeroed_blocks_read_as_zeroes_and_go_only_when_unmapped() {
    for engine in ENGINES {
        for unmap in [0, 1] {
            let image = Image::new(4096);
            std::fs::File::open(&image.path).unwrap().sync_all().unwrap();
            let blocks = || std::fs::metadata(&image.path).unwrap().blocks();
            let before = blocks();
            let mut guest = Guest::open(&image, &config(engine));
            // Neither begins nor ends with a page.
            let list = [segment(1001, 2002, unmap), segment(4095, 1, unmap)].concat();
            assert_eq!(guest.call(WRITE_ZEROES, 0, &list, 0).0, OK);
            assert_eq!(guest.read(1001, 2002 * 512), vec![0; 2002 * 512]);
            assert_eq!(guest.read(4095, 512), [0; 512]);
            for kept in [1000, 3003, 4094] {
                assert_eq!(guest.read(kept, 512), [pattern(kept); 512], "sector {kept}");
            }
            assert_eq!(blocks() < before, unmap == 1, "{} of {before} blocks with {unmap}", blocks());
            assert_eq!((guest.metric("write_zeroes"), guest.metric("zeroed_bytes")), (1, 2003 * 512));
        }
    }
}

#[test]
fn zeroes_are_written_where_the_file_system_cannot_make_them() {
    for engine in ENGINES {
        for unmap in [0, 1] {
            // A file in memory cannot zero a range, only free it.
            let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
            std::fs::write(file.path(), vec![0xee; 6000 * 512]).unwrap();
            let blocks = || std::fs::metadata(file.path()).unwrap().blocks();
            let before = blocks();
            let disk = FileDisk::open(file.path(), false, false).unwrap();
            let mut guest = Guest::new(Blk::new(Arc::new(disk), &config(engine)).unwrap());
            assert_eq!(guest.call(WRITE_ZEROES, 0, &segment(3, 5000, unmap), 0).0, OK);
            assert_eq!(guest.read(3, 5000 * 512), vec![0; 5000 * 512]);
            assert_eq!((guest.read(2, 512), guest.read(5003, 512)), (vec![0xee; 512], vec![0xee; 512]));
            assert_eq!(blocks() < before, unmap == 1, "{} of {before} blocks with {unmap}", blocks());
        }
    }
}

#[test]
fn lists_of_segments_are_checked_whole_before_anything_is_cleared() {
    for engine in ENGINES {
        let image = Image::new(1 << 17);
        let before = image.read(0, 64 * 512);
        let mut guest = Guest::open(&image, &config(engine));
        let good = segment(0, 8, 0);
        for (bad, status) in [
            (segment(8, 1, 1), UNSUPP),
            (segment(8, 1, 2), UNSUPP),
            (segment(8, 0, 0), IOERR),
            (segment(1 << 17, 1, 0), IOERR),
        ] {
            assert_eq!(guest.call(DISCARD, 0, &[good, bad].concat(), 0).0, status);
        }
        for (bad, status) in [(segment(8, 1, 2), UNSUPP), (segment(8, (64 << 10) + 1, 0), IOERR)] {
            assert_eq!(guest.call(WRITE_ZEROES, 0, &[good, bad].concat(), 0).0, status);
        }
        assert_eq!(image.read(0, 64 * 512), before);
        let most: Vec<u8> = (0..16).flat_map(|index| segment(index * 2, 1, 0)).collect();
        assert_eq!(guest.call(WRITE_ZEROES, 0, &most, 0).0, OK);
        assert_eq!(guest.read(30, 512), [0; 512]);
        assert_eq!(guest.read(31, 512), [pattern(31); 512]);
    }
}

#[test]
fn capacity_is_whole_blocks_only() {
    for engine in ENGINES {
        for (len, block_size, capacity) in
            [(512 * 5 + 511, 512, 5), (4096 * 3 + 4095, 4096, 24), (511, 512, 0), (0, 4096, 0)]
        {
            let image = Image::of(&vec![7; len]);
            let mut guest = Guest::open(&image, &BlkConfig { block_size, ..config(engine) });
            assert_eq!(guest.capacity(), capacity);
            assert_eq!(guest.call(IN, capacity, &[], 512).0, IOERR);
            assert_eq!(guest.call(OUT, capacity, &[1; 512], 0).0, IOERR);
            if capacity > 0 {
                assert_eq!(guest.read(capacity - 1, 512), [7; 512]);
            }
            assert_eq!(image.read(0, len), vec![7; len]);
        }
    }
}

#[test]
fn a_file_that_was_cut_short_gives_errors_and_not_wrong_data() {
    for engine in ENGINES {
        let image = Image::new(16);
        let mut guest = Guest::open(&image, &config(engine));
        std::fs::OpenOptions::new().write(true).open(&image.path).unwrap().set_len(8 * 512).unwrap();
        assert_eq!(guest.call(IN, 8, &[], 512), (IOERR, vec![0; 512]));
        let (status, data) = guest.call(IN, 7, &[], 1024);
        assert_eq!(status, IOERR);
        assert_eq!(data[512..], [0; 512]);
        assert_eq!(guest.metric("read_errors"), 2);
        assert_eq!(guest.read(7, 512), [pattern(7); 512]);
    }
}

#[test]
fn requests_that_are_too_long_are_refused_and_their_buffers_left_alone() {
    const MOST: u32 = 32 << 20;
    for engine in ENGINES {
        let image = Image::of(&[1; 512]);
        std::fs::File::options().write(true).open(&image.path).unwrap().set_len(64 << 20).unwrap();
        for (kind, len, expected) in [
            // Status, bytes that count as written, the first byte of the buffer and that of the file.
            (IN, MOST, (OK, MOST + 1, 1, 1)),
            (IN, MOST + 512, (IOERR, 0, 0xa5, 1)),
            (OUT, MOST + 512, (IOERR, 1, 2, 1)),
            (OUT, MOST, (OK, 1, 2, 2)),
        ] {
            let mut guest = Guest::open(&image, &config(engine));
            let data = if kind == IN { Buffer::Writable(1) } else { Buffer::Readable(&[2]) };
            let queue = &mut guest.driver.queues[0];
            let head = queue.prepare(&[Buffer::Readable(&header(kind, 0)), data, Buffer::Writable(1)], false);
            // The data is made longer, and the status goes behind it.
            let (table, memory) = (queue.state.config.descriptor_table, &guest.driver.memory);
            let at: u64 = memory.read_obj(GuestAddress(table + 16)).unwrap();
            let status = at + u64::from(len);
            queue.write_descriptor(table, 1, at, len, 1 | u16::from(kind == IN) << 1, 2);
            queue.write_descriptor(table, 2, status, 1, 2, 0);
            queue.offer(head);
            queue.kick();
            let written = guest.wait(0).written;
            let byte = |at| guest.driver.memory.read_obj::<u8>(GuestAddress(at)).unwrap();
            assert_eq!((byte(status), written, byte(at), image.read(0, 1)[0]), expected, "{kind} {len}");
            assert_eq!(guest.metric("invalid_requests"), u64::from(byte(status) == IOERR));
        }
    }
}
