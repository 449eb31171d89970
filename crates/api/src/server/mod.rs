//! The HTTP server: HTTP/1.0 and 1.1 on a Unix stream socket.
//!
//! One thread serves all connections. It reads requests, checks them by [`route`](crate::route) and puts them into a queue, in
//! the order in which they are complete; whoever owns the virtual machine takes them out through [`Requests`], acts on them and
//! answers. A connection has one request in the queue at most, so that what clients can make the server keep is bounded: by the
//! number of connections, the size of a body and the size of a head, 16 KiB.
//!
//! Every error is JSON, `{"fault_message": "…"}`, those of requests that are no HTTP too. A connection stays open until its
//! client closes it or sends something that cannot be read, however long it does nothing.
//!
//! ```
//! use std::path::Path;
//!
//! use kindling_api::Reply;
//! use kindling_api::client::Client;
//! use kindling_api::server::{Limits, Server};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = &folder.path().join("api.socket");
//! let server = Server::bind(path, Limits::default())?;
//! let (mut requests, _events) = server.start(|| Ok(()))?;
//! let client = Client::new(path);
//! let asking = std::thread::spawn(move || client.get("/version"));
//!
//! // A monitor waits until the descriptor of `requests` is readable.
//! let request = loop {
//!     match requests.take() {
//!         Some(request) => break request,
//!         None => std::thread::yield_now(),
//!     }
//! };
//! request.answer(Ok(Reply::Json(r#"{"firecracker_version": "1.13.0"}"#.to_owned())));
//! assert_eq!(asking.join().unwrap()?.status, 200);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accept;
mod connection;
mod events;
mod metrics;
mod reply;
mod requests;
mod service;
mod socket_file;
mod thread;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::mpsc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

use accept::Acceptor;
pub use events::EventSender;
pub use metrics::ServerMetrics;
use requests::RequestSender;
pub use requests::{Request, Requests, Responder};
use service::Service;
use socket_file::SocketFile;
use thread::ServerThread;

/// Longest path of a Unix socket in bytes (`sun_path` of unix(7), less its NUL).
pub const PATH_MAX_LEN: usize = 107;

/// How much clients may ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Largest body of a request in bytes. A larger one gets 413.
    pub body: usize,
    /// Connections that are served at a time. The next one gets 503 and is closed.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 51_200, connections: 10 }
    }
}

/// Why there is no server.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Something is at the path already.
    #[error("cannot listen on {}: the path exists already", path.display())]
    Exists {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path does not fit in a socket's address.
    #[error("cannot listen on {}: a socket's path must have 1 to {PATH_MAX_LEN} bytes", path.display())]
    PathLength {
        /// The socket's path.
        path: PathBuf,
    },
    /// The socket could not be created.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no thread, descriptor or memory left.
    #[error("cannot start the API's thread")]
    Start(#[source] io::Error),
    /// The caller's function failed on the new thread.
    #[error("cannot set up the API's thread")]
    SetUp(#[source] io::Error),
}

/// A socket that listens, before anybody serves it: clients can connect and have to wait.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
    limits: Limits,
}

impl Server {
    /// Creates the socket at `path`, where nothing may be. It is removed when what serves it is dropped.
    ///
    /// # Errors
    ///
    /// [`ServerError::Exists`], [`ServerError::PathLength`] or [`ServerError::Listen`], each with the path.
    pub fn bind(path: &Path, limits: Limits) -> Result<Self, ServerError> {
        // An empty path would be taken for the wish for any name.
        if !(1..=PATH_MAX_LEN).contains(&path.as_os_str().as_bytes().len()) {
            return Err(ServerError::PathLength { path: path.to_owned() });
        }
        let listen = |path: &Path| {
            let listener = UnixListener::bind(path)?;
            let file = SocketFile::new(path)?;
            listener.set_nonblocking(true)?;
            Ok(Self { listener, file, limits })
        };
        listen(path).map_err(|source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ServerError::Exists { path: path.to_owned() },
            _ => ServerError::Listen { path: path.to_owned(), source },
        })
    }

    /// Starts the thread `api`, which serves the socket. `set_up` runs on it before anything else, to confine it for
    /// example: after it the thread makes no descriptors but those of connections.
    ///
    /// # Errors
    ///
    /// [`ServerError::Start`], or [`ServerError::SetUp`] with what `set_up` returned. The socket is removed then.
    pub fn start(
        self,
        set_up: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(Requests, EventSender), ServerError> {
        let events = EventSender::new();
        let metrics = Arc::new(ServerMetrics::default());
        let waiting = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE).map_err(ServerError::Start)?;
        let waiting = Arc::new(waiting);
        let (sender, queue) = mpsc::unbounded_channel();
        let service = Service {
            requests: RequestSender { queue: sender, waiting: Arc::clone(&waiting), events: events.clone() },
            body_limit: self.limits.body,
            metrics: Arc::clone(&metrics),
        };
        let acceptor = Acceptor::new(service, self.limits.connections);
        let thread = ServerThread::spawn(self.listener, acceptor, events.clone(), set_up)?;
        Ok((Requests { queue, file: self.file, _thread: thread, waiting, metrics }, events))
    }
}
