//! What a guest can have written to the monitor's log. A program of its own, since there is one log.

#![allow(clippy::unwrap_used)]

#[allow(dead_code, unused_imports)]
#[path = "mmio/support/mod.rs"]
mod support;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use kindling_virtio_transport::Transport;
use log::{LevelFilter, Log, Metadata, Record};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;

use support::Guest;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn a_guest_gets_one_line_of_each_kind_however_often_it_tries() {
    const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
    log::set_logger(&Lines).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let guest = Guest::new();
    for _ in 0..3 {
        // A queue is missing.
        guest.negotiate();
        guest.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
        guest.wait_status(0xf | NEEDS_RESET);
        guest.set(VIRTIO_MMIO_STATUS, 0);
        // A ring is broken.
        let [ring, _] = guest.probe();
        ring.set_available(100);
        guest.set(VIRTIO_MMIO_QUEUE_NOTIFY, ring.index);
        guest.wait_status(0xf | NEEDS_RESET);
        guest.set(VIRTIO_MMIO_STATUS, 0);
        // The back end hangs.
        guest.probe();
        guest.log.set_hanging(true);
        guest.transport.sleep(Instant::now() + Duration::from_millis(10)).unwrap_err();
        guest.log.set_hanging(false);
        guest.wait_status(0xf);
        guest.set(VIRTIO_MMIO_STATUS, 0);
    }
    assert_eq!((guest.count("protocol_errors"), guest.count("hangs")), (6, 3));
    let mut lines = LINES.lock().unwrap().clone();
    lines.sort();
    let expected = ["the driver broke the protocol", "is broken", "queue 0 is not enabled"];
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    for (line, part) in lines.iter().zip(expected) {
        assert!(line.contains(part), "{lines:?}");
    }
}
