//! Temporary.
#![allow(missing_docs, clippy::unwrap_used)]
#[path = "../tests/common/mod.rs"]
mod common;
use common::Rig;
use kindling_virtio_device::test_utils::Buffer;
#[path = "../tests/common/metadata.rs"]
mod metadata;
fn start(d: bool) -> Rig {
    let (net, mut h) = common::device(1);
    let net = if d { net.with_detour(metadata::detour(&metadata::service())) } else { net };
    Rig::of(net, h.remove(0), 0)
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (what, size, count): (&str, usize, usize) =
        (&args[1], args[2].parse().unwrap(), args[3].parse().unwrap());
    let batch = if size > 10_000 { 2 } else { 32 };
    let mut rig = start(args[4] == "1");
    let mut frame = vec![7; size];
    frame[12..14].copy_from_slice(&[8, 0]);
    let buffers = (size + 12).div_ceil(1_536) * batch + 50;
    for _ in 0..count / batch {
        if what == "transmit" {
            while rig.tx().take_used().is_some() {}
            (0..batch).for_each(|_| rig.transmit(&frame));
            rig.run();
            assert_eq!(std::iter::from_fn(|| rig.host.receive()).count(), batch);
        } else {
            while rig.rx().take_used().is_some() {}
            while rig.rx().outstanding() < buffers {
                rig.rx().add(&[Buffer::Writable(1_536)]);
            }
            (0..batch).for_each(|_| rig.host.send(&frame));
            rig.run();
        }
    }
}
