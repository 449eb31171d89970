//! Events: lines of JSON that go to every client with an open stream, one chunk of the reply each.
//!
//! All streams share one ring of the latest lines. A client that falls behind so far that its next line has left the
//! ring gets a line in its place that says how many are missing. So a sender never waits, and a client that never reads costs
//! nothing but its place in the ring, wherever that has gone.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver};

use super::connection::Peer;

/// Lines that are kept for clients that have not taken them yet. A socket's own buffer keeps many more.
const BACKLOG: usize = 128;

/// Sends events to all clients that have asked for them.
#[derive(Clone, Debug)]
pub struct EventSender {
    /// `None` is the end.
    ring: broadcast::Sender<Option<Bytes>>,
}

/// A client's place in the ring.
pub(super) type Subscription = Receiver<Option<Bytes>>;

impl EventSender {
    pub(super) fn new() -> Self {
        Self { ring: broadcast::Sender::new(BACKLOG) }
    }

    /// Hands a line, one JSON text without a line feed, to every stream that is open. It never blocks; without streams it
    /// does next to nothing.
    pub fn send(&self, mut line: String) {
        debug_assert!(!line.contains('\n'), "an event is one line");
        if self.ring.receiver_count() > 0 {
            line.push('\n');
            // Fails when the last stream has just closed.
            let _ = self.ring.send(Some(line.into()));
        }
    }

    /// Lets all streams end after the lines sent so far.
    pub(super) fn end(&self) {
        // Fails when there are none.
        let _ = self.ring.send(None);
    }

    /// A place behind the latest line.
    pub(super) fn subscribe(&self) -> Subscription {
        self.ring.subscribe()
    }
}

type Received = (Result<Option<Bytes>, RecvError>, Subscription);

/// The lines for one client.
pub(super) struct EventStream {
    next: Pin<Box<dyn Future<Output = Received> + Send>>,
    peer: Arc<Peer>,
}

impl EventStream {
    pub fn new(subscription: Subscription, peer: Arc<Peer>) -> Self {
        peer.metrics.event_streams.increment();
        Self { next: Box::pin(receive(subscription)), peer }
    }

    /// The next line; `None` at the end, which comes at once when the client has closed its direction.
    pub fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.peer.poll_end(cx).is_ready() {
            return Poll::Ready(None);
        }
        let (received, subscription) = ready!(self.next.as_mut().poll(cx));
        self.next = Box::pin(receive(subscription));
        Poll::Ready(match received {
            Ok(line) => line,
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(count)) => {
                self.peer.metrics.events_lost.add(count);
                Some(format!("{{\"event\":\"lost\",\"count\":{count}}}\n").into())
            }
        })
    }
}

async fn receive(mut subscription: Subscription) -> Received {
    (subscription.recv().await, subscription)
}
