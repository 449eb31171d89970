#![no_main]
//! A guest writes what it likes over its rings and buffers while host programs come, send and go. Input: records of a
//! byte that says what to do, an offset and a length. Whatever happens, the device neither panics nor is busy without end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use kindling_virtio_device::test_utils::{Area, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device, QueueConfig};
use kindling_virtio_vsock::{DEFAULT_MAX_CONNECTIONS, Vsock};
use libfuzzer_sys::fuzz_target;

/// Event indices (VIRTIO 1.2, 6).
const EVENT_IDX: u64 = 1 << 29;

/// Chains that are right to begin with, for each queue.
const CHAINS: u16 = 64;
/// Where their buffers are behind the rings, and how far apart.
const BUFFERS: u64 = 0x10000;
const STRIDE: u64 = 0x200;

/// Receive buffers, and the packets that a guest might send: ports 1 and 52 to 55.
fn prepare(driver: &MockDriver) {
    for queue in &driver.queues {
        let QueueConfig { descriptor_table, used_ring, .. } = queue.state.config;
        let mut header = [0; 44];
        header[0] = 3;
        header[8] = 2;
        header[16] = 52;
        header[20] = 1;
        header[28] = 1;
        header[38] = 1;
        for index in 0..CHAINS {
            let at = BUFFERS + u64::from(index) * STRIDE;
            let writable = if queue.state.index == 1 { 0 } else { 2 };
            queue.write_descriptor(
                descriptor_table,
                index,
                used_ring + at,
                44 + u32::from(index) * 4,
                writable,
                0,
            );
            header[30] = (index % 8) as u8;
            header[24] = (index % 4 * 8) as u8;
            header[16] = 52 + (index / 16) as u8;
            queue.overwrite(Area::Used, at, &header);
            queue.overwrite(Area::Available, 4 + 2 * u64::from(index), &index.to_le_bytes());
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let dir = std::env::temp_dir().join(format!("kindling-vsock-raw-{}", std::process::id()));
    // Fails when it is there already.
    let _ = std::fs::create_dir(&dir);
    let path = dir.join("v");
    let Ok(mut device) = Vsock::new(3, &path, DEFAULT_MAX_CONNECTIONS) else { unreachable!() };
    let listener_path = dir.join("v_1");
    let _ = std::fs::remove_file(&listener_path);
    let Ok(listener) = UnixListener::bind(&listener_path) else { unreachable!() };
    assert!(listener.set_nonblocking(true).is_ok());
    let Some((choice, mut data)) = data.split_first() else { return };
    let refused = if choice & 1 == 1 { EVENT_IDX } else { 0 };
    let driver = MockDriver::with_features(&device, COMMON_FEATURES & !refused);
    prepare(&driver);
    let Ok(workers) = device.activate(driver.activation()) else { unreachable!() };
    let Ok(mut inline) = Inline::start(workers) else { unreachable!() };
    let mut programs: Vec<UnixStream> = Vec::new();
    let mut buffer = vec![0; 1 << 16];

    for _ in 0..200 {
        let Some(([what, offset, len], rest)) = data.split_first_chunk() else { return };
        let queue = &driver.queues[usize::from(what >> 4) % driver.queues.len()];
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        data = rest;
        let at = u64::from(*offset) * 2;
        let count = programs.len().max(1);
        match what & 15 {
            0 => queue.overwrite(Area::Descriptors, at, bytes),
            1 => queue.overwrite(Area::Available, at, bytes),
            2 => queue.overwrite(Area::Used, at, bytes),
            // A packet of the guest.
            3 | 4 => queue.overwrite(Area::Used, BUFFERS + u64::from(what >> 4) * STRIDE + at, bytes),
            // More chains are available.
            5..=7 => {
                queue.overwrite(Area::Available, 2, &u16::from(*offset).to_le_bytes());
                queue.kick();
            }
            8 => {
                let Ok(mut stream) = UnixStream::connect(&path) else { return };
                assert!(stream.set_nonblocking(true).is_ok());
                let _ = stream.write(if offset & 1 == 0 { b"CONNECT 52\n" } else { bytes });
                programs.push(stream);
            }
            9 => programs.extend(listener.accept().map(|(stream, _)| stream)),
            10 | 11 => {
                if let Some(stream) = programs.get_mut(usize::from(*offset) % count) {
                    assert!(stream.set_nonblocking(true).is_ok());
                    let _ = if what & 1 == 0 { stream.write(bytes) } else { stream.read(&mut buffer) };
                }
            }
            12 => {
                if !programs.is_empty() {
                    programs.swap_remove(usize::from(*offset) % count);
                }
            }
            13 => {
                let Ok(next) = Inline::start(inline.stop()) else { return };
                inline = next;
            }
            _ => queue.kick(),
        }
        match inline.run(2_000) {
            Ok(steps) => assert!(steps < 2_000, "busy with nothing"),
            // The driver broke the protocol.
            Err(_) => return,
        }
    }
});
