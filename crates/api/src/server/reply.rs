//! Answers in HTTP.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::events::EventStream;
use crate::{Fault, Status};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// The body of an answer.
pub(super) enum ReplyBody {
    /// What is left of a text.
    Text(Bytes),
    /// As long as both sides want.
    Events(EventStream),
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut *self {
            Self::Text(text) => Poll::Ready(Some(std::mem::take(text)).filter(|text| !text.is_empty())),
            Self::Events(events) => events.poll_line(cx),
        };
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(u64::try_from(text.len()).unwrap_or(u64::MAX)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// 204.
pub(super) fn empty() -> Response<ReplyBody> {
    response(StatusCode::NO_CONTENT, None, ReplyBody::Text(Bytes::new()))
}

/// 200 with JSON.
pub(super) fn json(text: String) -> Response<ReplyBody> {
    response(StatusCode::OK, Some(JSON), ReplyBody::Text(text.into()))
}

/// 200 with text of any type.
pub(super) fn text(content_type: &'static str, text: String) -> Response<ReplyBody> {
    let content_type = HeaderValue::from_static(content_type);
    response(StatusCode::OK, Some(content_type), ReplyBody::Text(text.into()))
}

/// 200 with events.
pub(super) fn events(events: EventStream) -> Response<ReplyBody> {
    response(StatusCode::OK, Some(JSON_LINES), ReplyBody::Events(events))
}

/// An error.
pub(super) fn fault(fault: &Fault) -> Response<ReplyBody> {
    let status = match fault.status {
        Status::BadRequest => StatusCode::BAD_REQUEST,
        Status::NotFound => StatusCode::NOT_FOUND,
        Status::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
        Status::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Status::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = ReplyBody::Text(fault_body(&fault.message).into());
    let mut response = response(status, Some(JSON), body);
    if let Status::MethodNotAllowed { allow } = fault.status {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    }
    response
}

/// An error in the form in which it crosses the socket, after which the connection ends.
pub(super) fn raw_fault(status: StatusCode, message: &str) -> String {
    let body = fault_body(message);
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn fault_body(message: &str) -> String {
    serde_json::json!({ "fault_message": message }).to_string()
}

fn response(status: StatusCode, content_type: Option<HeaderValue>, body: ReplyBody) -> Response<ReplyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    response
}
