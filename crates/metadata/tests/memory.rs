//! What an endpoint costs in memory, whatever a guest does. In a process of its own, whose allocator counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::{ACK, GUEST, PSH, SYN, endpoint, next, segment, service};
use kindling_metadata::Version;
use serde_json::json;

thread_local! {
    /// What the thread has allocated, less what it has freed: nothing that the program around the test does meanwhile.
    static NOW: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all is left to the system's allocator. The counter is neither allocated nor ever destroyed.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NOW.set(NOW.get() + layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.set(NOW.get() - layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn memory_is_bounded_and_given_back() {
    let service = service(Version::V1, json!({"a": {"b": {"c": "x".repeat(50_000)}}}));
    let before = NOW.get();
    let used = || NOW.get() - before;
    let endpoint = endpoint(&service);
    let mut now = Instant::now();
    assert!(used() < 4 << 10, "an idle endpoint has {} bytes", used());

    // Nobody takes a frame while connections are asked for, and segments of none come.
    for number in 0..20_000_u32 {
        let from = (Ipv4Addr::from(0x0a00_0000 + number), 99);
        endpoint.receive(now, &segment(from, 5, 0, SYN, &[]));
        endpoint.receive(now, &segment(from, 5, 5, ACK, &[0; 60_000][..number as usize * 3]));
    }
    assert!(used() < 480 << 10, "half-open connections have {} bytes", used());
    while next(&endpoint, now).is_some() {}
    now += Duration::from_secs(6);
    while next(&endpoint, now).is_some() {}
    assert!(used() < 12 << 10, "after a flood there are {} bytes", used());

    // All connections there can be have nearly a whole request, one behind another, and read nothing.
    let peers: Vec<_> = (1..=64)
        .map(|port| {
            endpoint.receive(now, &segment((GUEST, port), 5, 0, SYN, &[]));
            let ack = next(&endpoint, now).unwrap().seq.wrapping_add(1);
            endpoint.receive(now, &segment((GUEST, port), 6, ack, ACK, &[]));
            (port, ack)
        })
        .collect();
    for (port, ack) in peers {
        let path = ["/", "/a", "/a/b", "/a/b/c"][usize::from(port) % 4];
        let get = format!("GET {path} HTTP/1.1\r\nAccept: application/json\r\n\r\n");
        let long = format!("{get}GET /{}", "x".repeat(4_000));
        let mut sent = 0;
        for _ in 0..4 {
            let seq = 6 + sent as u32;
            endpoint.receive(now, &segment((GUEST, port), seq, ack, PSH | ACK, &long.as_bytes()[sent..]));
            while let Some(got) = next(&endpoint, now) {
                sent = sent.max(got.ack as usize - 6);
            }
        }
    }
    assert!(used() < 900 << 10, "64 connections have {} bytes", used());
    now += Duration::from_secs(31);
    while next(&endpoint, now).is_some() {}
    assert!(used() < 12 << 10, "after all are gone there are {} bytes", used());
    assert_eq!(endpoint.next_timeout(now), None);
}
