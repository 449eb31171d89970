//! What a request costs, from its first byte on the socket through the server's thread and a loop that answers at once, to
//! the last byte of its answer.

#![allow(clippy::expect_used)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_api::Reply;
use kindling_api::server::{Limits, Requests, Server};

const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// Answers everything until the benchmark's process ends.
fn serve(requests: &mut Requests) {
    loop {
        let mut poll = libc::pollfd { fd: requests.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives across the call.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        while let Some(request) = requests.take() {
            request.answer(Ok(Reply::Empty));
        }
    }
}

fn put(len: usize) -> Vec<u8> {
    let text = "x".repeat(len.saturating_sub(8));
    format!("PUT /mmds HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{{\"a\":\"{text}\"}}").into_bytes()
}

/// Sends `request` and reads `count` answers.
fn ask(stream: &mut UnixStream, request: &[u8], count: usize) {
    stream.write_all(request).expect("a request");
    let mut answers = vec![0; ANSWER.len() * count];
    stream.read_exact(&mut answers).expect("answers");
    assert!(answers.starts_with(ANSWER));
}

fn connect(path: &Path) -> UnixStream {
    UnixStream::connect(path).expect("a connection")
}

fn requests(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let server = Server::bind(&path, Limits::default()).expect("a socket");
    let (mut requests, _events) = server.start(|| Ok(())).expect("a server");
    thread::spawn(move || serve(&mut requests));

    let mut group = criterion.benchmark_group("request");
    let get = b"GET /version HTTP/1.1\r\n\r\n";
    let mut open = connect(&path);
    group.bench_function("GET", |bencher| bencher.iter(|| ask(&mut open, get, 1)));
    group.bench_function("GET on a connection of its own", |bencher| {
        bencher.iter(|| ask(&mut connect(&path), get, 1));
    });
    for len in [100, 50_000] {
        let request = put(len);
        group.bench_function(format!("PUT of {len} bytes"), |bencher| {
            bencher.iter(|| ask(&mut open, &request, 1));
        });
    }
    group.throughput(Throughput::Elements(16));
    let pipelined = get.repeat(16);
    group.bench_function("16 GETs pipelined", |bencher| bencher.iter(|| ask(&mut open, &pipelined, 16)));
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
