//! Log and metrics: to files, and to FIFOs that nobody reads.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kindling_integration_tests::harness::scaled;
use serde_json::{Value, json};

use super::{Api, boot_source};
use crate::process::{LIMIT, until};

/// A FIFO that is full. What is returned keeps it so.
fn full_fifo(path: &Path) -> File {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let mut fifo =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    for size in [4096, 1] {
        let error = loop {
            if let Err(error) = fifo.write_all(&vec![b'x'; size]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    fifo
}

#[test]
fn a_full_fifo_loses_log_and_metrics_lines_counts_them_and_holds_nobody_up() {
    let mut api = Api::new(&["--boot-timer"]);
    let (log, metrics) = (api.path("log"), api.path("metrics"));
    let fifos = [full_fifo(&log), full_fifo(&metrics)];
    api.done("PUT", "/logger", &json!({"log_path": log, "level": "Info"}));
    api.done("PUT", "/metrics", &json!({"metrics_path": metrics}));
    api.boot("heartbeat ticks=100000000");
    api.action("InstanceStart");
    api.vmm.wait_for("beat 3 ");
    until("a log line is lost", || api.metric("kindling_logger_lost_lines_total") > 0);

    let start = Instant::now();
    for lost in 1..=3 {
        let message = api.refused("PUT", "/actions", &json!({"action_type": "FlushMetrics"}));
        assert!(message.contains("metrics"), "{message}");
        assert_eq!(api.metric("kindling_metrics_lost_lines_total"), lost);
    }
    for _ in 0..10 {
        api.make("Paused");
        api.make("Resumed");
    }
    assert_eq!(api.metric("kindling_logger_lines_total"), 0);
    assert!(start.elapsed() < scaled(LIMIT) / 4, "{:?}", start.elapsed());
    let beats = api.vmm.output().lines().count();
    until("the guest goes on", || api.vmm.output().lines().count() > beats + 1);
    api.terminate();
    for mut fifo in fifos {
        // Nothing but what the test has put in, and no half of a line.
        let mut bytes = Vec::new();
        let end = fifo.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::WouldBlock);
        assert!(
            !bytes.is_empty() && bytes.iter().all(|byte| *byte == b'x'),
            "{:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[test]
fn metrics_are_a_line_of_json_when_asked_for_and_at_the_end() {
    let api = Api::new(&["--id", "m"]);
    let path = api.path("metrics");
    api.done("PUT", "/metrics", &json!({"metrics_path": path, "emit_id": true, "properties": {"rack": "7"}}));
    api.done("PUT", "/boot-source", &boot_source("spin"));
    api.done(
        "PUT",
        "/drives/a",
        &json!({"drive_id": "a", "is_root_device": false, "path_on_host": api.disk("a")}),
    );
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(lines().len(), 0);
    api.action("InstanceStart");
    api.action("FlushMetrics");
    assert_eq!(lines().len(), 1);
    api.refused("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    api.action("FlushMetrics");
    let Api { mut vmm, folder, .. } = api;
    vmm.signal(libc::SIGTERM);
    vmm.end(143);
    let lines = lines();
    assert_eq!(lines.len(), 3, "one more at the end");
    for line in &lines {
        assert_eq!((&line["id"], &line["properties"]["rack"]), (&json!("m"), &json!("7")), "{line}");
        assert!(line["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000);
        assert!(line["process"]["startup_us"].as_u64().unwrap() > 0);
        assert!(line["block_a"].is_object(), "{line}");
    }
    assert_eq!(lines[0]["api_action_Start"]["done"], 1);
    assert_eq!(lines[0]["api_action_Configure"]["done"], 3);
    let start = &lines[1]["api_action_Start"];
    assert_eq!((&start["done"], &start["refused"]), (&json!(1), &json!(1)));
    assert_eq!(lines[2]["api_action_FlushMetrics"]["done"], 2);
    drop(folder);
}

#[test]
fn the_log_can_be_moved_before_the_guest_starts_and_names_the_machine() {
    let mut api = Api::new(&["--boot-timer", "--id", "m"]);
    let (first, second) = (api.path("first"), api.path("second"));
    api.done("PUT", "/logger", &json!({"log_path": first, "show_level": true}));
    api.done("PUT", "/logger", &json!({"log_path": second}));
    api.boot("heartbeat ticks=100000000");
    api.action("InstanceStart");
    api.vmm.wait_for("beat 2 ");
    until("a line is there", || fs::read_to_string(&second).unwrap().contains("Guest-boot-time"));
    let line = fs::read_to_string(&second).unwrap();
    assert!(line.contains(" vmm m INFO: Guest-boot-time = "), "{line}");
    assert_eq!(fs::read_to_string(&first).unwrap(), "");
    api.terminate();
}
