//! Requests and answers as bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::{metric, service};
use kindling_metadata::{MAX_REQUEST_BYTES, Service, Version, answer};
use serde_json::json;

fn document() -> serde_json::Value {
    json!({"latest": {"meta-data": {"id": "i-1", "n": 5}}})
}

fn ask(service: &Service, request: &str) -> (u16, String, String, bool) {
    let answer = answer(service, Instant::now(), request.as_bytes()).expect("a whole request");
    let text = String::from_utf8(answer.bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned(), answer.close)
}

fn status(service: &Service, request: &str) -> u16 {
    ask(service, request).0
}

#[test]
fn an_answer_is_complete_in_itself() {
    let service = service(Version::V1, document());
    let request = b"GET /latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\nGET";
    let answer = answer(&service, Instant::now(), request).unwrap();
    assert_eq!(answer.consumed, request.len() - 3);
    assert!(!answer.close);
    let text = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\nConnection: keep-alive\r\n\r\nid\nn";
    assert_eq!(String::from_utf8(answer.bytes).unwrap(), text);
}

#[test]
fn more_is_waited_for_until_the_head_is_whole() {
    let service = service(Version::V1, document());
    let request = b"GET /latest HTTP/1.1\r\nHost: x\r\n\r\n";
    for len in 0..request.len() {
        assert_eq!(answer(&service, Instant::now(), &request[..len]), None, "{len} bytes");
    }
    assert!(answer(&service, Instant::now(), request).is_some());
}

#[test]
fn the_accept_header_chooses_the_format() {
    let service = service(Version::V1, document());
    for (accept, is_json) in [
        ("application/json", true),
        ("Application/JSON; charset=utf-8", true),
        ("text/html, application/json;q=0.9, text/plain", true),
        ("text/plain, application/json", false),
        ("plain/text", false),
        ("*/*", false),
        ("", false),
        ("application/jsonx", false),
    ] {
        let request = format!("GET /latest/meta-data/id HTTP/1.1\r\nAccept: {accept}\r\n\r\n");
        let (status, head, body, _) = ask(&service, &request);
        let (expected, media_type) =
            if is_json { ("\"i-1\"", "application/json") } else { ("i-1", "text/plain") };
        assert_eq!((status, body.as_str()), (200, expected), "{accept}");
        assert!(head.contains(&format!("\r\nContent-Type: {media_type}\r\n")), "{head}");
    }
}

#[test]
fn with_imds_compat_everything_is_text() {
    let service = service(Version::V1, document());
    service.configure(Version::V1, true);
    let (status, head, body, _) =
        ask(&service, "GET /latest/meta-data HTTP/1.1\r\nAccept: application/json\r\n\r\n");
    assert_eq!((status, body.as_str()), (200, "id\nn"));
    assert!(head.contains("text/plain"), "{head}");
}

#[test]
fn what_is_not_there_or_has_no_text_says_so() {
    let service = service(Version::V1, document());
    assert_eq!(status(&service, "GET /latest/user-data HTTP/1.1\r\n\r\n"), 404);
    assert_eq!(status(&service, "GET /latest/meta-data/n HTTP/1.1\r\n\r\n"), 501);
    let json = "GET /latest/meta-data/n HTTP/1.1\r\nAccept: application/json\r\n\r\n";
    assert_eq!(ask(&service, json).2, "5");
}

#[test]
fn targets_may_name_the_host() {
    let service = service(Version::V1, document());
    for target in [
        "/latest/meta-data/id",
        "http://169.254.169.254/latest/meta-data/id",
        "HTTP://x//latest/meta-data/id/",
    ] {
        assert_eq!(ask(&service, &format!("GET {target} HTTP/1.1\r\n\r\n")).2, "i-1", "{target}");
    }
    for target in ["latest", "*", "http://", "http://169.254.169.254", "https://x/latest"] {
        assert_eq!(status(&service, &format!("GET {target} HTTP/1.1\r\n\r\n")), 400, "{target}");
    }
}

#[test]
fn other_methods_are_told_which_there_are() {
    let service = service(Version::V2, document());
    for method in ["POST", "DELETE", "PATCH", "OPTIONS", "get", "HEAD"] {
        let (status, head, body, close) = ask(&service, &format!("{method} /latest HTTP/1.1\r\n\r\n"));
        assert_eq!(status, 405, "{method}");
        assert!(head.contains("\r\nAllow: GET, PUT"), "{head}");
        assert_eq!(body.is_empty(), method == "HEAD", "{method}");
        assert!(!close);
    }
    let with_body = "POST /latest HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello";
    assert!(matches!(ask(&service, with_body), (405, _, _, true)));
}

#[test]
fn a_body_is_refused_and_ends_the_connection() {
    let service = service(Version::V1, document());
    for field in
        ["Content-Length: 5", "content-length: 00", "Transfer-Encoding: chunked", "Content-Length: x"]
    {
        for method in ["GET", "PUT"] {
            let request = format!("{method} /latest HTTP/1.1\r\n{field}\r\n\r\n");
            assert!(matches!(ask(&service, &request), (400, _, _, true)), "{request}");
        }
    }
    assert_eq!(status(&service, "GET /latest HTTP/1.1\r\nContent-Length: 0\r\n\r\n"), 200);
}

#[test]
fn connections_are_kept_as_version_and_header_say() {
    let service = service(Version::V1, document());
    for (version, field, close) in [
        ("1.1", "", false),
        ("1.1", "Connection: close\r\n", true),
        ("1.1", "Connection: Upgrade, CLOSE\r\n", true),
        ("1.0", "", true),
        ("1.0", "Connection: keep-alive\r\n", false),
        ("1.0", "Connection: close\r\nConnection: keep-alive\r\n", false),
    ] {
        let (_, head, _, closed) = ask(&service, &format!("GET / HTTP/{version}\r\n{field}\r\n"));
        assert_eq!(closed, close, "{version} {field}");
        assert!(head.starts_with(&format!("HTTP/{version} 200 OK\r\n")), "{head}");
        assert_eq!(head.contains("Connection: close"), close);
    }
}

#[test]
fn a_token_says_how_long_it_lasts_by_the_header_that_it_was_asked_by() {
    for version in [Version::V1, Version::V2] {
        let service = service(version, document());
        for header in ["x-metadata-token-ttl-seconds", "X-AWS-EC2-metadata-token-ttl-seconds"] {
            let request = format!("PUT /latest//api/token/ HTTP/1.1\r\n{header}: 21600\r\n\r\n");
            let (status, head, token, _) = ask(&service, &request);
            assert_eq!((status, token.len()), (200, 64));
            let field = format!("\r\n{}: 21600", header.to_lowercase());
            assert!(head.contains(&field), "{head}");
            assert!(head.contains("Content-Type: text/plain"), "{head}");
            let get = format!("GET /latest/meta-data/id HTTP/1.1\r\nx-METADATA-token: {token}\r\n\r\n");
            assert_eq!(ask(&service, &get).2, "i-1");
        }
        assert_eq!((metric(&service, "tokens_invalid"), metric(&service, "tokens_missing")), (0, 0));
    }
}

#[test]
fn no_token_is_given_for_less_than_a_proper_request() {
    let service = service(Version::V2, document());
    let put = |path: &str, field: &str| status(&service, &format!("PUT {path} HTTP/1.1\r\n{field}\r\n"));
    let ttl = "X-metadata-token-ttl-seconds: 60\r\n";
    assert_eq!(put("/latest/api/token", ""), 400);
    assert_eq!(put("/latest/api/token", &format!("{ttl}X-Forwarded-For: 1.2.3.4\r\n")), 400);
    assert_eq!(put("/latest/api/toke", ttl), 404);
    assert_eq!(put("/", ttl), 404);
    assert_eq!(put("/latest/api/token/x", ttl), 404);
    for seconds in ["0", "21601", "-1", "", "1.5", "99999999999999999999", "6 0", "sixty"] {
        let field = format!("X-metadata-token-ttl-seconds: {seconds}\r\n");
        assert_eq!(put("/latest/api/token", &field), 400, "{seconds:?}");
    }
    assert_eq!(put("/latest/api/token", ttl), 200);
    assert_eq!(metric(&service, "tokens_issued"), 1);
}

#[test]
fn version_2_tells_nothing_without_a_valid_token() {
    let service = service(Version::V2, document());
    let ended = {
        let put = b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 1\r\n\r\n";
        let answer = answer(&service, Instant::now() - Duration::from_secs(2), put).unwrap();
        String::from_utf8(answer.bytes).unwrap().split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    for path in ["/latest/meta-data/id", "/missing"] {
        for field in
            ["", "X-metadata-token: \r\n", "X-metadata-token: foo\r\n", "X-metadata-token: \u{e4}\r\n"]
        {
            assert_eq!(status(&service, &format!("GET {path} HTTP/1.1\r\n{field}\r\n")), 401, "{field}");
        }
    }
    std::thread::sleep(Duration::from_millis(1_100));
    let get = format!("GET /latest/meta-data/id HTTP/1.1\r\nX-metadata-token: {ended}\r\n\r\n");
    assert_eq!(status(&service, &get), 401);
}

#[test]
fn version_1_reads_with_any_token_and_counts_them() {
    let service = service(Version::V1, document());
    assert_eq!(status(&service, "GET /latest HTTP/1.1\r\n\r\n"), 200);
    assert_eq!(status(&service, "GET /latest HTTP/1.1\r\nX-metadata-token: foo\r\n\r\n"), 200);
    assert_eq!((metric(&service, "tokens_missing"), metric(&service, "tokens_invalid")), (1, 1));
}

#[test]
fn requests_too_long_are_refused_before_they_are_whole() {
    let service = service(Version::V1, document());
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_REQUEST_BYTES));
    assert!(answer(&service, Instant::now(), &long.as_bytes()[..MAX_REQUEST_BYTES - 1]).is_none());
    assert!(matches!(ask(&service, &long[..MAX_REQUEST_BYTES]), (431, _, _, true)));
    let exact = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_REQUEST_BYTES - 18));
    assert_eq!((exact.len(), status(&service, &exact)), (MAX_REQUEST_BYTES, 404));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    assert!(matches!(ask(&service, &many), (431, _, _, true)));
    assert_eq!(metric(&service, "requests_malformed"), 2);
}

#[test]
fn what_is_no_http_is_refused() {
    let service = service(Version::V1, document());
    for request in [
        "\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nname : x\r\n\r\n",
        "GET / HTTP/1.1\r\na: b\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\na: b\0\r\n\r\n",
        "GE(T / HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01\u{7f}\x03\x03",
    ] {
        assert!(matches!(ask(&service, request), (400, _, _, true)), "{request:?}");
    }
}
