//! That nothing clients do makes the server keep descriptors or memory, or busy. Measures the whole process, so that one test
//! runs at a time. Needs no privileges.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[path = "server/support.rs"]
mod support;

use std::fs;
use std::io::Write;
use std::mem;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use kindling_api::Reply;
use kindling_api::server::{Limits, Server};
use support::{Api, Connection, GET, eventually, put};

fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Descriptors that this process has open.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Asserts that this process has no more descriptors and hardly more memory than before.
#[track_caller]
fn assert_no_more_than(before: (usize, u64)) {
    eventually("descriptors are closed", || descriptors() <= before.0);
    let after = resident();
    assert!(after <= before.1 + 512, "{} KiB resident, then {after}", before.1);
}

/// Processor time of all threads of this process.
fn processor_time() -> Duration {
    // SAFETY: all zeroes are a valid value, and the call writes one that lives across it.
    let usage = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Sets how many descriptors this process may have, and returns the old number.
fn limit_descriptors(count: u64) -> u64 {
    // SAFETY: both calls are given a value that lives across them.
    unsafe {
        let mut limit: libc::rlimit = mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let old = mem::replace(&mut limit.rlim_cur, count);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        old
    }
}

/// Waits until as many clients are served as there may be.
fn wait_for_all_places(api: &Api) {
    eventually("all places are free", || {
        let mut clients: Vec<Connection> = (0..10).map(|_| api.connect()).collect();
        clients.iter_mut().all(|client| client.ask(GET).status < 300)
    });
}

#[test]
fn clients_that_leave_at_any_moment_leave_nothing_behind() {
    let _alone = alone();
    let api = Api::answering(|| Ok(Reply::Empty));
    wait_for_all_places(&api);
    let before = descriptors();
    let requests = [
        format!("PUT /mmds HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n{}", "x".repeat(20)),
        "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_owned(),
        format!("{GET}{GET}nonsense\r\n\r\n"),
        "PUT /mmds HTTP/1.1\r\nContent-Length: 60000\r\n\r\n{\"a".to_owned(),
    ];
    for request in requests {
        for end in 0..=request.len() {
            let mut client = api.connect();
            // Fails when the server has closed it already.
            let _ = client.stream.write_all(&request.as_bytes()[..end]);
            if end % 3 == 0 {
                client.finish();
            }
        }
    }
    eventually("descriptors are closed", || descriptors() <= before);
    wait_for_all_places(&api);
}

#[test]
fn a_hundred_thousand_requests_leave_no_descriptor_and_no_memory_behind() {
    const CLIENTS: usize = 8;
    const TURNS: usize = 25;
    const BATCH: usize = 500;
    let _alone = alone();
    let api = Api::answering(|| Ok(Reply::Json("{}".to_owned())));
    let round = |turns: usize| {
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    for turn in 0..turns {
                        // Some at a time and some one by one, some without and some with a large body.
                        let mut client = api.connect();
                        for _ in 0..BATCH / 50 {
                            client.send(GET.repeat(40));
                            (0..40).for_each(|_| assert_eq!(client.answer().status, 200));
                            let request = if turn % 5 == 0 { put(20_000) } else { GET.to_owned() };
                            (0..10).for_each(|_| assert_eq!(client.ask(&request).status, 200));
                        }
                    }
                });
            }
        });
        wait_for_all_places(&api);
    };
    round(5);
    let before = (descriptors(), resident());
    round(TURNS);
    assert!(api.count("requests") >= ((TURNS + 5) * CLIENTS * BATCH) as u64);
    assert_no_more_than(before);
}

#[test]
fn all_kinds_of_refusals_leave_no_descriptor_and_no_memory_behind() {
    let _alone = alone();
    let api = Api::answering(|| Ok(Reply::Empty));
    let round = |turns: usize| {
        for _ in 0..turns {
            for request in [
                "\0".repeat(1000),
                format!("GET /{}", "a".repeat(40_000)),
                format!("PUT /mmds HTTP/1.1\r\nContent-Length: 51200\r\n\r\n{}", "b".repeat(50_000)),
                format!("PUT /mmds HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{}", "c".repeat(90_000)),
                format!(
                    "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}",
                    "1\r\n \r\n".repeat(9_000)
                ),
                "HEAD / HTTP/1.1\r\n\r\n".repeat(100),
            ] {
                let mut clients: Vec<_> = (0..20).map(|_| api.connect()).collect();
                for client in &mut clients {
                    // Fails when the server has closed it already.
                    let _ = client.stream.write_all(request.as_bytes());
                }
            }
        }
        wait_for_all_places(&api);
    };
    round(3);
    let before = (descriptors(), resident());
    round(30);
    assert_no_more_than(before);
}

#[test]
fn servers_come_and_go_without_a_trace() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let before = descriptors();
    for turn in 0..100 {
        let server = Server::bind(&path, Limits::default()).unwrap();
        let clients: Vec<_> = (0..turn % 5).map(|_| Connection::new(&path)).collect();
        drop(server.start(|| Ok(())).unwrap());
        drop(clients);
    }
    let refused = Server::bind(&path, Limits::default()).unwrap().start(|| Err(std::io::Error::other("no")));
    assert!(refused.is_err());
    assert_eq!(descriptors(), before);
    assert_eq!(
        fs::read_dir("/proc/self/task").unwrap().flatten().filter(|task| is_api(&task.path())).count(),
        0
    );
}

/// Whether a thread is a server's.
fn is_api(task: &std::path::Path) -> bool {
    fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "api")
}

#[test]
fn without_a_descriptor_for_a_client_the_server_waits_and_does_not_spin() {
    let _alone = alone();
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut served = api.connect();
    assert_eq!(served.ask(GET).status, 204);
    // All below the next descriptor are in use: let there be one more, and the late client take it.
    let next = fs::File::open("/dev/null").unwrap();
    let old = limit_descriptors(u64::try_from(next.as_raw_fd()).unwrap() + 1);
    drop(next);
    let mut late = api.connect();
    late.send(GET);

    eventually("the server has tried", || api.count("accept_failures") > 0);
    let (failures, time) = (api.count("accept_failures"), processor_time());
    thread::sleep(Duration::from_secs(1));
    let (failures, time) = (api.count("accept_failures") - failures, processor_time() - time);
    // Whoever has a connection notices nothing.
    assert_eq!(served.ask(GET).status, 204);
    assert!(!late.is_readable(Duration::ZERO));
    limit_descriptors(old);
    assert!((5..=11).contains(&failures), "{failures} tries in a second");
    assert!(time < Duration::from_millis(100), "{time:?} of processor time in a second");
    assert_eq!(late.answer().status, 204);
}
