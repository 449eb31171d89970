//! A blocking client of the API, for programs and tests that ask a few things of a virtual machine.
//!
//! Every request has a connection of its own. Beside the answers of this crate's server it reads those of any HTTP/1.1
//! server on a Unix socket.

mod http;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use http::BodyReader;

/// How long the server may be silent, unless [`Client::with_timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest event in bytes.
const EVENT_MAX_LEN: u64 = 64 << 10;

/// Why a request had no answer, or not the one that was asked for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens at the path.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke, the server was silent for too long, or its answer is no HTTP.
    #[error("{method} {path} got no answer")]
    Transport {
        /// The request's method.
        method: &'static str,
        /// The request's path.
        path: String,
        /// What the system said, or what is wrong with the answer.
        source: io::Error,
    },
    /// The body of the request is nothing that JSON can carry.
    #[error("cannot write the request's body as JSON")]
    Request(#[source] serde_json::Error),
    /// The body of the answer is no JSON, or not of the form that was asked for.
    #[error("cannot read the answer's body")]
    Answer(#[source] serde_json::Error),
    /// The server refused the request.
    #[error("{message} (status {status})")]
    Fault {
        /// The status, 400 or more.
        status: u16,
        /// The server's `fault_message`, or the whole body if there is none.
        message: String,
    },
}

/// An answer, good or bad.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// The status, such as 204.
    pub status: u16,
    /// The body, empty if there is none.
    pub body: String,
}

impl Response {
    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// [`ClientError::Answer`] if it is none.
    pub fn json(&self) -> Result<Value, ClientError> {
        serde_json::from_str(&self.body).map_err(ClientError::Answer)
    }

    /// The answer, if it is a good one.
    ///
    /// # Errors
    ///
    /// [`ClientError::Fault`] if the status is 400 or more.
    pub fn success(self) -> Result<Self, ClientError> {
        if self.status < 400 {
            return Ok(self);
        }
        let message = self.json().ok().and_then(|body| Some(body.get("fault_message")?.as_str()?.to_owned()));
        Err(ClientError::Fault { status: self.status, message: message.unwrap_or(self.body) })
    }
}

/// Asks the server at one path.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of the server that listens at `path`. Nothing is done before the first request.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self { path: path.as_ref().to_owned(), timeout: DEFAULT_TIMEOUT }
    }

    /// The same, but the server may be silent for `timeout`, which is not zero.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Asks for something.
    ///
    /// # Errors
    ///
    /// If there is no answer; a bad one is no error here, but see [`Response::success`].
    pub fn get(&self, path: &str) -> Result<Response, ClientError> {
        self.request("GET", path, None)
    }

    /// Sets something.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get), and [`ClientError::Request`].
    pub fn put(&self, path: &str, body: &impl Serialize) -> Result<Response, ClientError> {
        self.request("PUT", path, Some(&to_json(body)?))
    }

    /// Changes something.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get), and [`ClientError::Request`].
    pub fn patch(&self, path: &str, body: &impl Serialize) -> Result<Response, ClientError> {
        self.request("PATCH", path, Some(&to_json(body)?))
    }

    /// Removes something.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    pub fn delete(&self, path: &str) -> Result<Response, ClientError> {
        self.request("DELETE", path, None)
    }

    /// Opens a stream of events, `/events` on this crate's server.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get), and [`ClientError::Fault`].
    pub fn events(&self, path: &str) -> Result<Events, ClientError> {
        let failed = |source| transport("GET", path, source);
        let (status, mut reader) = self.send("GET", path, None)?;
        if status >= 400 {
            let body = http::read_text(&mut reader).map_err(failed)?;
            Response { status, body }.success()?;
        }
        let events = Events { reader: BufReader::new(reader), line: Vec::new(), path: path.to_owned() };
        events.set_timeout(None)?;
        Ok(events)
    }

    fn request(&self, method: &'static str, path: &str, body: Option<&str>) -> Result<Response, ClientError> {
        let (status, mut reader) = self.send(method, path, body)?;
        let body = http::read_text(&mut reader).map_err(|source| transport(method, path, source))?;
        Ok(Response { status, body })
    }

    /// Sends a request and reads the status of its answer.
    fn send(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&str>,
    ) -> Result<(u16, BodyReader<BufReader<UnixStream>>), ClientError> {
        let stream = UnixStream::connect(&self.path)
            .map_err(|source| ClientError::Connect { path: self.path.clone(), source })?;
        let exchange = || {
            let timeout = Some(self.timeout);
            stream.set_read_timeout(timeout)?;
            stream.set_write_timeout(timeout)?;
            let request = http::request(method, path, body)?;
            let sent = (&stream).write_all(request.as_bytes());
            let mut reader = BufReader::new(stream);
            match http::read_head(&mut reader) {
                Ok(head) => Ok((head, reader)),
                // A server need not have read a request to refuse it; if it has not, that is what went wrong.
                Err(error) => Err(sent.err().unwrap_or(error)),
            }
        };
        let (head, reader) = exchange().map_err(|source| transport(method, path, source))?;
        Ok((head.status, BodyReader::new(reader, head.body)))
    }
}

/// Events, as they come.
#[derive(Debug)]
pub struct Events {
    reader: BufReader<BodyReader<BufReader<UnixStream>>>,
    /// What is there of the next line.
    line: Vec<u8>,
    path: String,
}

impl Events {
    /// Lets [`next_event`](Self::next_event) wait no longer than `timeout`, which is not zero. At first it waits however
    /// long it takes.
    ///
    /// # Errors
    ///
    /// [`ClientError::Transport`] if the time-out is zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        let stream = self.reader.get_ref().get_ref().get_ref();
        stream.set_read_timeout(timeout).map_err(|source| transport("GET", &self.path, source))
    }

    /// The next event: `None` when the server has ended the stream.
    ///
    /// # Errors
    ///
    /// [`ClientError::Transport`] if the connection breaks, or if there was none in time, after which one can go on;
    /// [`ClientError::Answer`] if the event is no JSON.
    pub fn next_event(&mut self) -> Result<Option<Value>, ClientError> {
        let room = EVENT_MAX_LEN.saturating_sub(u64::try_from(self.line.len()).unwrap_or(u64::MAX));
        self.reader
            .by_ref()
            .take(room)
            .read_until(b'\n', &mut self.line)
            .map_err(|source| transport("GET", &self.path, source))?;
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(ClientError::Answer)
    }
}

fn to_json(body: &impl Serialize) -> Result<String, ClientError> {
    serde_json::to_string(body).map_err(ClientError::Request)
}

fn transport(method: &'static str, path: &str, source: io::Error) -> ClientError {
    ClientError::Transport { method, path: path.to_owned(), source }
}
