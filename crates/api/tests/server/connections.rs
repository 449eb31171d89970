//! Connections: how long they last, what their clients do to them, and that none does anything to another.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use kindling_api::Reply;
use kindling_api::server::Limits;

use crate::support::{Api, GET, eventually, put};

#[test]
fn a_connection_of_http_1_1_stays_open_until_it_is_closed() {
    let api = Api::counting();
    let mut client = api.connect();
    for count in 1..=20 {
        let answer = client.ask(GET);
        assert_eq!((answer.body, answer.fields.len()), (count.to_string(), 2));
    }
    assert_eq!(api.count("connections"), 1);
    let answer = client.ask("GET /version HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.field("Connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn a_connection_of_http_1_0_ends_unless_its_client_wants_more() {
    let api = Api::counting();
    let mut client = api.connect();
    for _ in 0..3 {
        let answer = client.ask("GET /version HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!((answer.status, answer.version.as_str()), (200, "HTTP/1.0"));
        assert_eq!(answer.field("Connection"), Some("keep-alive"));
    }
    assert_eq!(client.ask("GET /version HTTP/1.0\r\n\r\n").status, 200);
    client.assert_closed();
}

#[test]
fn what_comes_behind_the_last_request_is_thrown_away_and_resets_nothing() {
    let api = Api::counting();
    for last in ["GET /version HTTP/1.0\r\n\r\n", "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n"] {
        let mut client = api.connect();
        assert_eq!(client.ask(last).status, 200);
        client.assert_closed();
        client.send(GET);
        client.assert_closed();
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let api = Api::counting();
    let mut client = api.connect();
    client.send(format!("{GET}{}", put(1000)).repeat(50));
    for count in 1..=100 {
        assert_eq!(client.answer().body, count.to_string());
    }
    assert!(!client.is_readable(Duration::ZERO));
}

#[test]
fn requests_are_handled_in_the_order_in_which_they_arrive_over_all_connections() {
    let api = Api::counting();
    let mut clients: Vec<_> = (0..10).map(|_| api.connect()).collect();
    let mut expected = 0;
    for turn in 0..50 {
        // Not always in the order in which they were accepted.
        let place = |at: usize| (at * 7 + turn) % 10;
        for at in 0..10 {
            clients[place(at)].send(&GET[..at]);
        }
        for at in 0..10 {
            clients[place(at)].send(&GET[at..]);
            expected += 1;
            eventually("it has come", || api.count("requests") == expected);
        }
        for at in 0..10 {
            let body = clients[place(at)].answer().body;
            assert_eq!(body, (expected - 9 + at as u64).to_string());
        }
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let api = Api::counting();
    let mut client = api.connect();
    for byte in format!("{GET}{}", put(40)).bytes() {
        client.send([byte]);
        if byte.is_ascii_punctuation() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(client.answer().body, "1");
    assert_eq!(client.answer().body, "2");
}

#[test]
fn a_client_that_has_said_all_gets_all_its_answers() {
    let api = Api::counting();
    let mut client = api.connect();
    client.send(GET.repeat(3));
    client.finish();
    for count in 1..=3 {
        assert_eq!(client.answer().body, count.to_string());
    }
    client.assert_closed();
    // And so does one whose request is not answered at once.
    let (go, wait) = mpsc::channel();
    let api = Api::answering(move || {
        wait.recv().unwrap();
        Ok(Reply::Empty)
    });
    let mut client = api.connect();
    client.send(GET);
    client.finish();
    assert!(!client.is_readable(Duration::from_millis(50)));
    go.send(()).unwrap();
    assert_eq!(client.answer().status, 204);
    client.assert_closed();
}

#[test]
fn a_body_that_ends_early_is_a_fault() {
    let api = Api::counting();
    for body in ["Content-Length: 10\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}"] {
        let mut client = api.connect();
        client.send(format!("PUT /mmds HTTP/1.1\r\n{body}"));
        client.finish();
        client.answer().assert_fault(400);
        client.assert_closed();
    }
    // Without a whole head there is nothing to answer.
    let mut client = api.connect();
    client.send("GET /version HT");
    client.finish();
    client.assert_closed();
    assert_eq!(api.count("malformed_requests"), 0);
}

#[test]
fn a_client_that_goes_away_while_its_request_waits_loses_only_the_answer() {
    let (go, wait) = mpsc::channel();
    let (acted, actions) = mpsc::channel();
    let api = Api::start(Limits::default(), move |request| {
        wait.recv().unwrap();
        request.answer(Ok(Reply::Empty));
        acted.send(()).unwrap();
    });
    let mut gone = api.connect();
    gone.send(GET);
    let mut stays = api.connect();
    eventually("the first request waits", || api.count("requests") == 1);
    stays.send(GET);
    drop(gone);
    go.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!(stays.answer().status, 204);
    actions.recv().unwrap();
    actions.recv().unwrap();
}

#[test]
fn clients_that_do_nothing_or_half_of_something_hold_up_nobody() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut held = Vec::new();
    for part in ["", "G", "GET /version HTTP/1.1\r\n", "PUT /mmds HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"] {
        let mut client = api.connect();
        client.send(part);
        held.push(client);
    }
    // One that never reads its answers, and keeps asking for as long as anybody listens.
    let mut deaf = api.connect();
    deaf.stream.set_nonblocking(true).unwrap();
    let flood = GET.repeat(1000);
    let mut sent = 0;
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        match std::io::Write::write(&mut deaf.stream, flood.as_bytes()) {
            Ok(len) => sent += len,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        assert_eq!(api.connect().ask(GET).status, 204);
    }
    assert!(sent > 100_000, "{sent}");
    // It is not that the server keeps what the client does not read: it has stopped to listen.
    let mut stopped = api.count("requests");
    eventually("the deaf client is not listened to any more", || {
        std::thread::sleep(Duration::from_millis(100));
        std::mem::replace(&mut stopped, api.count("requests")) == stopped
    });
    // Those who go on find their connections as they left them.
    let mut clients = held.into_iter();
    for rest in [GET, "ET /version HTTP/1.1\r\n\r\n", "\r\n", "        }"] {
        assert_eq!(clients.next().unwrap().ask(rest).status, 204, "{rest:?}");
    }
}
