#![no_main]
//! A guest writes what it likes over its rings and buffers while the host sends frames and takes them, and some of the
//! guest's frames take a detour that sends them back. Input: one byte that says which features the driver refuses, then
//! records of a byte that says what to do, with which queue, and what it takes. Whatever happens, the device neither panics nor is busy without end.

use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kindling_virtio_device::test_utils::{Area, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use kindling_virtio_net::{Backend, DETOUR_HEAD_BYTES, Detour, MAX_FRAME_BYTES, Net};
use libfuzzer_sys::fuzz_target;

/// Features that change what the device does: for a set bit of the input, the driver refuses.
const CHOICES: [u32; 8] = [1, 7, 10, 15, 17, 22, 28, 29];

/// Sends back what it gets, up to a few frames.
#[derive(Default)]
struct Echo(Mutex<VecDeque<Vec<u8>>>);

impl Detour for Echo {
    fn wants(&self, head: &[u8; DETOUR_HEAD_BYTES]) -> bool {
        head[0] & 1 == 0
    }

    fn receive(&self, _: Instant, frame: &[u8]) {
        assert!(frame.len() <= MAX_FRAME_BYTES);
        let mut frames = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.len() < 100 {
            frames.push_back(frame.to_vec());
        }
    }

    fn next_frame(&self, _: Instant, buffer: &mut [u8]) -> Option<usize> {
        let frame = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Some(frame.len())
    }

    fn next_timeout(&self, _: Instant) -> Option<Duration> {
        None
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, mut data)) = data.split_first() else { return };
    let (sockets, hosts): (Vec<_>, Vec<_>) = (0..2).filter_map(|_| UnixDatagram::pair().ok()).unzip();
    sockets.iter().chain(&hosts).for_each(|socket| assert!(socket.set_nonblocking(true).is_ok()));
    let backend = Backend::sockets(sockets.into_iter().map(Into::into).collect());
    let Ok(mut net) = backend.and_then(|backend| Net::new(backend, None, Some(1_400))) else {
        unreachable!()
    };
    net = net.with_detour(Box::<Echo>::default());
    let control = net.control();
    let refused =
        (0..8).filter(|bit| choice >> bit & 1 == 1).fold(0_u64, |mask, bit| mask | 1 << CHOICES[bit]);
    let driver = MockDriver::with_features(&net, (net.features() | COMMON_FEATURES) & !refused);
    let Ok(workers) = net.activate(driver.activation()) else { unreachable!() };
    let Ok(mut inline) = Inline::start(workers) else { unreachable!() };

    for _ in 0..200 {
        let Some(([what, offset, len], rest)) = data.split_first_chunk() else { return };
        let queue = &driver.queues[usize::from(what >> 4) % driver.queues.len()];
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        data = rest;
        let at = u64::from(*offset) * 2;
        match what & 15 {
            0 | 1 => queue.overwrite(Area::Descriptors, at, bytes),
            2 | 3 => queue.overwrite(Area::Available, at, bytes),
            4 => queue.overwrite(Area::Used, at, bytes),
            5 => queue.overwrite(Area::Buffers, at, bytes),
            6 | 7 => {
                // Fails when the socket is full.
                let _ = hosts[usize::from(what >> 4) % 2].send(&[bytes, &[1; 300], bytes].concat());
            }
            8 => while hosts.iter().any(|host| host.recv(&mut [0; 16]).is_ok()) {},
            9 => control.set_link(offset & 1 == 0),
            10 => net.write_config(u64::from(*offset), bytes),
            11 => {
                let Ok(next) = Inline::start(inline.stop()) else { return };
                inline = next;
            }
            _ => queue.kick(),
        }
        match inline.run(1_000) {
            Ok(steps) => assert!(steps < 1_000, "busy with nothing"),
            // The driver broke the protocol.
            Err(_) => {
                inline.stop();
                return;
            }
        }
    }
});
