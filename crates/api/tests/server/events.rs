//! Streams of events.

use std::time::Duration;

use kindling_api::Reply;
use kindling_api::server::Limits;
use serde_json::Value;

use crate::support::{Api, Connection, GET};

const GET_EVENTS: &str = "GET /events HTTP/1.1\r\n\r\n";

fn api() -> Api {
    Api::answering(|| Ok(Reply::Events))
}

fn open(api: &Api) -> Connection {
    let mut client = api.connect();
    let answer = client.ask(GET_EVENTS);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("Content-Type"), Some("application/x-ndjson"));
    assert_eq!(answer.field("Transfer-Encoding"), Some("chunked"));
    client
}

fn line(number: usize, len: usize) -> String {
    format!("{{\"event\":\"test\",\"number\":{number},\"text\":\"{}\"}}", "x".repeat(len))
}

#[test]
fn every_stream_gets_every_event_from_its_beginning_on() {
    let api = api();
    api.events.send(line(0, 0));
    let mut first = open(&api);
    api.events.send(line(1, 0));
    let mut second = open(&api);
    api.events.clone().send(line(2, 0));
    assert_eq!(first.chunk(), line(1, 0) + "\n");
    for client in [&mut first, &mut second] {
        assert_eq!(client.chunk(), line(2, 0) + "\n");
        assert!(!client.is_readable(Duration::from_millis(20)));
    }
    assert_eq!(api.count("event_streams"), 2);
}

#[test]
fn an_event_that_follows_the_answer_at_once_is_not_missed() {
    let events = std::sync::Arc::new(std::sync::OnceLock::<kindling_api::server::EventSender>::new());
    let api = Api::start(Limits::default(), {
        let events = events.clone();
        move |request| {
            request.answer(Ok(Reply::Events));
            events.get().unwrap().send(line(7, 0));
        }
    });
    events.set(api.events.clone()).unwrap();
    for _ in 0..20 {
        assert_eq!(open(&api).chunk(), line(7, 0) + "\n");
    }
}

#[test]
fn a_slow_reader_is_told_how_many_events_it_has_lost_and_holds_up_nobody() {
    const COUNT: usize = 20_000;
    let api = api();
    let mut slow = open(&api);
    let mut other = open(&api);
    // Were it to wait for the slow one, this would have no end.
    for number in 0..COUNT {
        api.events.send(line(number, 1000));
    }
    // The other reads, and is soon up to date.
    api.events.send(line(COUNT, 1000));
    while !other.chunk().starts_with(&format!("{{\"event\":\"test\",\"number\":{COUNT},")) {}

    let (mut expected, mut lost, mut gaps) = (0, 0, 0);
    while expected <= COUNT as u64 {
        let event: Value = serde_json::from_str(&slow.chunk()).unwrap();
        if event["event"] == "lost" {
            assert_eq!(event.as_object().unwrap().len(), 2);
            let count = event["count"].as_u64().unwrap();
            assert!(count > 0);
            (lost, expected, gaps) = (lost + count, expected + count, gaps + 1);
        } else {
            assert_eq!(event["number"].as_u64(), Some(expected));
            expected += 1;
        }
    }
    assert!(lost > 10_000 && gaps >= 1, "{lost} lost in {gaps} gaps");
    assert!(api.count("events_lost") >= lost);
    // And it goes on.
    api.events.send(line(1, 0));
    assert_eq!(slow.chunk(), line(1, 0) + "\n");
}

#[test]
fn a_stream_whose_client_leaves_is_gone_although_there_are_no_events() {
    let api = api();
    for _ in 0..100 {
        let streams: Vec<_> = (0..10).map(|_| open(&api)).collect();
        drop(streams);
    }
    assert_eq!(api.count("connections_refused"), 0);
}

#[test]
fn a_stream_ends_when_its_client_has_closed_its_direction() {
    let api = api();
    let mut client = open(&api);
    client.finish();
    assert_eq!(client.rest(), "0\r\n\r\n");
}

#[test]
fn what_a_client_sends_behind_its_request_for_events_is_never_looked_at() {
    let api = api();
    let mut client = api.connect();
    client.ask(format!("{GET_EVENTS}{GET}"));
    for number in 0..100 {
        client.send(GET.repeat(1000));
        api.events.send(line(number, 0));
        assert_eq!(client.chunk(), line(number, 0) + "\n");
    }
    assert_eq!(api.count("requests"), 1);
}

#[test]
fn a_client_of_http_1_0_gets_events_without_chunks() {
    let api = api();
    let mut client = api.connect();
    let answer = client.ask("GET /events HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!((answer.status, answer.field("Transfer-Encoding")), (200, None));
    api.events.send(line(1, 0));
    api.events.send(line(2, 0));
    drop(api.stop().requests);
    assert_eq!(client.rest(), format!("{}\n{}\n", line(1, 0), line(2, 0)));
}

#[test]
fn streams_end_with_the_server_after_everything_that_was_sent() {
    let api = api();
    let events = api.events.clone();
    let mut streams: Vec<_> = (0..10).map(|_| open(&api)).collect();
    let stopped = api.stop();
    for number in 0..100 {
        events.send(line(number, 100));
    }
    drop(stopped.requests);
    for stream in &mut streams {
        for number in 0..100 {
            assert_eq!(stream.chunk(), line(number, 100) + "\n");
        }
        assert_eq!(stream.rest(), "0\r\n\r\n");
    }
    events.send(line(0, 0));
}

#[test]
fn events_without_readers_cost_nothing_that_stays() {
    let api = api();
    for number in 0..100_000 {
        api.events.send(line(number, 0));
    }
    let mut client = open(&api);
    api.events.send(line(1, 0));
    assert_eq!(client.chunk(), line(1, 0) + "\n");
}
