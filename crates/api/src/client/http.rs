//! HTTP/1.1 as far as a client needs it: writing a request, reading the head of an answer (RFC 9112, 3 to 6), and its
//! body whatever tells its length (RFC 9112, 6.3).

use std::io::{self, BufRead, Read};

/// Largest head of an answer in bytes.
const HEAD_MAX_LEN: u64 = 64 << 10;

/// Largest body of an answer in bytes, but for a stream of events.
const BODY_MAX_LEN: u64 = 64 << 20;

/// Longest line in front of a chunk in bytes.
const CHUNK_LINE_MAX_LEN: u64 = 1 << 10;

/// What an answer begins with.
#[derive(Debug)]
pub(super) struct Head {
    pub status: u16,
    pub body: BodyLength,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum BodyLength {
    /// After that many bytes.
    Bytes(u64),
    /// After its last chunk.
    Chunked,
    /// Where the connection ends.
    ToEnd,
}

/// A request whose connection is not used again.
pub(super) fn request(method: &str, path: &str, body: Option<&str>) -> io::Result<String> {
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        let text = "a request's path must begin with / and consist of visible ASCII characters";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    Ok(match body {
        None => format!("{head}\r\n"),
        Some(body) => {
            format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
    })
}

/// Reads the head of an answer, and those of interim answers before it.
pub(super) fn read_head(reader: &mut impl BufRead) -> io::Result<Head> {
    let mut reader = reader.take(HEAD_MAX_LEN);
    loop {
        let status = read_status(&read_line(&mut reader)?)?;
        let body = read_fields(&mut reader)?;
        match status {
            100..200 => {}
            204 | 304 => return Ok(Head { status, body: BodyLength::Bytes(0) }),
            _ => return Ok(Head { status, body }),
        }
    }
}

fn read_status(line: &str) -> io::Result<u16> {
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    status.filter(|status| (100..600).contains(status)).ok_or_else(|| invalid("no HTTP status"))
}

fn read_fields(reader: &mut impl BufRead) -> io::Result<BodyLength> {
    let mut body = BodyLength::ToEnd;
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(body);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header field without a colon"))?;
        if name.eq_ignore_ascii_case("transfer-encoding") {
            body = BodyLength::Chunked;
        } else if name.eq_ignore_ascii_case("content-length") && body != BodyLength::Chunked {
            let len = value.trim().parse().map_err(|_| invalid("an invalid Content-Length"))?;
            body = BodyLength::Bytes(len);
        }
    }
}

/// Reads a body as text.
pub(super) fn read_text(reader: &mut impl Read) -> io::Result<String> {
    let mut text = String::new();
    reader.take(BODY_MAX_LEN.saturating_add(1)).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len <= BODY_MAX_LEN) {
        Ok(text)
    } else {
        Err(invalid("a body that is too large"))
    }
}

/// Reads one body. After a time-out one can go on.
#[derive(Debug)]
pub(super) struct BodyReader<R> {
    reader: R,
    place: Place,
    /// What is there of the line that is being read.
    line: Vec<u8>,
}

/// What comes next in a body.
#[derive(Debug)]
enum Place {
    /// So many bytes, and then the end.
    Bytes(u64),
    /// Whatever there is until the connection ends.
    ToEnd,
    /// The line with a chunk's size.
    ChunkSize,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// A line behind the last chunk.
    Trailer,
}

impl<R: BufRead> BodyReader<R> {
    pub fn new(reader: R, length: BodyLength) -> Self {
        let place = match length {
            BodyLength::Bytes(len) => Place::Bytes(len),
            BodyLength::Chunked => Place::ChunkSize,
            BodyLength::ToEnd => Place::ToEnd,
        };
        Self { reader, place, line: Vec::new() }
    }

    /// Where the body comes from.
    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    /// Goes to the next place where there are bytes, or to the end.
    fn skip_lines(&mut self) -> io::Result<()> {
        loop {
            self.place = match self.place {
                Place::ChunkSize => {
                    let line = self.read_line()?;
                    let size = line.split(';').next().unwrap_or_default().trim();
                    match u64::from_str_radix(size, 16).map_err(|_| invalid("an invalid chunk size"))? {
                        0 => Place::Trailer,
                        size => Place::Chunk(size),
                    }
                }
                Place::Chunk(0) => Place::ChunkEnd,
                Place::ChunkEnd => match self.read_line()?.as_str() {
                    "" => Place::ChunkSize,
                    _ => return Err(invalid("a chunk that is longer than its size")),
                },
                Place::Trailer => match self.read_line()?.as_str() {
                    "" => Place::Bytes(0),
                    _ => Place::Trailer,
                },
                Place::Bytes(_) | Place::ToEnd | Place::Chunk(_) => return Ok(()),
            };
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        self.reader.by_ref().take(CHUNK_LINE_MAX_LEN).read_until(b'\n', &mut self.line)?;
        into_text(std::mem::take(&mut self.line))
    }
}

impl<R: BufRead> Read for BodyReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.skip_lines()?;
        let (Place::Bytes(rest) | Place::Chunk(rest)) = &mut self.place else {
            return self.reader.read(buffer);
        };
        let len = self.reader.by_ref().take(*rest).read(buffer)?;
        if len == 0 && *rest > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer's body ends early"));
        }
        *rest = rest.saturating_sub(u64::try_from(len).unwrap_or(u64::MAX));
        Ok(len)
    }
}

/// Reads one line, without its end.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    into_text(line)
}

fn into_text(mut line: Vec<u8>) -> io::Result<String> {
    if line.pop_if(|byte| *byte == b'\n').is_none() {
        let text = "the server closed the connection, or its answer's head is too large";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    let _ = line.pop_if(|byte| *byte == b'\r');
    String::from_utf8(line).map_err(|_| invalid("a line that is not UTF-8"))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer has {text}"))
}
