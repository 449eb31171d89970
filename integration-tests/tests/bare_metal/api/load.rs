//! Many requests: what they cost the process, and the guest meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::{Connection, scaled};

use super::Api;
use super::phases::Heart;
use crate::process::until;

/// All requests of the test.
const REQUESTS: u32 = 100_000;

/// Requests that are on their way at a time on one connection.
const BATCH: u32 = 20;

/// How long the guest may stand still on a machine that others use too.
const LONGEST_GAP: Duration = Duration::from_secs(1);

/// What is asked for in turn, and the answer's status.
const KINDS: [(&str, &str, &str, u16); 8] = [
    ("GET", "/", "", 200),
    ("GET", "/vm/config", "", 200),
    ("PATCH", "/drives/none", r#"{"drive_id": "none", "path_on_host": "/"}"#, 404),
    ("PUT", "/boot-source", r#"{"kernel_image_path": "/"}"#, 400),
    ("GET", "/none", "", 404),
    ("PATCH", "/vm", r#"{"state": "Resumed"}"#, 204),
    ("PUT", "/drives/a", "{", 400),
    ("GET", "/balloon", "", 400),
];

fn batch(connection: &mut Connection) {
    let kinds = || KINDS.iter().cycle().take(BATCH as usize);
    for (method, path, body, _) in kinds() {
        connection.send(method, path, body).unwrap();
    }
    for (method, path, body, status) in kinds() {
        let answer = connection.answer().unwrap();
        assert_eq!(answer.0, *status, "{method} {path} {body}: {}", answer.1);
    }
}

/// Bytes of the process's memory that are resident, but for the guest's.
fn resident(api: &Api) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", api.vmm.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_hundred_thousand_requests_leave_nothing_behind_and_the_guest_alone() {
    let (api, heart) = Heart::start();
    let mut connection = api.connect();
    let mut asked = 0;
    let mut ask = |requests: u32| {
        while requests > asked {
            batch(&mut connection);
            asked += BATCH;
            // From time to time, a new connection.
            if asked % (50 * BATCH) == 0 {
                connection = api.connect();
                api.get("/version");
            }
        }
    };
    let (beats, start) = (heart.beats(&api).len(), Instant::now());
    // Enough for the allocator to have what it wants.
    ask(REQUESTS / 2);
    let (files, memory) = (api.open_files().len(), resident(&api));
    ask(REQUESTS);
    let took = start.elapsed();
    until("old connections are closed", || api.open_files().len() <= files);
    let grown = resident(&api).saturating_sub(memory);
    // Less than three bytes a request: what is left of the allocator's, and not of the requests.
    assert!(grown <= 128 << 10, "{grown} bytes more than the {memory} after half of the requests");

    let beats = &heart.beats(&api)[beats..];
    let longest = beats.iter().map(|beat| beat.gap).max().unwrap();
    println!("{REQUESTS} requests in {took:?}; the guest stood still for {longest:?} at most");
    assert!(longest < scaled(LONGEST_GAP), "the guest stood still for {longest:?}");
    api.terminate();
}

#[test]
fn of_many_connections_at_once_ten_are_served_and_the_others_told_so() {
    let (api, heart) = Heart::start();
    let mut connections: Vec<_> = (0..64).map(|_| api.connect()).collect();
    let statuses: Vec<u16> = connections
        .iter_mut()
        .map(|connection| {
            // One that is refused is answered unasked, and may be closed for what it sends.
            let _ = connection.send("GET", "/", "");
            connection.answer().unwrap().0
        })
        .collect();
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(200), count(503)), (10, 54), "{statuses:?}");
    // The ten go on.
    for (connection, _) in connections.iter_mut().zip(&statuses).filter(|(_, status)| **status == 200) {
        batch(connection);
    }
    drop(connections);
    until("there is room again", || api.client.get("/").is_ok_and(|response| response.status == 200));
    let longest = heart.beats(&api).iter().map(|beat| beat.gap).max().unwrap();
    assert!(longest < scaled(LONGEST_GAP), "the guest stood still for {longest:?}");
    api.terminate();
}
