//! Accepting connections, serving them, and refusing those that are too many.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::StatusCode;
use hyper::rt::Write;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::ServerMetrics;
use super::connection::{self, HEAD_BYTES};
use super::service::Service;

/// How long clients are left waiting when the system has no descriptor or memory for them.
const PAUSE: Duration = Duration::from_millis(100);

/// Refused clients that are waited for at a time until they close.
const LINGERING: usize = 64;

/// Decides who is served.
#[derive(Debug)]
pub(super) struct Acceptor {
    service: Arc<Service>,
    connections: Arc<Semaphore>,
    lingering: Arc<Semaphore>,
}

impl Acceptor {
    /// Lets at most `connections` be served at a time.
    pub fn new(service: Service, connections: usize) -> Self {
        Self {
            service: Arc::new(service),
            connections: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            lingering: Arc::new(Semaphore::new(LINGERING)),
        }
    }

    /// Accepts connections until `stopped` has a value or no sender.
    pub async fn run(&self, listener: &UnixListener, mut stopped: Receiver<()>) {
        loop {
            match unless(&mut stopped, poll_fn(|cx| listener.poll_accept(cx))).await {
                None => return,
                Some(Ok((stream, _))) => {
                    if self.connections.available_permits() == 0 {
                        // A client that closes a connection and opens another is to find the place of the first: let the
                        // others see what has happened to them before.
                        tokio::task::yield_now().await;
                    }
                    self.admit(stream);
                }
                Some(Err(_)) => {
                    // The client stays in the queue, and the listening socket readable.
                    self.service.metrics.accept_failures.increment();
                    if unless(&mut stopped, sleep(PAUSE)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn admit(&self, stream: UnixStream) {
        match Arc::clone(&self.connections).try_acquire_owned() {
            Ok(place) => {
                self.service.metrics.connections.increment();
                tokio::spawn(serve(Arc::clone(&self.service), stream, place));
            }
            Err(_) => {
                self.service.metrics.connections_refused.increment();
                let metrics = Arc::clone(&self.service.metrics);
                tokio::spawn(refuse(stream, metrics, Arc::clone(&self.lingering)));
            }
        }
    }
}

/// What `future` comes to, or `None` if it is stopped before.
async fn unless<F: Future>(stopped: &mut Receiver<()>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match Pin::new(&mut *stopped).poll(cx) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => future.as_mut().poll(cx).map(Some),
    })
    .await
}

/// Serves one connection until either side closes it. A client that has closed its side gets the answers it has asked for.
async fn serve(service: Arc<Service>, stream: UnixStream, _place: OwnedSemaphorePermit) {
    let (peer, io) = connection::split(stream, Arc::clone(&service.metrics));
    let call = service_fn(|request| {
        let (service, peer) = (Arc::clone(&service), Arc::clone(&peer));
        async move { Ok::<_, Infallible>(service.call(request, &peer).await) }
    });
    // An error is the client's, and what it can be told of it has been told.
    let _ = http1::Builder::new()
        .half_close(true)
        .title_case_headers(true)
        .auto_date_header(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(io, call)
        .await;
    peer.linger().await;
}

/// Tells a client that there is no place for it.
async fn refuse(stream: UnixStream, metrics: Arc<ServerMetrics>, lingering: Arc<Semaphore>) {
    let (peer, mut io) = connection::split(stream, metrics);
    io.answer_at_end(StatusCode::SERVICE_UNAVAILABLE, "too many connections are open, try again later");
    // The buffer of a new connection takes the answer whole, so that nobody waits here.
    if poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await.is_ok()
        && let Ok(_place) = lingering.try_acquire()
    {
        peer.linger().await;
    }
}
