//! The end of the process: by a signal in every phase, by the guest while clients wait, and what it leaves behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::{Connection, scaled};
use serde_json::json;

use super::Api;
use crate::process::LIMIT;

/// Starts clients that ask for one thing after the other until there is nobody to answer, and runs `act` when each has had
/// an answer.
fn while_asked(connections: [Connection; 4], act: impl FnOnce()) {
    let acted = AtomicBool::new(false);
    let (answered, answers) = mpsc::channel();
    std::thread::scope(|scope| {
        for mut connection in connections {
            let (acted, answered) = (&acted, answered.clone());
            scope.spawn(move || {
                let mut ask = || {
                    let (status, _) = connection.request("GET", "/vm/config", "")?;
                    assert!(matches!(status, 200 | 503), "{status}");
                    std::io::Result::Ok(())
                };
                ask().unwrap();
                answered.send(()).unwrap();
                // The end is a connection that closes, between answers or in place of one.
                while ask().is_ok() {}
                assert!(acted.load(Ordering::SeqCst), "the connection closed before the end");
            });
        }
        let all_answered = (0..4).all(|_| answers.recv_timeout(scaled(LIMIT)).is_ok());
        acted.store(true, Ordering::SeqCst);
        act();
        // Not before: the clients would ask for ever.
        assert!(all_answered, "a client had no answer");
    });
}

#[test]
fn sigterm_ends_the_process_in_every_phase_and_leaves_the_sockets() {
    for phase in ["Not started", "Running", "Paused"] {
        let mut api = Api::new(&[]);
        api.boot("spin");
        api.done(
            "PUT",
            "/drives/a",
            &json!({"drive_id": "a", "is_root_device": false, "path_on_host": api.disk("a")}),
        );
        api.done("PUT", "/balloon", &json!({"amount_mib": 0, "deflate_on_oom": false}));
        if phase != "Not started" {
            api.action("InstanceStart");
            api.vmm.wait_for("spinning");
        }
        if phase == "Paused" {
            api.make("Paused");
        }
        assert_eq!(api.state(), phase);
        let started = Instant::now();
        api.vmm.signal(libc::SIGTERM);
        let Api { vmm, folder, .. } = api;
        vmm.end(143);
        assert!(started.elapsed() < scaled(Duration::from_secs(5)), "{phase}: {:?}", started.elapsed());
        assert!(folder.path().join("api").exists(), "{phase}: clients remove it");
    }
}

#[test]
fn a_guest_that_powers_off_ends_the_process_though_clients_ask() {
    let mut api = Api::running("echo", "ready");
    let mut events = api.client.events("/events").unwrap();
    while_asked([(); 4].map(|()| api.connect()), || api.vmm.write("q\n"));
    let event = events.next_event().unwrap().unwrap();
    assert_eq!((&event["event"], &event["exit_code"]), (&json!("ended"), &json!(0)));
    assert_eq!(events.next_event().unwrap(), None);
    api.vmm.end(0);
}

#[test]
fn sigterm_ends_the_process_though_clients_ask() {
    let api = Api::running("spin", "spinning");
    let id = api.vmm.id().cast_signed();
    // SAFETY: kill takes numbers; the process is a child that nobody has waited for.
    while_asked([(); 4].map(|()| api.connect()), || assert_eq!(unsafe { libc::kill(id, libc::SIGTERM) }, 0));
    api.vmm.end(143);
}

#[test]
fn events_tell_of_each_state_and_of_the_end() {
    let mut api = Api::new(&[]);
    api.boot("echo");
    let mut events = api.client.events("/events").unwrap();
    api.action("InstanceStart");
    api.vmm.wait_for("ready\n");
    // What is so already is no event.
    ["Resumed", "Paused", "Paused", "Resumed", "Resumed"].iter().for_each(|state| api.make(state));
    api.vmm.write("q\n");
    let mut told = Vec::new();
    while let Some(event) = events.next_event().unwrap() {
        assert!(event["timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000, "{event}");
        told.push(match event["event"].as_str().unwrap() {
            "state" => event["state"].as_str().unwrap().to_owned(),
            other => format!("{other} {}: {}", event["exit_code"], event["reason"].as_str().unwrap()),
        });
    }
    assert_eq!(told, ["Running", "Paused", "Running", "ended 0: the guest powered off"]);
    api.vmm.end(0);
}
