//! The client, against this crate's server and against servers that say whatever a test wants.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[path = "server/support.rs"]
mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use kindling_api::client::{Client, ClientError, Response};
use kindling_api::server::Limits;
use kindling_api::{Fault, Reply, Status};
use serde_json::{Value, json};
use support::Api;
use tempfile::TempDir;

/// Listens, says `text` to everybody whatever they say, and closes when they have.
fn scripted(text: &'static str) -> (TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(text.as_bytes());
        }
    });
    (folder, Client::new(path))
}

fn cause(result: Result<impl Sized, ClientError>) -> String {
    match result.err().unwrap() {
        ClientError::Transport { source, .. } => source.to_string(),
        error => panic!("{error:?}"),
    }
}

#[test]
fn requests_of_every_kind_reach_the_server() {
    let mut replies = vec![Reply::Empty, Reply::Empty, Reply::Json("{\"a\":[1,\"é\"]}".to_owned())];
    let api = Api::answering(move || Ok(replies.pop().unwrap()));
    let client = Client::new(&api.path);
    let answer = client.get("/mmds").unwrap().success().unwrap();
    assert_eq!((answer.status, answer.json().unwrap()), (200, json!({"a": [1, "é"]})));
    let body = json!({"text": "\u{0}é\"\\\r\n"});
    assert_eq!(client.put("/mmds", &body).unwrap(), Response { status: 204, body: String::new() });
    assert_eq!(client.patch("/mmds", &body).unwrap().status, 204);
    let refused = client.delete("/mmds").unwrap();
    assert_eq!(refused.status, 405);
    assert!(matches!(refused.success(), Err(ClientError::Fault { status: 405, .. })));
}

#[test]
fn a_fault_says_what_the_server_says() {
    let fault = || Fault { status: Status::BadRequest, message: "drive_id: no \"such\" drive".to_owned() };
    let api = Api::answering(move || Err(fault()));
    let error = Client::new(&api.path).get("/version").unwrap().success().unwrap_err();
    assert_eq!(error.to_string(), "drive_id: no \"such\" drive (status 400)");
    let (_folder, client) = scripted("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops");
    let error = client.get("/").unwrap().success().unwrap_err();
    assert_eq!(error.to_string(), "oops (status 502)");
}

#[test]
fn a_server_that_refuses_a_body_is_understood() {
    let api = Api::start(Limits { body: 1000, connections: 10 }, |request| request.answer(Ok(Reply::Empty)));
    let answer = Client::new(&api.path).put("/mmds", &"x".repeat(10 << 20)).unwrap();
    assert_eq!(answer.status, 413);
}

#[test]
fn nobody_at_the_path_is_told_with_the_path() {
    let path = PathBuf::from("/nonexistent/api.socket");
    let error = Client::new(&path).get("/").unwrap_err();
    assert_eq!(error.to_string(), "cannot connect to /nonexistent/api.socket");
}

#[test]
fn a_path_that_would_break_the_request_is_not_sent() {
    let api = Api::counting();
    let client = Client::new(&api.path);
    for path in ["", "version", "/a b", "/a\r\nHost: x", "/é"] {
        assert!(cause(client.get(path)).starts_with("a request's path must begin with /"));
    }
    assert_eq!(api.count("requests"), 0);
}

#[test]
fn silence_is_waited_for_only_so_long() {
    let api = Api::start(Limits::default(), std::mem::forget);
    let client = Client::new(&api.path).with_timeout(Duration::from_millis(100));
    let begin = Instant::now();
    let error = client.get("/version").unwrap_err();
    assert_eq!(error.to_string(), "GET /version got no answer");
    assert!((100..20_000).contains(&begin.elapsed().as_millis()));
    // The same while a body is to come.
    let (_folder, client) = scripted("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
    assert_eq!(cause(client.get("/")), "the answer's body ends early");
}

#[test]
fn bodies_are_read_whatever_tells_their_length() {
    for (answer, body) in [
        ("HTTP/1.1 200 OK\r\n\r\nto the end", "to the end"),
        ("HTTP/1.0 200 OK\r\ncontent-LENGTH:  3 \r\n\r\nabcd", "abc"),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 2\r\n\r\nab", "ab"),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\nnothing", ""),
        (
            "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nContent-Length: 1\n\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: x\r\n\r\nzzz",
            "abc0123456789",
        ),
    ] {
        let (_folder, client) = scripted(answer);
        assert_eq!(client.get("/").unwrap().body, body, "{answer}");
    }
}

#[test]
fn what_is_no_answer_is_an_error() {
    const CLOSED: &str = "the server closed the connection, or its answer's head is too large";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long: &'static str = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(100_000)).leak();
    let chunk = |text: &str| -> &'static str { format!("{chunked}{text}").leak() };
    for (answer, message) in [
        ("", CLOSED),
        ("HTTP/1.1 200 OK\r\nContent-Le", CLOSED),
        (long, CLOSED),
        ("SSH-2.0-OpenSSH\r\n", "the answer has no HTTP status"),
        ("HTTP/1.1 20x OK\r\n\r\n", "the answer has no HTTP status"),
        ("HTTP/1.1 999 OK\r\n\r\n", "the answer has no HTTP status"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "the answer has an invalid Content-Length"),
        ("HTTP/1.1 200 OK\r\nnothing\r\n\r\n", "the answer has a header field without a colon"),
        (chunk("x\r\n"), "the answer has an invalid chunk size"),
        (chunk("10000000000000000\r\n"), "the answer has an invalid chunk size"),
        (chunk("2\r\nabc\r\n"), "the answer has a chunk that is longer than its size"),
        (chunk("5\r\nabc"), "the answer's body ends early"),
        (chunk("3\r\nabc\r\n"), CLOSED),
    ] {
        let (_folder, client) = scripted(answer);
        assert_eq!(cause(client.get("/")), message, "{answer:.60}");
    }
}

#[test]
fn events_are_read_one_by_one_until_the_end() {
    let api = Api::answering(|| Ok(Reply::Events));
    let client = Client::new(&api.path).with_timeout(Duration::from_millis(50));
    let mut events = client.events("/events").unwrap();
    // Longer than the client waits for an answer.
    let sender = api.events.clone();
    let later = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        sender.send(json!({"event": "a", "text": "x".repeat(20_000)}).to_string());
        sender.send(json!({"event": "b"}).to_string());
    });
    assert_eq!(events.next_event().unwrap().unwrap()["event"], "a");
    assert_eq!(events.next_event().unwrap(), Some(json!({"event": "b"})));
    later.join().unwrap();

    // One can wait for an event for a while, and go on after that.
    events.set_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(matches!(events.next_event(), Err(ClientError::Transport { .. })));
    api.events.send(json!({"event": "c"}).to_string());
    assert_eq!(events.next_event().unwrap(), Some(json!({"event": "c"})));
    drop(api.stop());
    assert_eq!(events.next_event().unwrap(), None);
    assert_eq!(events.next_event().unwrap(), None);
}

#[test]
fn an_event_that_comes_in_pieces_is_put_together_although_time_ran_out_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path);
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let text =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"a\"\r\n4;a=b\r\n:1}\n\r\n0\r\n\r\n";
        for byte in text.bytes() {
            stream.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_millis(3));
        }
    });
    let mut events = client.events("/events").unwrap();
    events.set_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut next = || -> Option<Value> {
        loop {
            match events.next_event() {
                Ok(event) => return event,
                Err(ClientError::Transport { source, .. }) => {
                    assert_eq!(source.kind(), std::io::ErrorKind::WouldBlock);
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    assert_eq!(next(), Some(json!({"a": 1})));
    assert_eq!(next(), None);
    server.join().unwrap();
}

#[test]
fn a_refused_stream_of_events_is_a_fault() {
    let api = Api::start(Limits::default(), drop);
    let error = Client::new(&api.path).events("/events").unwrap_err();
    assert!(matches!(error, ClientError::Fault { status: 503, .. }), "{error:?}");
    let (_folder, client) = scripted("HTTP/1.1 200 OK\r\n\r\n{\"a\":1}\nnonsense\n{\"b\":2}");
    let mut events = client.events("/events").unwrap();
    assert_eq!(events.next_event().unwrap(), Some(json!({"a": 1})));
    assert!(matches!(events.next_event(), Err(ClientError::Answer(_))));
    assert_eq!(events.next_event().unwrap(), Some(json!({"b": 2})));
}
