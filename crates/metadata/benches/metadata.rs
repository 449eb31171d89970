//! What the service costs a network device's thread: telling which frames are for it, which every frame of a guest goes
//! through, and whole requests on a connection.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Instant;

use common::{ACK, GUEST, PSH, SYN, endpoint, next, segment, service};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kindling_metadata::{HEAD_BYTES, Version, answer};
use serde_json::json;

fn filter(criterion: &mut Criterion) {
    let endpoint = endpoint(&service(Version::V1, json!({})));
    let mut other = segment((GUEST, 1), 0, 0, SYN, &[]);
    other[30] ^= 1;
    let head = &other[..HEAD_BYTES];
    criterion.bench_function("a frame for somebody else", |bencher| {
        bencher.iter(|| assert!(!endpoint.is_for_us(black_box(head))));
    });
}

fn requests(criterion: &mut Criterion) {
    let document = json!({"small": "x", "large": "0123456789".repeat(5_000)});
    let guarded = service(Version::V2, document.clone());
    let put = b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 21600\r\n\r\n";
    let token = String::from_utf8(answer(&guarded, Instant::now(), put).unwrap().bytes).unwrap();
    let token = token.split_once("\r\n\r\n").unwrap().1;
    let get = format!("GET /small HTTP/1.1\r\nX-metadata-token: {token}\r\n\r\n");
    criterion.bench_function("request as bytes, with a token", |bencher| {
        bencher.iter(|| answer(&guarded, Instant::now(), black_box(get.as_bytes())));
    });

    let service = service(Version::V1, document);
    let mut group = criterion.benchmark_group("request by frames");
    for path in ["/small", "/large"] {
        let endpoint = endpoint(&service);
        let get = format!("GET {path} HTTP/1.1\r\n\r\n");
        let mut seq = 6_u32;
        endpoint.receive(Instant::now(), &segment((GUEST, 1), seq - 1, 0, SYN, &[]));
        let mut ack = next(&endpoint, Instant::now()).unwrap().seq.wrapping_add(1);
        endpoint.receive(Instant::now(), &segment((GUEST, 1), seq, ack, ACK, &[]));
        let mut run = || {
            endpoint.receive(Instant::now(), &segment((GUEST, 1), seq, ack, PSH | ACK, get.as_bytes()));
            seq = seq.wrapping_add(get.len() as u32);
            let mut bytes = 0;
            while let Some(got) = next(&endpoint, Instant::now()) {
                bytes += got.payload.len();
                ack = got.seq.wrapping_add(got.payload.len() as u32);
                endpoint.receive(Instant::now(), &segment((GUEST, 1), seq, ack, ACK, &[]));
            }
            bytes as u64
        };
        group.throughput(Throughput::Bytes(run()));
        group.bench_function(path, |bencher| bencher.iter(&mut run));
    }
}

criterion_group!(benches, filter, requests);
criterion_main!(benches);
