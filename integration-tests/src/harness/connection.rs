//! A connection to the API for many requests, one after the other: what a client that keeps it open pays for each.
//!
//! Tests of single requests use `kindling_api::client`, which opens a connection for each.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection that stays open.
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects to the socket at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(super::scaled(LIMIT)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and reads its answer: status and body.
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        self.send(method, path, body)?;
        self.answer()
    }

    /// Sends a request, whose answer comes after those of the requests before it.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<()> {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes())
    }

    /// Reads the next answer: status and body.
    pub fn answer(&mut self) -> io::Result<(u16, String)> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer");
        let line = self.line()?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(invalid)?;
        let mut length = 0;
        loop {
            let line = self.line()?;
            match line.split_once(": ") {
                None if line.is_empty() => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().map_err(|_| invalid())?;
                }
                _ => {}
            }
        }
        let mut body = String::new();
        (&mut self.0).take(length).read_to_string(&mut body)?;
        Ok((status, body))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
