//! HTTP as guests speak it: requests of a head and nothing else in, whole answers out (RFC 9112).
//!
//! Nothing that a guest may ask has a body. A request with one is refused and its connection closed, so that where the next
//! request begins is never a matter of opinion.

use std::fmt::Write;
use std::time::Instant;

use crate::Service;

/// Most bytes of a request.
pub const MAX_REQUEST_BYTES: usize = 4_096;

/// Most header fields of a request.
const MAX_HEADERS: usize = 64;

const TOKEN_HEADERS: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const TTL_HEADERS: [&str; 2] = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Bytes of the input that are dealt with.
    pub consumed: usize,
    /// What goes to the guest.
    pub bytes: Vec<u8>,
    /// Whether the connection ends with it.
    pub close: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Put,
    Other,
}

/// What matters of a request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub method: Method,
    pub path: &'a str,
    pub accepts_json: bool,
    pub token: Option<&'a str>,
    /// The header that says how long a token is to last, and what it says.
    pub ttl: Option<(&'static str, &'a str)>,
    pub is_forwarded: bool,
    pub has_body: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    HeaderTooLarge,
    NotImplemented,
    Unavailable,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::HeaderTooLarge => "431 Request Header Fields Too Large",
            Self::NotImplemented => "501 Not Implemented",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// What a request is answered.
#[derive(Debug)]
pub(crate) struct Response {
    pub status: Status,
    pub is_json: bool,
    /// Whether to say which methods there are.
    pub allow: bool,
    /// How long the token lasts that is the body, in seconds, and the header that says so.
    pub ttl: Option<(&'static str, u64)>,
    pub body: String,
}

impl Response {
    pub fn text(body: String) -> Self {
        Self { status: Status::Ok, is_json: false, allow: false, ttl: None, body }
    }

    pub fn error(status: Status, why: &str) -> Self {
        Self { status, ..Self::text(why.to_owned()) }
    }

    fn into_bytes(self, version: u8, close: bool, has_body: bool) -> Vec<u8> {
        let media_type = if self.is_json { "application/json" } else { "text/plain" };
        let connection = if close { "close" } else { "keep-alive" };
        let mut text = format!(
            "HTTP/1.{version} {}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\nConnection: {connection}\r\n",
            self.status.line(),
            self.body.len(),
        );
        if self.allow {
            text.push_str("Allow: GET, PUT\r\n");
        }
        if let Some((header, ttl)) = self.ttl {
            // Writing to a string does not fail.
            let _ = write!(text, "{header}: {ttl}\r\n");
        }
        text.push_str("\r\n");
        if has_body {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

/// Answers the request that `input` begins with, at the time `now`; `None` when more of it has yet to come, which it never
/// has when there are [`MAX_REQUEST_BYTES`].
pub fn answer(service: &Service, now: Instant, input: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let within = input.get(..MAX_REQUEST_BYTES).unwrap_or(input);
    let refusal = match head.parse(within) {
        Ok(httparse::Status::Complete(consumed)) => match read_head(&head) {
            Some((request, close)) => {
                service.counters().requests.increment();
                let response = service.respond(now, &request);
                let version = head.version.unwrap_or_default();
                let has_body = head.method != Some("HEAD");
                return Some(Answer {
                    consumed,
                    bytes: response.into_bytes(version, close, has_body),
                    close,
                });
            }
            None => Response::error(Status::BadRequest, "the request target has no path"),
        },
        Ok(httparse::Status::Partial) if within.len() < MAX_REQUEST_BYTES => return None,
        Ok(httparse::Status::Partial) => {
            let why = format!("a request has at most {MAX_REQUEST_BYTES} bytes");
            Response::error(Status::HeaderTooLarge, &why)
        }
        Err(httparse::Error::TooManyHeaders) => {
            let why = format!("a request has at most {MAX_HEADERS} header fields");
            Response::error(Status::HeaderTooLarge, &why)
        }
        Err(error) => Response::error(Status::BadRequest, &format!("this is no HTTP request: {error}")),
    };
    service.counters().requests.increment();
    service.counters().requests_malformed.increment();
    Some(Answer { consumed: input.len(), bytes: refusal.into_bytes(1, true, true), close: true })
}

/// The answer to a request that there is no room to answer.
pub(crate) fn busy() -> Vec<u8> {
    Response::error(Status::Unavailable, "too many answers are on their way").into_bytes(1, true, true)
}

/// Reads a whole head, and whether the connection is to be closed; `None` when the target has no path.
fn read_head<'a>(head: &httparse::Request<'_, 'a>) -> Option<(Request<'a>, bool)> {
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        _ => Method::Other,
    };
    let mut request = Request {
        method,
        path: path(head.path?)?,
        accepts_json: false,
        token: None,
        ttl: None,
        is_forwarded: false,
        has_body: false,
    };
    let mut accept = None;
    let mut close = head.version != Some(1);
    for header in head.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = str::from_utf8(header.value).unwrap_or_default().trim();
        if is("content-length") && value != "0" || is("transfer-encoding") {
            request.has_body = true;
        } else if is("connection") {
            close = close && !has(value, "keep-alive") || has(value, "close");
        } else if is("accept") {
            accept = accept.or(accepts_json(value));
        } else if is("x-forwarded-for") {
            request.is_forwarded = true;
        } else if TOKEN_HEADERS.into_iter().any(is) {
            request.token = request.token.or(Some(value));
        } else if let Some(name) = TTL_HEADERS.into_iter().find(|name| is(name)) {
            request.ttl = request.ttl.or(Some((name, value)));
        }
    }
    request.accepts_json = accept.unwrap_or(false);
    let close = close || request.has_body;
    Some((request, close))
}

/// The path of a request target in origin form or in absolute form (RFC 9112, 3.2).
fn path(target: &str) -> Option<&str> {
    let rest = match target.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => rest.get(rest.find('/')?..)?,
        _ => target,
    };
    rest.starts_with('/').then_some(rest)
}

/// The members of a list, without their parameters.
fn members(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(|member| member.split(';').next().unwrap_or_default().trim())
}

fn has(list: &str, wanted: &str) -> bool {
    members(list).any(|member| member.eq_ignore_ascii_case(wanted))
}

/// Which of the two formats is named first; `None` if neither is.
fn accepts_json(list: &str) -> Option<bool> {
    members(list).find_map(|member| {
        let is = |media_type: &str| member.eq_ignore_ascii_case(media_type);
        if is("application/json") { Some(true) } else { is("text/plain").then_some(false) }
    })
}
