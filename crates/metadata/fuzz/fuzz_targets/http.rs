#![no_main]
//! A guest sends any bytes. The first byte of the input chooses version and format, the second where the rest is cut in two, as
//! segments may cut it. Checked: each answer deals with something, is whole, and is the same however the bytes came.

use std::time::Instant;

use kindling_metadata::{DEFAULT_LIMIT, MAX_REQUEST_BYTES, Service, Version, answer};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fn check(bytes: &[u8]) -> &[u8] {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let Some((head, body)) = end.and_then(|end| bytes.split_at_checked(end + 4)) else {
        unreachable!("no head")
    };
    let Ok(head) = std::str::from_utf8(head) else { unreachable!("no text") };
    assert!(head.starts_with("HTTP/1."));
    let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
    assert!(len == Some(body.len()) || body.is_empty() && head.contains(" 405 "), "{head}");
    // Version, and status.
    &bytes[..12]
}

fuzz_target!(|data: &[u8]| {
    let Some(([choice, cut], data)) = data.split_first_chunk() else { return };
    let Ok(service) = Service::new(DEFAULT_LIMIT) else { unreachable!() };
    let document =
        json!({"latest": {"meta-data": {"id": "i-1", "n": 5, "list": ["a", {"b": null}]}}, "": "x"});
    assert!(service.put(document).is_ok());
    service.configure(if choice & 1 == 0 { Version::V1 } else { Version::V2 }, choice & 2 != 0);
    let now = Instant::now();

    let mut rest = data;
    for _ in 0..64 {
        let whole = answer(&service, now, rest);
        let first = rest.get(..usize::from(*cut) * 16).unwrap_or(rest);
        if let Some(early) = answer(&service, now, first) {
            let Some(whole) = &whole else { unreachable!("an answer to less") };
            assert_eq!(check(&early.bytes), check(&whole.bytes));
            assert_eq!(early.close, whole.close);
        }
        let Some(whole) = whole else {
            assert!(rest.len() < MAX_REQUEST_BYTES);
            return;
        };
        check(&whole.bytes);
        assert!(whole.consumed > 0 && whole.consumed <= rest.len());
        rest = &rest[whole.consumed..];
        if whole.close {
            return;
        }
    }
});
