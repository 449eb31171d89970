//! How much clients may ask for.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kindling_api::Reply;
use kindling_api::server::Limits;

use crate::support::{Api, Connection, GET, eventually, json, put};

const BODY: usize = 51_200;

/// Asserts that a request gets 413 after which the server closes the connection.
#[track_caller]
fn assert_too_large(api: &Api, request: &str) {
    let mut client = api.connect();
    let answer = client.ask(request);
    assert_eq!(answer.assert_fault(413), format!("the request's body is larger than {BODY} bytes"));
    assert_eq!(answer.field("Connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn a_body_may_be_as_large_as_the_limit_and_no_larger() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let chunked = |len: usize| {
        let body = json(len);
        let chunks = body.as_bytes().chunks(1000);
        let chunks =
            chunks.map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), str::from_utf8(chunk).unwrap()));
        let chunks: String = chunks.collect();
        format!("PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
    };
    assert_eq!(api.connect().ask(put(BODY)).status, 204);
    assert_eq!(api.connect().ask(chunked(BODY)).status, 204);
    assert_too_large(&api, &put(BODY + 1));
    assert_too_large(&api, &chunked(BODY + 1));
    assert_eq!(api.count("request_failures"), 2);
}

#[test]
fn a_body_that_is_announced_as_too_large_is_not_waited_for() {
    let api = Api::answering(|| Ok(Reply::Empty));
    for len in ["51201", "18446744073709551613"] {
        assert_too_large(&api, &format!("PUT /mmds HTTP/1.1\r\nContent-Length: {len}\r\n\r\n"));
        // Nor is the client told to send it.
        let expect = format!("PUT /mmds HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {len}\r\n\r\n");
        assert_too_large(&api, &expect);
    }
}

#[test]
fn a_client_that_sends_a_body_that_is_too_large_can_finish_and_gets_its_answer() {
    let api = Api::answering(|| Ok(Reply::Empty));
    // Far more than the sockets' buffers take.
    assert_too_large(&api, &put(16 << 20));
    let head = "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1000000\r\n";
    assert_too_large(&api, &format!("{head}{}\r\n0\r\n\r\n", " ".repeat(16 << 20)));
    api.assert_serves();
}

#[test]
fn other_limits_can_be_set() {
    let api = Api::start(Limits { body: 100, connections: 1 }, |request| request.answer(Ok(Reply::Empty)));
    let mut client = api.connect();
    assert_eq!(client.ask(put(100)).status, 204);
    api.connect().answer().assert_fault(503);
    let message = client.ask(put(101)).assert_fault(413);
    assert_eq!(message, "the request's body is larger than 100 bytes");
    client.assert_closed();
    drop(client);
    eventually("the place is free", || api.connect().ask(put(20)).status == 204);
}

#[test]
fn of_64_connections_10_are_served_and_the_others_told_so() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut clients: Vec<_> = (0..64).map(|_| api.connect()).collect();
    for client in &mut clients[..10] {
        client.send("PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\n\r\n{");
    }
    let mut refused = clients.split_off(10);
    for client in &mut refused {
        // What the client sends meanwhile does not make it miss the answer.
        client.send(GET);
        let answer = client.answer();
        assert_eq!(answer.assert_fault(503), "too many connections are open, try again later");
        assert_eq!(answer.field("Connection"), Some("close"));
        client.assert_closed();
    }
    for client in &mut clients {
        assert_eq!(client.ask("}").status, 204);
    }
    assert_eq!((api.count("connections"), api.count("connections_refused")), (10, 54));
    drop((clients, refused));
    for _ in 0..64 {
        assert_eq!(api.connect().ask(put(20)).status, 204);
    }
}

#[test]
fn all_of_64_clients_that_try_again_are_served() {
    let api = Api::answering(|| Ok(Reply::Empty));
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                eventually("served", || {
                    let answer = api.connect().ask(put(20));
                    assert!(matches!(answer.status, 204 | 503));
                    answer.status == 204
                });
            });
        }
    });
    assert_eq!(api.count("requests"), 64);
}

#[test]
fn a_place_is_free_as_soon_as_its_client_has_closed() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut clients: Vec<_> = (0..10).map(|_| api.connect()).collect();
    for turn in 0..500 {
        let at = turn % clients.len();
        drop(clients.remove(at));
        let mut client = api.connect();
        assert_eq!(client.ask(put(20)).status, 204, "{turn}");
        clients.push(client);
    }
    assert_eq!(api.count("connections_refused"), 0);
}

#[test]
fn a_refused_client_that_stays_keeps_nobody_from_a_place() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let served: Vec<_> = (0..10).map(|_| api.connect()).collect();
    let refused: Vec<Connection> = (0..200).map(|_| api.connect()).collect();
    eventually("all are refused", || api.count("connections_refused") == 200);
    drop(served);
    api.assert_serves();
    drop(refused);
}

#[test]
fn requests_that_wait_are_no_more_than_connections_even_if_their_clients_have_gone() {
    let (go, wait) = mpsc::channel::<()>();
    let mut acted = 0;
    let api = Api::start(Limits::default(), move |request| {
        if acted == 0 {
            wait.recv().unwrap();
        }
        acted += 1;
        request.answer(Ok(Reply::Json(acted.to_string())));
    });
    for _ in 0..100 {
        api.connect().send(GET);
    }
    eventually("all have come", || api.count("connections") + api.count("connections_refused") == 100);
    assert_eq!(api.count("requests"), 10);
    go.send(()).unwrap();
    eventually("there is a place", || {
        thread::sleep(Duration::from_millis(1));
        let answer = api.connect().ask(GET);
        answer.status == 200 && answer.body == "11"
    });
}
