//! What a frame costs the device's thread: a Unix socket takes the place of the tap, and the driver's and the host's work
//! is not counted. `floor` is the system call alone, on the same socket.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/metadata.rs"]
mod metadata;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::Rig;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kindling_virtio_device::test_utils::Buffer;

/// Sizes of frames, and how many of them the socket holds.
const SIZES: [(usize, usize); 3] = [(64, 32), (1_500, 32), (65_000, 2)];

/// A device as it is, or with a detour, which none of the frames here take.
fn start(has_detour: bool) -> Rig {
    let (net, mut hosts) = common::device(1);
    let net = if has_detour { net.with_detour(metadata::detour(&metadata::service())) } else { net };
    Rig::of(net, hosts.remove(0), 0)
}

fn frames(criterion: &mut Criterion) {
    for (name, has_detour) in [("frame", false), ("frame of a device with a detour", true)] {
        passing(criterion, name, has_detour);
    }
    floor(criterion);
}

/// A frame of IPv4, so that a detour has to look at its address.
fn frame(size: usize) -> Vec<u8> {
    let mut frame = vec![7; size];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame
}

fn passing(criterion: &mut Criterion, name: &str, has_detour: bool) {
    let mut group = criterion.benchmark_group(name);
    for (size, batch) in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        let frame = frame(size);
        // Buffers as Linux has them: 1,536 bytes, to be merged.
        let buffers = (size + 12).div_ceil(1_536) * batch + 50;
        group.bench_function(BenchmarkId::new("receive", size), |bencher| {
            bencher.iter_custom(|count| {
                let mut rig = start(has_detour);
                let mut added = 0;
                batches(count, batch, |now| {
                    while rig.rx().take_used().is_some() {}
                    if added > 40_000 {
                        // The driver uses its memory once.
                        (rig, added) = (start(has_detour), 0);
                    }
                    while rig.rx().outstanding() < buffers {
                        rig.rx().add(&[Buffer::Writable(1_536)]);
                        added += 1;
                    }
                    rig.run();
                    (0..now).for_each(|_| rig.host.send(&frame));
                    let begin = Instant::now();
                    rig.run();
                    begin.elapsed()
                })
            });
        });
        group.bench_function(BenchmarkId::new("transmit", size), |bencher| {
            bencher.iter_custom(|count| {
                let mut rig = start(has_detour);
                batches(count, batch, |now| {
                    while rig.tx().take_used().is_some() {}
                    (0..now).for_each(|_| rig.transmit(&frame));
                    let begin = Instant::now();
                    rig.run();
                    let time = begin.elapsed();
                    assert_eq!(std::iter::from_fn(|| rig.host.receive()).count(), now);
                    time
                })
            });
        });
    }
}

fn floor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/floor");
    for (size, batch) in SIZES {
        group.throughput(Throughput::Bytes(size as u64));
        let frame = vec![7; size];
        let message = vec![7; 12 + size];
        group.bench_function(BenchmarkId::new("write", size), |bencher| {
            bencher.iter_custom(|count| {
                let (socket, host) = common::socket_pair();
                let socket = std::fs::File::from(socket);
                batches(count, batch, |now| {
                    let begin = Instant::now();
                    (0..now).for_each(|_| (&mut &socket).write_all(&message).unwrap());
                    let time = begin.elapsed();
                    assert_eq!(std::iter::from_fn(|| host.receive()).count(), now);
                    time
                })
            });
        });
        group.bench_function(BenchmarkId::new("read", size), |bencher| {
            bencher.iter_custom(|count| {
                let (socket, host) = common::socket_pair();
                let socket = std::fs::File::from(socket);
                let mut buffer = vec![0; 70_000];
                batches(count, batch, |now| {
                    (0..now).for_each(|_| host.send(&frame));
                    let begin = Instant::now();
                    (0..now).for_each(|_| assert_eq!((&mut &socket).read(&mut buffer).unwrap(), 12 + size));
                    begin.elapsed()
                })
            });
        });
    }
}

/// Runs `count` times, up to `batch` at once, and adds up the time.
fn batches(count: u64, batch: usize, mut run: impl FnMut(usize) -> Duration) -> Duration {
    let mut time = Duration::ZERO;
    let mut rest = count;
    while rest > 0 {
        let now = rest.min(batch as u64);
        time += run(now as usize);
        rest -= now;
    }
    time
}

criterion_group!(benches, frames);
criterion_main!(benches);
