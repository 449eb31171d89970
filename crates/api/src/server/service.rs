//! From a request in HTTP to its answer.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response};

use super::ServerMetrics;
use super::connection::Peer;
use super::events::EventStream;
use super::reply::{self, ReplyBody};
use super::requests::{Answer, RequestSender};
use crate::{Fault, Reply, Status, route};

/// Most that is allocated for a body before it comes, whatever is allowed and announced.
const BODY_AHEAD: usize = 64 << 10;

/// Answers the requests of all connections.
#[derive(Debug)]
pub(super) struct Service {
    pub requests: RequestSender,
    /// Largest body in bytes.
    pub body_limit: usize,
    pub metrics: Arc<ServerMetrics>,
}

impl Service {
    /// Reads the request to its end, lets it be acted on, and returns the answer.
    pub async fn call(&self, request: Request<Incoming>, peer: &Arc<Peer>) -> Response<ReplyBody> {
        self.metrics.requests.increment();
        let (head, body) = request.into_parts();
        let answer = match read(body, self.body_limit).await {
            Ok(body) => match route(head.method.as_str(), head.uri.path(), &body) {
                Ok(action) => {
                    drop((head, body));
                    self.requests.ask(action).await
                }
                Err(fault) => Answer::from(fault),
            },
            Err(fault) => {
                peer.cut_short();
                Answer::from(fault)
            }
        };
        let mut response = match answer.result {
            Ok(Reply::Empty) => reply::empty(),
            Ok(Reply::Json(text)) => reply::json(text),
            Ok(Reply::Text { content_type, body }) => reply::text(content_type, body),
            Ok(Reply::Events) => {
                let events = answer.events.unwrap_or_else(|| self.requests.events.subscribe());
                reply::events(EventStream::new(events, Arc::clone(peer)))
            }
            Err(fault) => {
                self.metrics.request_failures.increment();
                reply::fault(&fault)
            }
        };
        if peer.is_cut_short() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Reads a body of at most `limit` bytes. One that says that it is larger is not read at all.
async fn read(mut body: Incoming, limit: usize) -> Result<Vec<u8>, Fault> {
    let too_large = || Fault {
        status: Status::PayloadTooLarge,
        message: format!("the request's body is larger than {limit} bytes"),
    };
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(expected.min(BODY_AHEAD));
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| broken(&error))?;
        // What is not data are trailers, which nobody wants.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > limit.saturating_sub(bytes.len()) {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn broken(error: &hyper::Error) -> Fault {
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    Fault { status: Status::BadRequest, message: format!("the request's body cannot be read: {cause}") }
}
