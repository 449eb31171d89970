//! Everything a guest's console has shown, and waiting for what it will show.

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::scaled;
use crate::error::{Context, Error, Result};

/// How much is kept; of more, the older half is forgotten.
const KEPT_MAX: usize = 16 << 20;

/// A console: what comes out is collected by a thread, what goes in is written at once.
pub struct Console {
    shared: Arc<Shared>,
    input: Option<Box<dyn Write + Send>>,
    /// Up to where the test has looked.
    seen: usize,
}

#[derive(Default)]
struct Shared {
    shown: Mutex<Shown>,
    more: Condvar,
}

#[derive(Default)]
struct Shown {
    bytes: Vec<u8>,
    /// How many bytes came before `bytes`.
    forgotten: usize,
    ended: bool,
}

impl Shown {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > KEPT_MAX {
            self.bytes.drain(..KEPT_MAX / 2);
            self.forgotten += KEPT_MAX / 2;
        }
    }

    fn since(&self, position: usize) -> &[u8] {
        self.bytes.get(position.saturating_sub(self.forgotten)..).unwrap_or_default()
    }
}

impl Console {
    /// Starts to collect what `output` gives, until its end.
    pub fn new(output: impl Read + Send + 'static, input: Option<Box<dyn Write + Send>>) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || collect(output, &theirs));
        Self { shared, input, seen: 0 }
    }

    /// Types into the console.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let closed = || io::Error::new(io::ErrorKind::BrokenPipe, "the input is closed");
        let input = self.input.as_mut().ok_or_else(closed);
        let sent = input.and_then(|input| input.write_all(bytes).and_then(|()| input.flush()));
        sent.doing(|| format!("cannot send {} bytes to the console", bytes.len()))
    }

    /// Closes the console's input, which a reader sees as its end.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until the console shows `text` after everything waited for so far; returns what came before it.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<Vec<u8>> {
        let limit = scaled(limit);
        let deadline = Instant::now() + limit;
        let wanted = text.as_bytes();
        let mut shown = lock(&self.shared);
        let mut searched = self.seen;
        loop {
            if let Some(at) = find(shown.since(searched), wanted) {
                let at = searched.max(shown.forgotten) + at;
                let start = self.seen.max(shown.forgotten);
                self.seen = at + wanted.len();
                return Ok(shown.since(start).get(..at - start).unwrap_or_default().to_vec());
            }
            // The end may hold the beginning of what is wanted.
            searched = searched.max((shown.forgotten + shown.bytes.len()).saturating_sub(wanted.len()));
            if shown.ended {
                return Err(Error::GuestEnded(format!("{text:?}")));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { what: format!("{text:?} on the console"), after: limit });
            }
            shown = self.shared.more.wait_timeout(shown, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the output has ended.
    pub fn wait_end(&self, limit: Duration) -> Result<()> {
        let limit = scaled(limit);
        let shown = lock(&self.shared);
        let waited = self.shared.more.wait_timeout_while(shown, limit, |shown| !shown.ended);
        match waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            true => Err(Error::Timeout { what: "the end of the console's output".to_owned(), after: limit }),
            false => Ok(()),
        }
    }

    /// Everything shown so far, without carriage returns.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shared).bytes).replace('\r', "")
    }

    /// The last lines shown so far.
    pub fn last_lines(&self, count: usize) -> String {
        let text = self.text();
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Shown> {
    shared.shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn collect(mut output: impl Read, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match output.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A pseudo-terminal whose other end is closed gives EIO.
            Err(_) => 0,
        };
        let mut shown = lock(shared);
        shown.add(buffer.get(..count).unwrap_or_default());
        shown.ended = count == 0;
        shared.more.notify_all();
        if count == 0 {
            return;
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn console() -> (Console, io::PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        (Console::new(reader, None), writer)
    }

    #[test]
    fn each_wait_looks_after_the_one_before() {
        let (mut console, mut output) = console();
        output.write_all(b"one two one").unwrap();
        assert_eq!(console.wait_for("one", SOON).unwrap(), b"");
        assert_eq!(console.wait_for("one", SOON).unwrap(), b" two ");
        let error = console.wait_for("one", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert_eq!(console.text(), "one two one");
    }

    #[test]
    fn text_that_comes_in_pieces_is_found() {
        let (mut console, mut output) = console();
        let writer = std::thread::spawn(move || {
            for byte in b"slowly" {
                output.write_all(&[*byte]).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        console.wait_for("slowly", SOON).unwrap();
        writer.join().unwrap();
    }

    #[test]
    fn the_end_of_the_output_ends_the_wait() {
        let (mut console, mut output) = console();
        output.write_all(b"last words").unwrap();
        drop(output);
        let error = console.wait_for("more", SOON).unwrap_err();
        assert!(matches!(error, Error::GuestEnded(_)), "{error}");
        console.wait_for("words", SOON).unwrap();
        console.wait_end(SOON).unwrap();
    }

    #[test]
    fn a_console_without_end_is_kept_within_bounds() {
        let (mut console, mut output) = console();
        let chunk = vec![b'.'; 1 << 20];
        for _ in 0..40 {
            output.write_all(&chunk).unwrap();
        }
        output.write_all(b"end").unwrap();
        drop(output);
        console.wait_for("end", SOON).unwrap();
        assert!(console.text().len() <= KEPT_MAX);
        assert!(console.wait_for("end", SOON).is_err());
    }

    #[test]
    fn the_last_lines_are_the_last() {
        let (mut console, mut output) = console();
        output.write_all(b"a\r\nb\r\nc\r\n").unwrap();
        console.wait_for("c\r\n", SOON).unwrap();
        assert_eq!(console.last_lines(2), "b\nc");
    }
}
