//! Requests on their way from the server's thread to whoever acts on them, and their answers on the way back.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use vmm_sys_util::eventfd::EventFd;

use super::ServerMetrics;
use super::events::{EventSender, Subscription};
use super::socket_file::SocketFile;
use super::thread::ServerThread;
use crate::{Action, Fault, Reply, Status};

/// What clients ask for. Its descriptor is readable while a request waits.
///
/// The server serves for as long as this lives. When it is dropped, the socket's file is removed, requests without an
/// answer get 503, streams of events end after what has been sent, and all connections are closed.
#[derive(Debug)]
pub struct Requests {
    // Dropped in this order: waiting requests are refused first, and no client finds a server that is about to end.
    pub(super) queue: mpsc::UnboundedReceiver<Request>,
    pub(super) file: SocketFile,
    pub(super) _thread: ServerThread,
    /// Counts the requests in the queue.
    pub(super) waiting: Arc<EventFd>,
    pub(super) metrics: Arc<ServerMetrics>,
}

impl Requests {
    /// The request that has waited longest, if there is one. It never blocks.
    pub fn take(&mut self) -> Option<Request> {
        self.waiting.read().ok()?;
        self.queue.try_recv().ok()
    }

    /// Ends the server, and leaves the socket's file behind: for clients that take it for a mistake when it is gone.
    pub fn leave_socket(self) {
        // All that dropping it would do is to remove the file.
        std::mem::forget(self.file);
    }

    /// What the server has counted.
    pub fn metrics(&self) -> Arc<ServerMetrics> {
        Arc::clone(&self.metrics)
    }
}

impl AsRawFd for Requests {
    fn as_raw_fd(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub action: Action,
    /// Takes the answer.
    pub responder: Responder,
}

impl Request {
    /// Answers, as [`Responder::answer`].
    pub fn answer(self, answer: Result<Reply, Fault>) {
        self.responder.answer(answer);
    }
}

/// Takes the answer to one request. If it is dropped without one, the client gets 503.
#[derive(Debug)]
pub struct Responder {
    sender: oneshot::Sender<Answer>,
    events: EventSender,
}

/// An answer on its way.
#[derive(Debug)]
pub(super) struct Answer {
    pub result: Result<Reply, Fault>,
    /// Where a stream of events begins: at the moment of the answer.
    pub events: Option<Subscription>,
}

impl Responder {
    /// Hands the answer to the server. It never blocks; a client that has gone loses its answer and nothing else.
    ///
    /// After [`Reply::Events`] the client gets every event that is sent from now on.
    pub fn answer(self, result: Result<Reply, Fault>) {
        let events = matches!(result, Ok(Reply::Events)).then(|| self.events.subscribe());
        // Fails when the server has ended, and then there is nobody to tell.
        let _ = self.sender.send(Answer { result, events });
    }
}

/// The server's end of the queue.
#[derive(Debug)]
pub(super) struct RequestSender {
    pub queue: mpsc::UnboundedSender<Request>,
    pub waiting: Arc<EventFd>,
    pub events: EventSender,
}

impl RequestSender {
    /// Puts a request into the queue and waits for its answer.
    pub async fn ask(&self, action: Action) -> Answer {
        let (sender, answer) = oneshot::channel();
        let responder = Responder { sender, events: self.events.clone() };
        if self.queue.send(Request { action, responder }).is_ok() {
            // Fails when 2^64 requests wait.
            let _ = self.waiting.write(1);
        }
        answer.await.unwrap_or_else(|_| {
            let message = "the request was given up without an answer".to_owned();
            Answer { result: Err(Fault { status: Status::Unavailable, message }), events: None }
        })
    }
}

impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        Self { result: Err(fault), events: None }
    }
}
