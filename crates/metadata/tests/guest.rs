//! A guest with a TCP/IP stack of its own reads metadata.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Guest, metric};
use kindling_metadata::Version;
use serde_json::json;
use smoltcp::socket::tcp::State;

const GET_ID: &str = "GET /latest/meta-data/ami-id HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";
const PUT_TOKEN: &str = "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";

fn document() -> serde_json::Value {
    json!({"latest": {"meta-data": {"ami-id": "ami-12345678", "network": {"mac": "02:29"}}}})
}

/// A document of nearly as many bytes as there can be, and itself as JSON.
fn large() -> (serde_json::Value, String) {
    let lines: Vec<String> = (0..1_000).map(|line| format!("{line:045}")).collect();
    let document = json!({"user-data": lines.join("\n")});
    let text = document.to_string();
    assert!((46_000..=51_200).contains(&text.len()), "{}", text.len());
    (document, text)
}

#[test]
fn a_guest_finds_the_service_by_arp_and_reads_without_a_token_by_version_1() {
    let mut guest = Guest::new(Version::V1, document());
    assert_eq!(guest.ask(GET_ID), (200, "ami-12345678".to_owned()));
    assert_eq!(guest.ask("GET / HTTP/1.0\r\n\r\n"), (200, "latest/".to_owned()));
    assert_eq!(metric(&guest.service, "connections"), 2);
    assert_eq!(metric(&guest.service, "requests"), 2);
    guest.wait(Duration::from_secs(1));
    assert_eq!(guest.endpoint.next_timeout(guest.now), None, "nothing is left of the connections");
}

#[test]
fn version_2_wants_a_token_until_it_ends() {
    let mut guest = Guest::new(Version::V2, document());
    assert_eq!(guest.ask(GET_ID).0, 401);
    let (status, token) = guest.ask(PUT_TOKEN);
    assert_eq!(status, 200);
    for header in ["X-metadata-token", "X-aws-ec2-metadata-token"] {
        let get = format!("GET /latest/meta-data/ami-id HTTP/1.1\r\n{header}: {token}\r\n\r\n");
        assert_eq!(guest.ask(&get), (200, "ami-12345678".to_owned()));
    }
    let get = format!("GET /latest/meta-data/ami-id HTTP/1.1\r\nX-metadata-token: {token}\r\n\r\n");
    guest.wait(Duration::from_secs(58));
    assert_eq!(guest.ask(&get).0, 200);
    guest.wait(Duration::from_secs(3));
    assert_eq!(guest.ask(&get).0, 401);
    assert_eq!(guest.ask(PUT_TOKEN).0, 200);
    assert_eq!(metric(&guest.service, "tokens_issued"), 2);
    assert_eq!((metric(&guest.service, "tokens_missing"), metric(&guest.service, "tokens_invalid")), (1, 1));
}

#[test]
fn a_change_shows_in_the_next_answer() {
    let mut guest = Guest::new(Version::V1, document());
    let handle = guest.connect();
    guest.exchange();
    guest.send(handle, GET_ID.as_bytes());
    assert_eq!(guest.answer(handle).1, "ami-12345678");
    guest.service.patch(json!({"latest": {"meta-data": {"ami-id": "ami-2"}}})).unwrap();
    guest.send(handle, GET_ID.as_bytes());
    assert_eq!(guest.answer(handle).1, "ami-2");
}

#[test]
fn requests_on_one_connection_are_answered_in_turn_even_when_they_come_at_once() {
    let mut guest = Guest::new(Version::V1, large().0);
    let handle = guest.connect();
    guest.exchange();
    let large = guest.ask("GET /user-data HTTP/1.1\r\n\r\n").1;
    guest.send(
        handle,
        b"GET / HTTP/1.1\r\n\r\nGET /user-data HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConn",
    );
    assert_eq!(guest.answer(handle).1, "user-data");
    assert!(guest.answer(handle).1 == large);
    assert!(guest.answer(handle).0.starts_with("HTTP/1.1 404 "));
    guest.send(handle, b"ection: close\r\n\r\n");
    let (head, body) = guest.answer(handle);
    assert!(head.contains("Connection: close"), "{head}");
    assert_eq!(body, "user-data");
    guest.exchange();
    assert_eq!(guest.socket(handle).state(), State::CloseWait);
}

#[test]
fn a_guest_that_has_no_more_to_ask_gets_its_answer_all_the_same() {
    let (document, text) = large();
    let mut guest = Guest::new(Version::V1, document);
    let handle = guest.connect();
    guest.exchange();
    guest.send(handle, b"GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n");
    guest.socket(handle).close();
    assert!(guest.answer(handle).1 == text);
    guest.exchange();
    assert!(!guest.socket(handle).is_active());
}

#[test]
fn a_large_document_comes_through_piece_by_piece() {
    let (document, text) = large();
    let mut guest = Guest::new(Version::V1, document);
    let (status, body) = guest.ask("GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n");
    assert_eq!(status, 200);
    assert!(body == text);
}

#[test]
fn fifty_connections_at_once_each_get_their_answer() {
    let (document, text) = large();
    let mut guest = Guest::new(Version::V1, document);
    let handles: Vec<_> = (0..50).map(|_| guest.connect()).collect();
    guest.exchange();
    for handle in &handles {
        assert_eq!(guest.socket(*handle).state(), State::Established);
        guest.send(*handle, b"GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n");
    }
    for handle in handles {
        assert!(guest.answer(handle).1 == text);
    }
    assert_eq!(metric(&guest.service, "connections_evicted"), 0);
    assert_eq!(metric(&guest.service, "requests_busy"), 0);
}

#[test]
fn lost_frames_are_made_up_for() {
    let (document, text) = large();
    for loss in [5, 7, 20, 50] {
        let mut guest = Guest::new(Version::V1, document.clone());
        guest.loss = Some(loss);
        let (_, body) = guest.ask("GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n");
        assert!(body == text, "one frame in {loss} was lost");
    }
}

#[test]
fn a_guest_that_takes_its_time_to_read_gets_the_whole_answer() {
    let (document, text) = large();
    let mut guest = Guest::new(Version::V1, document);
    let handle = guest.connect();
    guest.exchange();
    guest.send(handle, b"GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n");
    // Its window closes, and stays closed for a while.
    guest.wait(Duration::from_secs(20));
    assert!(guest.answer(handle).1 == text);
}

#[test]
fn connections_end_when_the_guest_lets_its_time_go_by() {
    let (document, _) = large();
    let mut guest = Guest::new(Version::V1, document);
    let [idle, slow, deaf] = [(); 3].map(|()| guest.connect());
    guest.exchange();
    guest.send(deaf, b"GET / HTTP/1.1\r\nAccept: application/json\r\n\r\n");
    // A byte now and then is not enough.
    for byte in b"GET /0123" {
        guest.send(slow, &[*byte]);
        guest.wait(Duration::from_millis(1_050));
    }
    let active = |guest: &mut Guest| [idle, slow, deaf].map(|handle| guest.socket(handle).is_active());
    assert_eq!(active(&mut guest), [true, true, true]);
    guest.wait(Duration::from_secs(2));
    assert_eq!(active(&mut guest), [true, false, true]);
    guest.wait(Duration::from_secs(25));
    assert_eq!(active(&mut guest), [true, false, false]);
    guest.wait(Duration::from_secs(24));
    assert_eq!(guest.socket(idle).state(), State::CloseWait, "politely");
    guest.wait(Duration::from_secs(6));
    assert_eq!(active(&mut guest), [false, false, false]);
    assert_eq!(guest.endpoint.next_timeout(guest.now), None);
    assert_eq!(metric(&guest.service, "connections_timed_out"), 4);
}
