//! What is no HTTP, or not quite.

use kindling_api::Reply;

use crate::support::{Api, GET};

/// Sends `request`, and asserts that the only answer is a fault after which the server closes the connection.
#[track_caller]
fn assert_refused(api: &Api, request: impl AsRef<[u8]>, status: u16) -> String {
    let mut client = api.connect();
    let answer = client.ask(&request);
    let text = String::from_utf8_lossy(request.as_ref()).chars().take(100).collect::<String>();
    assert_eq!(answer.status, status, "{text:?}");
    assert_eq!(answer.field("Connection"), Some("close"), "{text:?}");
    client.assert_closed();
    answer.assert_fault(status)
}

#[test]
fn what_is_no_http_gets_a_fault_in_json_and_is_closed() {
    let api = Api::counting();
    let requests: [&[u8]; 20] = [
        b"GARBAGE\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /version\r\n\r\n",
        b"GET /version HTTP/0.9\r\n\r\n",
        b"GET /version HTTP/2.0\r\n\r\n",
        b"GET /version HTTP/1.1 \r\n\r\n",
        b"GET  /version HTTP/1.1\r\n\r\n",
        b"GET /ver sion HTTP/1.1\r\n\r\n",
        b"GET ver\"sion HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"G\0T /version HTTP/1.1\r\n\r\n",
        b"GET /version HTTP/1.1\r\nA b: c\r\n\r\n",
        b"GET /version HTTP/1.1\r\nA\r\n\r\n",
        b"GET /version HTTP/1.1\r\n: b\r\n\r\n",
        b"GET /version HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"GET /version HTTP/1.1\r\nA: \0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"{\"action_type\": \"InstanceStart\"}\r\n\r\n",
    ];
    for request in requests {
        assert_refused(&api, request, 400);
    }
    assert_eq!(api.count("malformed_requests"), 20);
    assert_eq!(api.count("requests"), 0);
    api.assert_serves();
}

#[test]
fn a_length_that_cannot_be_relied_on_is_refused() {
    let api = Api::answering(|| Ok(Reply::Empty));
    for fields in [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2, 3",
        "Content-Length: -1",
        "Content-Length: +2",
        "Content-Length: 0x2",
        "Content-Length: two",
        "Content-Length:",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    ] {
        let request = format!("PUT /mmds HTTP/1.1\r\n{fields}\r\n\r\n{{}}");
        assert_refused(&api, request, 400);
    }
    assert_refused(&api, "PUT /mmds HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
    api.assert_serves();
}

#[test]
fn of_two_ways_to_tell_a_length_chunks_win_and_the_connection_ends() {
    let api = Api::answering(|| Ok(Reply::Empty));
    for fields in
        ["Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 5"]
    {
        // What follows the last chunk would be a second request, for somebody who believed in the other length.
        let mut client = api.connect();
        client.send(format!("PUT /mmds HTTP/1.1\r\n{fields}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{GET}"));
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("Connection")), (204, Some("close")));
        // Our direction is closed; that the rest was not read may show as a reset.
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
        assert!(rest.is_empty());
    }
    // The same length twice is one length.
    let twice = "PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(api.connect().ask(twice).status, 204);
}

#[test]
fn chunks_that_are_not_as_they_should_be_are_refused() {
    let api = Api::answering(|| Ok(Reply::Empty));
    for body in [
        "zz\r\n",
        "-1\r\n",
        "\r\n",
        "2 2\r\n",
        "10000000000000000\r\n",
        "ffffffffffffffff1\r\n",
        "2\r\n{}!\r\n",
        "2\n{}",
        "0\r\na b: c\r\n\r\n",
        "\0\0\0\0",
    ] {
        let head = "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let message = assert_refused(&api, format!("{head}{body}"), 400);
        assert!(message.starts_with("the request's body cannot be read: "), "{message}");
    }
    api.assert_serves();
}

#[test]
fn heads_without_end_are_refused() {
    let api = Api::counting();
    for head in [
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000)),
        format!("GET /version HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(20_000)),
        format!("GET /version HTTP/1.1\r\n{}: b\r\n\r\n", "a".repeat(20_000)),
        format!("GET /version HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101)),
        format!("GET /version HTTP/1.1\r\nA: {}", "b".repeat(1 << 20)),
        "a".repeat(1 << 20),
    ] {
        let message = assert_refused(&api, head, 431);
        assert_eq!(message, "the request's head has 16384 bytes or more, or more than 100 fields");
    }
    // As large as it may be, and as many fields.
    let head = format!("GET /version HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(16_000));
    assert_eq!(api.connect().ask(head).status, 200);
    let head = format!("GET /version HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(api.connect().ask(head).status, 200);
}

#[test]
fn chunk_extensions_and_trailers_without_end_are_refused() {
    let api = Api::answering(|| Ok(Reply::Empty));
    let head = "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_refused(&api, format!("{head}1;{}", "a".repeat(1 << 20)), 400);
    assert_refused(&api, format!("{head}2\r\n{{}}\r\n0\r\n{}", "A: b\r\n".repeat(50_000)), 400);
    assert_refused(&api, format!("{head}2\r\n{{}}\r\n0\r\nA: {}", "b".repeat(1 << 20)), 400);
    api.assert_serves();
}

#[test]
fn answers_before_a_malformed_request_are_not_lost() {
    let api = Api::counting();
    let mut client = api.connect();
    client.send(format!("{GET}{GET}nonsense\r\n\r\n"));
    assert_eq!(client.answer().body, "1");
    assert_eq!(client.answer().body, "2");
    client.answer().assert_fault(400);
    client.assert_closed();
    assert_eq!(api.count("requests"), 2);
}

#[test]
fn a_client_of_another_http_is_closed() {
    let api = Api::counting();
    let mut client = api.connect();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.assert_closed();
    api.assert_serves();
}

#[test]
fn empty_lines_and_bare_line_feeds_are_let_pass() {
    let api = Api::counting();
    let mut client = api.connect();
    assert_eq!(client.ask(format!("\r\n\r\n{GET}")).status, 200);
    assert_eq!(client.ask("GET /version HTTP/1.1\nHost: a\n\n").status, 200);
}
