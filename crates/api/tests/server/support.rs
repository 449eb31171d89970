//! A served API whose requests a function answers, and connections that say exactly what a test wants.

#![allow(dead_code, reason = "not every test file uses all of it")]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kindling_api::server::{EventSender, Limits, Request, Requests, Server};
use kindling_api::{Fault, Reply};
use kindling_metrics::Metrics;
use serde_json::Value;
use tempfile::TempDir;

/// More than anything here takes; a test that runs into it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A request that any monitor answers.
pub const GET: &str = "GET /version HTTP/1.1\r\n\r\n";

/// A server, and a thread that answers.
pub struct Api {
    pub path: PathBuf,
    pub events: EventSender,
    requests: Option<JoinHandle<Requests>>,
    stop: Arc<AtomicBool>,
    metrics: Arc<dyn Metrics>,
    folder: Option<TempDir>,
}

/// A server whose requests nobody answers any more.
pub struct Stopped {
    pub requests: Requests,
    pub path: PathBuf,
    _folder: TempDir,
}

impl Api {
    /// Answers every request with `answer`.
    pub fn answering(mut answer: impl FnMut() -> Result<Reply, Fault> + Send + 'static) -> Self {
        Self::start(Limits::default(), move |request| request.answer(answer()))
    }

    /// Answers the first request with 1, the second with 2, and so on.
    pub fn counting() -> Self {
        let mut count = 0;
        Self::answering(move || {
            count += 1;
            Ok(Reply::Json(count.to_string()))
        })
    }

    pub fn start(limits: Limits, mut act: impl FnMut(Request) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.socket");
        let (mut requests, events) = Server::bind(&path, limits).unwrap().start(|| Ok(())).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let metrics = requests.metrics();
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(request) = wait_for_request(&mut requests, Duration::from_millis(20)) {
                        act(request);
                    }
                }
                requests
            }
        });
        Self { path, events, requests: Some(thread), stop, metrics, folder: Some(folder) }
    }

    pub fn connect(&self) -> Connection {
        Connection::new(&self.path)
    }

    /// What the server has counted under a name.
    pub fn count(&self, name: &str) -> u64 {
        self.metrics.value(name).unwrap().number()
    }

    /// Asserts that a new client is served.
    pub fn assert_serves(&self) {
        let status = self.connect().ask(GET).status;
        assert!(matches!(status, 200 | 204), "{status}");
    }

    /// Stops answering.
    pub fn stop(mut self) -> Stopped {
        let requests = self.take_requests().unwrap();
        Stopped { requests, path: self.path.clone(), _folder: self.folder.take().unwrap() }
    }

    fn take_requests(&mut self) -> Option<Requests> {
        self.stop.store(true, Ordering::Relaxed);
        self.requests.take().map(|thread| thread.join().unwrap())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.take_requests();
    }
}

/// The next request, if there is one in time.
pub fn wait_for_request(requests: &mut Requests, timeout: Duration) -> Option<Request> {
    is_readable(requests.as_raw_fd(), timeout).then(|| requests.take().expect("readable means a request"))
}

pub fn is_readable(fd: i32, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, which lives across the call.
    unsafe { libc::poll(&raw mut poll, 1, i32::try_from(timeout.as_millis()).unwrap()) == 1 }
}

/// A client's connection.
pub struct Connection {
    pub stream: UnixStream,
    /// What was read and not looked at.
    ahead: Vec<u8>,
}

/// An answer as it crossed the socket.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub version: String,
    pub fields: Vec<(String, String)>,
    pub body: String,
}

impl Connection {
    pub fn new(path: impl AsRef<std::path::Path>) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, ahead: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request);
        self.answer()
    }

    /// Closes the client's direction.
    pub fn finish(&mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Reads one answer with a body of a length that it tells.
    pub fn answer(&mut self) -> Answer {
        let head = self.read_until(b"\r\n\r\n");
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let first: Vec<_> = lines.next().unwrap().splitn(3, ' ').collect();
        let fields = lines.map(|line| line.split_once(": ").unwrap());
        let fields: Vec<_> = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let (version, status) = (first[0].to_owned(), first[1].parse().unwrap());
        let mut answer = Answer { status, version, fields, body: String::new() };
        assert!(!first[2].is_empty(), "{head}");
        if let Some(len) = answer.field("Content-Length") {
            let len = len.parse().unwrap();
            self.read_at_least(len);
            answer.body = String::from_utf8(self.ahead.drain(..len).collect()).unwrap();
        }
        answer
    }

    /// Reads one chunk of a body.
    pub fn chunk(&mut self) -> String {
        let size = String::from_utf8(self.read_until(b"\r\n")).unwrap();
        let size = usize::from_str_radix(size.trim_end(), 16).unwrap();
        self.read_at_least(size + 2);
        let chunk: Vec<_> = self.ahead.drain(..size + 2).collect();
        assert!(chunk.ends_with(b"\r\n"));
        String::from_utf8(chunk[..size].to_vec()).unwrap()
    }

    /// Asserts that the server has closed its direction and that nothing comes before that.
    pub fn assert_closed(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "{rest:?}");
    }

    /// Everything that comes until the server closes its direction.
    pub fn rest(&mut self) -> String {
        let mut rest = std::mem::take(&mut self.ahead);
        self.stream.read_to_end(&mut rest).unwrap();
        String::from_utf8(rest).unwrap()
    }

    /// Whether something can be read in time.
    pub fn is_readable(&self, timeout: Duration) -> bool {
        !self.ahead.is_empty() || is_readable(self.stream.as_raw_fd(), timeout)
    }

    fn read_until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end) {
                return self.ahead.drain(..at + end.len()).collect();
            }
            self.read_at_least(self.ahead.len() + 1);
        }
    }

    fn read_at_least(&mut self, len: usize) {
        let mut buffer = [0; 65_536];
        while self.ahead.len() < len {
            let read = self.stream.read(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&self.ahead);
            assert!(read > 0, "the server closed the connection after {text:?}");
            self.ahead.extend_from_slice(&buffer[..read]);
        }
    }
}

impl Answer {
    /// The value of the only header field with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(field, _)| field == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "two of {name}");
        value
    }

    /// Asserts that this is a fault as it is promised, and returns its message.
    #[track_caller]
    pub fn assert_fault(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.field("Content-Type"), Some("application/json"), "{self:?}");
        let body: Value = serde_json::from_str(&self.body).unwrap();
        let body = body.as_object().unwrap();
        assert_eq!(body.len(), 1, "{self:?}");
        let message = body["fault_message"].as_str().unwrap();
        assert!(!message.is_empty());
        message.to_owned()
    }
}

/// A request with a JSON text of `len` bytes.
pub fn put(len: usize) -> String {
    let body = json(len);
    format!("PUT /mmds HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A JSON object of `len` bytes, at least 8.
pub fn json(len: usize) -> String {
    format!("{{\"a\":\"{}\"}}", "x".repeat(len - 8))
}

/// Waits until something is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
