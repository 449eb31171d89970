//! Requests as clients make them.

use kindling_api::{Fault, Reply, Status};

use crate::support::{Api, GET, json, put};

#[test]
fn a_reply_has_the_status_and_the_fields_that_clients_look_at() {
    let api = Api::answering(|| Ok(Reply::Json("{\"id\":\"a\"}".to_owned())));
    let answer = api.connect().ask(GET);
    assert_eq!((answer.status, answer.version.as_str()), (200, "HTTP/1.1"));
    assert_eq!(answer.field("Content-Type"), Some("application/json"));
    assert_eq!(answer.field("Content-Length"), Some("10"));
    assert_eq!(answer.body, "{\"id\":\"a\"}");
    assert_eq!(api.count("requests"), 1);
    assert_eq!(api.count("request_failures"), 0);
}

#[test]
fn a_success_without_anything_to_say_is_204_without_a_body() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut client = api.connect();
    for _ in 0..2 {
        let answer = client.ask(put(20));
        assert_eq!(answer.status, 204);
        assert!(answer.fields.is_empty(), "{answer:?}");
    }
}

#[test]
fn text_keeps_its_type() {
    let body = "# EOF\n".to_owned();
    let api = Api::answering(move || {
        Ok(Reply::Text { content_type: "application/openmetrics-text; version=1.0.0", body: body.clone() })
    });
    let answer = api.connect().ask(GET);
    assert_eq!(answer.field("Content-Type"), Some("application/openmetrics-text; version=1.0.0"));
    assert_eq!(answer.body, "# EOF\n");
}

#[test]
fn a_large_reply_arrives_whole() {
    let text = json(3 << 20);
    let api = Api::answering({
        let text = text.clone();
        move || Ok(Reply::Json(text.clone()))
    });
    let mut client = api.connect();
    for _ in 0..3 {
        assert!(client.ask(GET).body == text);
    }
}

#[test]
fn faults_of_the_machine_are_json_whatever_their_message_holds() {
    let message = "drive_id: \"a\\\u{1f}\n\u{2028}\" is é\u{0}";
    let api = Api::answering(move || Err(Fault { status: Status::BadRequest, message: message.to_owned() }));
    let mut client = api.connect();
    for _ in 0..3 {
        assert_eq!(client.ask(GET).assert_fault(400), message);
    }
    assert_eq!(api.count("request_failures"), 3);
}

#[test]
fn a_request_that_is_dropped_without_an_answer_gets_503() {
    let api = Api::start(Default::default(), drop);
    let mut client = api.connect();
    client.ask(GET).assert_fault(503);
    client.ask(GET).assert_fault(503);
}

#[test]
fn methods_that_a_path_does_not_have_get_405_with_those_it_has() {
    let api = Api::counting();
    for method in ["DELETE", "OPTIONS", "TRACE", "BREW", "get", "PUT"] {
        let answer = api.connect().ask(format!("{method} /version HTTP/1.1\r\n\r\n"));
        answer.assert_fault(405);
        assert_eq!(answer.field("Allow"), Some("GET"), "{method}");
    }
    // An answer to HEAD tells the length of a body and has none.
    let mut client = api.connect();
    client.send("HEAD /version HTTP/1.1\r\n\r\n");
    client.finish();
    let answer = client.rest();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn paths_are_taken_as_they_are_and_never_resolved() {
    let api = Api::counting();
    for path in [
        "/../version",
        "/drives/../version",
        "//version",
        "/version/",
        "/%76ersion",
        "/drives/%2e%2e",
        "/drives/%00",
        "/ver%73ion",
        "/é",
        "*",
        "http://localhost/",
        "/nothing#version",
    ] {
        let method = if path.starts_with("http") { "PUT" } else { "GET" };
        let answer = api.connect().ask(format!("{method} {path} HTTP/1.1\r\n\r\n"));
        assert!((400..=405).contains(&answer.status), "{path}: {answer:?}");
        answer.assert_fault(answer.status);
    }
    api.assert_serves();
}

#[test]
fn a_query_and_the_host_of_an_absolute_path_do_not_matter() {
    let api = Api::counting();
    for path in
        ["/version?", "/version?a=b&c=/drives", "http://localhost/version", "http://u@[::1]:80/version?x"]
    {
        assert_eq!(api.connect().ask(format!("GET {path} HTTP/1.1\r\n\r\n")).status, 200, "{path}");
    }
}

#[test]
fn connect_and_upgrades_are_not_followed() {
    let api = Api::counting();
    let answer = api.connect().ask("CONNECT localhost:80 HTTP/1.1\r\n\r\n");
    answer.assert_fault(answer.status);
    let mut client = api.connect();
    let upgrade = "GET /version HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    assert_eq!(client.ask(upgrade).status, 200);
    assert_eq!(client.ask(GET).status, 200);
}

#[test]
fn bodies_may_come_in_chunks() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut client = api.connect();
    let head = "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "4\r\n{\"a\"\r\n3\r\n:1}\r\n0\r\n\r\n",
        "7;name=value\r\n{\"a\":1}\r\n000\r\nTrailer: x\r\n\r\n",
        "1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
    ] {
        assert_eq!(client.ask(format!("{head}{body}")).status, 204, "{body}");
    }
}

#[test]
fn a_body_that_is_no_json_is_refused_and_the_connection_goes_on() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut client = api.connect();
    for body in [&b"{"[..], b"\xff\xfe\x00\x01", b"{}{}", b"[[[[", "{\"a\":\"\u{0}\"}".as_bytes()] {
        let mut request =
            format!("PUT /mmds HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend_from_slice(body);
        client.ask(request).assert_fault(400);
    }
    let deep = "[".repeat(50_000);
    client.ask(format!("PUT /mmds HTTP/1.1\r\nContent-Length: 50000\r\n\r\n{deep}")).assert_fault(400);
    assert_eq!(client.ask(put(20)).status, 204);
}

#[test]
fn a_client_that_waits_to_be_asked_for_its_body_is_asked_for_it() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let mut client = api.connect();
    for _ in 0..2 {
        let head = "PUT /mmds HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        let interim = client.ask(head);
        assert_eq!(interim.status, 100);
        assert_eq!(client.ask("{}").status, 204);
    }
    // HTTP/1.0 has no interim answers.
    let mut client = api.connect();
    let answer = client.ask("PUT /mmds HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}");
    assert_eq!(answer.status, 204);
}
