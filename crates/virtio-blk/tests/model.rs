//! Random requests against a model of the disk: on both engines, through the page cache and past it, on one queue and on
//! four, cut into descriptors in any way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::*;
use kindling_virtio_blk::{Blk, BlkConfig, CacheMode, Error, FileDisk, IoEngine};
use kindling_virtio_device::test_utils::Buffer;
use proptest::collection::vec;
use proptest::prelude::*;

/// Sectors that one request of a batch may touch. Requests of a batch run at the same time, and so touch different ones.
const REGION: u64 = 40;
/// Requests of a batch.
const BATCH: usize = 12;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write(u8),
    Zero { unmap: bool },
    Discard,
    Flush,
}

#[derive(Clone, Debug)]
struct Operation {
    kind: Kind,
    /// Relative to the region.
    sector: u64,
    sectors: u64,
    /// Where the data is cut: positions modulo its length.
    cuts: Vec<u16>,
    /// Whether the data begins with a sector of memory, and is cut into whole ones.
    aligned: bool,
    indirect: bool,
}

fn operation() -> impl Strategy<Value = Operation> {
    let kind = prop_oneof![
        4 => Just(Kind::Read),
        4 => any::<u8>().prop_map(Kind::Write),
        1 => any::<bool>().prop_map(|unmap| Kind::Zero { unmap }),
        1 => Just(Kind::Discard),
        1 => Just(Kind::Flush),
    ];
    let place = (0..REGION).prop_flat_map(|sector| (Just(sector), 1..=REGION - sector));
    (kind, place, vec(any::<u16>(), 0..6), any::<bool>(), any::<bool>()).prop_map(
        |(kind, (sector, sectors), cuts, aligned, indirect)| Operation {
            kind,
            sector,
            sectors,
            cuts,
            aligned,
            indirect,
        },
    )
}

fn batches() -> impl Strategy<Value = Vec<(Vec<Operation>, bool)>> {
    vec((vec(operation(), 1..=BATCH), any::<bool>()), 1..8)
}

/// Positions to cut `len` bytes at, in order.
fn cuts(operation: &Operation, len: usize) -> Vec<usize> {
    let unit = if operation.aligned { 512 } else { 1 };
    let mut cuts: Vec<_> =
        operation.cuts.iter().map(|cut| usize::from(*cut) % len.max(1) / unit * unit).collect();
    cuts.extend([0, len]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Makes the next buffer that comes behind a header begin with a sector of memory, by a request that fills what is
/// before. The driver places buffers one behind the other, at multiples of 16, from a page on when there are no others.
fn align(guest: &mut Guest, queue: usize, filled: &mut u32) {
    // The filler's header and its data, then the request's own header.
    let room = (512 + 512 - 16 - *filled - 16) % 512 + 512;
    guest.add(queue, GET_ID, 0, &[], room - 16);
    *filled = 496;
}

/// Adds a request; `filled` are the bytes of a sector that the driver's last buffer has filled.
fn add(guest: &mut Guest, queue: usize, operation: &Operation, base: u64, filled: &mut u32) -> u16 {
    let sector = base + operation.sector;
    let len = operation.sectors as usize * 512;
    let list = |flags| segment(sector, operation.sectors as u32, flags);
    let (kind, out) = match operation.kind {
        Kind::Read => (IN, Vec::new()),
        Kind::Write(byte) => (OUT, vec![byte; len]),
        Kind::Zero { unmap } => (WRITE_ZEROES, list(unmap.into()).to_vec()),
        Kind::Discard => (DISCARD, list(0).to_vec()),
        Kind::Flush => (FLUSH, Vec::new()),
    };
    if operation.aligned {
        align(guest, queue, filled);
    }
    let header = header(kind, sector);
    let mut buffers = vec![Buffer::Readable(&header)];
    for piece in cuts(operation, out.len()).windows(2) {
        buffers.push(Buffer::Readable(&out[piece[0]..piece[1]]));
    }
    if kind == IN {
        for piece in cuts(operation, len).windows(2) {
            buffers.push(Buffer::Writable((piece[1] - piece[0]) as u32));
        }
    }
    buffers.push(Buffer::Writable(1));
    for buffer in &buffers {
        let len = match buffer {
            Buffer::Readable(bytes) => bytes.len() as u32,
            Buffer::Writable(len) => *len,
        };
        *filled = (*filled + len.next_multiple_of(16)) % 512;
    }
    let queue = &mut guest.driver.queues[queue];
    if operation.indirect {
        // The table comes behind the buffers.
        *filled = (*filled + 16 * buffers.len() as u32) % 512;
        queue.add_indirect(&buffers)
    } else {
        queue.add(&buffers)
    }
}

fn check(engine: IoEngine, direct: bool, queues: u16, batches: &[(Vec<Operation>, bool)]) {
    let image = Image::new(REGION * BATCH as u64);
    let mut model = image.read(0, REGION as usize * BATCH * 512);
    let disk = match FileDisk::open(&image.path, false, direct) {
        Err(error @ Error::NoDirect { .. }) => {
            eprintln!("direct I/O is not tested, since this file system has none: {error}");
            return;
        }
        disk => Arc::new(disk.unwrap()),
    };
    let config = BlkConfig { engine, queues, cache: CacheMode::Writeback, ..BlkConfig::default() };
    let mut guest = Guest::new(Blk::new(disk, &config).unwrap());
    for (operations, sleep) in batches {
        let mut filled = vec![0; usize::from(queues)];
        let mut expected = vec![Vec::new(); usize::from(queues)];
        for (index, operation) in operations.iter().enumerate() {
            let queue = index % usize::from(queues);
            let base = index as u64 * REGION;
            let head = add(&mut guest, queue, operation, base, &mut filled[queue]);
            let start = (base + operation.sector) as usize * 512;
            let bytes = &mut model[start..start + operation.sectors as usize * 512];
            match operation.kind {
                Kind::Read => expected[queue].push((head, bytes.to_vec())),
                Kind::Write(byte) => bytes.fill(byte),
                // A hole in a file, too, reads as zeroes.
                Kind::Zero { .. } | Kind::Discard => bytes.fill(0),
                Kind::Flush => {}
            }
        }
        if *sleep {
            guest.workers.step(0).unwrap();
            guest.sleep_and_wake();
        }
        for (queue, expected) in expected.iter().enumerate() {
            while guest.driver.queues[queue].outstanding() > 0 {
                let used = guest.wait(queue);
                let head = used.head;
                let (status, data) = answer(used);
                assert_eq!(status, OK);
                if let Some((_, expected)) = expected.iter().find(|(reading, _)| *reading == head) {
                    assert!(data == *expected, "a read gave something else");
                }
            }
        }
    }
    assert!(image.read(0, model.len()) == model, "the file is another than it should be");
    for name in ["invalid_requests", "unsupported_requests", "read_errors", "write_errors"] {
        assert_eq!(guest.metric(name), 0, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_synchronous_engine_does_what_the_model_does(one in batches(), four in batches()) {
        check(IoEngine::Sync, false, 1, &one);
        check(IoEngine::Sync, false, 4, &four);
    }

    #[test]
    fn the_synchronous_engine_does_so_past_the_page_cache(one in batches(), four in batches()) {
        check(IoEngine::Sync, true, 1, &one);
        check(IoEngine::Sync, true, 4, &four);
    }

    #[test]
    fn the_asynchronous_engine_does_what_the_model_does(one in batches(), four in batches()) {
        check(IoEngine::Async, false, 1, &one);
        check(IoEngine::Async, false, 4, &four);
    }

    #[test]
    fn the_asynchronous_engine_does_so_past_the_page_cache(one in batches(), four in batches()) {
        check(IoEngine::Async, true, 1, &one);
        check(IoEngine::Async, true, 4, &four);
    }
}
