//! A connection to a client, as hyper and the other parts of the server see it.
//!
//! hyper answers by itself what it cannot read as HTTP, without a body. Since every error is to be JSON, such an answer is
//! replaced here, where it is written.
//!
//! A connection that is closed with bytes unread is *reset*: a client that still sends them may not get to the answer
//! that says why they are not wanted. So a connection is closed in our direction first, and what comes is thrown away
//! until the client has closed, or for a second (RFC 9112, 9.6).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::AsyncWrite;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::ServerMetrics;
use super::reply::raw_fault;

/// Bytes at which the head of a request is too large.
pub(super) const HEAD_BYTES: usize = 16 << 10;

/// Most header fields of a request: what hyper takes by default.
const HEAD_FIELDS: usize = 100;

/// Bytes that are read at once.
const READ_BYTES: usize = 4 << 10;

/// How long a client has to close a connection after the answer that ends it.
const LINGER: Duration = Duration::from_secs(1);

/// The client's side of a connection: what comes from it, and what is known of it.
#[derive(Debug)]
pub(super) struct Peer {
    reader: OwnedReadHalf,
    cut_short: AtomicBool,
    pub metrics: Arc<ServerMetrics>,
}

/// A connection for hyper to read and write.
#[derive(Debug)]
pub(super) struct Io {
    peer: Arc<Peer>,
    writer: OwnedWriteHalf,
    /// What is written before the end.
    last_words: Vec<u8>,
}

/// The two views of a connection. The second, when it is dropped, closes our direction.
pub(super) fn split(stream: UnixStream, metrics: Arc<ServerMetrics>) -> (Arc<Peer>, Io) {
    let (reader, writer) = stream.into_split();
    let peer = Arc::new(Peer { reader, cut_short: AtomicBool::new(false), metrics });
    (Arc::clone(&peer), Io { peer, writer, last_words: Vec::new() })
}

impl Peer {
    /// Reads what there is, nothing at the end of what the client sends.
    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.reader.as_ref().poll_read_ready(cx))?;
            match self.reader.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Throws away what comes, until the client has closed its direction or is gone.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        // This is not without end: now and then a ready socket says that it is not, to let others have their turn.
        while ready!(self.poll_read(cx, &mut [0; READ_BYTES])).is_ok_and(|len| len > 0) {}
        Poll::Ready(())
    }

    /// The answer that is given now is the last one, and does not wait for the rest of its request.
    pub fn cut_short(&self) {
        self.cut_short.store(true, Ordering::Relaxed);
    }

    pub fn is_cut_short(&self) -> bool {
        self.cut_short.load(Ordering::Relaxed)
    }

    /// Waits until the client has closed its direction; ours is closed already.
    pub async fn linger(&self) {
        // Whether the client has closed or time is up makes no difference.
        let _ = timeout(LINGER, poll_fn(|cx| self.poll_end(cx))).await;
    }
}

impl Io {
    /// Lets the connection end with a fault that answers no request.
    pub fn answer_at_end(&mut self, status: StatusCode, message: &str) {
        self.last_words = raw_fault(status, message).into_bytes();
    }
}

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffer = [0; READ_BYTES];
        let buffer = buffer.get_mut(..READ_BYTES.min(cursor.remaining())).unwrap_or_default();
        let len = ready!(self.peer.poll_read(cx, buffer))?;
        cursor.put_slice(buffer.get(..len).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [answer] = slices
            && let Some(status) = status_of_refusal(answer)
        {
            self.answer_at_end(status, &message_of_refusal(status));
            self.peer.cut_short();
            self.peer.metrics.malformed_requests.increment();
            return Poll::Ready(Ok(answer.len()));
        }
        Pin::new(&mut self.writer).poll_write_vectored(cx, slices)
    }

    /// Without it hyper would copy every body, and keep the memory for as long as the connection is open.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.last_words.is_empty() {
            let len = ready!(Pin::new(&mut this.writer).poll_write(cx, &this.last_words))?;
            this.last_words.drain(..len);
        }
        Pin::new(&mut this.writer).poll_shutdown(cx)
    }
}

/// The status of an answer that hyper gives by itself: a client error without a body, which this server never gives.
fn status_of_refusal(answer: &[u8]) -> Option<StatusCode> {
    let status = answer.strip_prefix(b"HTTP/1.1 ").or_else(|| answer.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    let status = StatusCode::from_bytes(status).ok()?;
    (status.is_client_error() && answer.ends_with(b"Content-Length: 0\r\n\r\n")).then_some(status)
}

fn message_of_refusal(status: StatusCode) -> String {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            format!("the request's head has {HEAD_BYTES} bytes or more, or more than {HEAD_FIELDS} fields")
        }
        _ => "the request is not valid HTTP/1.1".to_owned(),
    }
}
