#![no_main]
//! Bytes to the HTTP server, over its socket, in pieces of a size that the first of them tells. Whatever they are, the
//! connection must end once the client has closed its direction, and what comes back must be well-formed answers, those of
//! failures with a fault in JSON.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kindling_api::server::{Limits, Request, Requests, Server};
use kindling_api::{Fault, Reply, Status};
use libfuzzer_sys::fuzz_target;

/// Requests of the present input.
static COUNT: AtomicU32 = AtomicU32::new(0);

static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("kindling-api-fuzz-{}", std::process::id()));
    let limits = Limits { body: 1000, connections: 10 };
    let server = Server::bind(&path, limits).and_then(|server| server.start(|| Ok(())));
    let Ok((mut requests, _)) = server else { std::process::abort() };
    std::thread::spawn(move || serve(&mut requests));
    // SAFETY: the first may be called at the end of the process; the second changes what Rust's `main`, which is not here,
    // changes as well.
    unsafe {
        libc::atexit(tidy_up);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
    path
});

extern "C" fn tidy_up() {
    let _ = std::fs::remove_file(&*PATH);
}

fn serve(requests: &mut Requests) {
    loop {
        let mut poll = libc::pollfd { fd: requests.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives across the call.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        while let Some(request) = requests.take() {
            answer(request);
        }
    }
}

/// Gives answers of all kinds in turn.
fn answer(request: Request) {
    request.answer(match COUNT.fetch_add(1, Ordering::Relaxed) % 6 {
        0 => Ok(Reply::Empty),
        1 => Ok(Reply::Json("{\"a\": 1}".to_owned())),
        2 => Ok(Reply::Text { content_type: "text/plain", body: "text".to_owned() }),
        3 => Err(Fault { status: Status::BadRequest, message: "\"no\"".to_owned() }),
        4 => return,
        _ => Ok(Reply::Events),
    });
}

fuzz_target!(|input: &[u8]| {
    let Some((size, input)) = input.split_first() else { return };
    COUNT.store(0, Ordering::Relaxed);
    let Ok(mut stream) = UnixStream::connect(&*PATH) else { std::process::abort() };
    let mut answers = Vec::new();
    for piece in input.chunks(if *size == 0 { input.len().max(1) } else { usize::from(*size) }) {
        // Fails when the server has seen enough.
        let _ = stream.write_all(piece);
    }
    let _ = stream.shutdown(Shutdown::Write);
    let timeout = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let read = stream.read_to_end(&mut answers);
    assert!(timeout.is_ok() && read.is_ok(), "{read:?} after {:?}", String::from_utf8_lossy(&answers));
    let mut rest = answers.as_slice();
    while !rest.is_empty() {
        rest = check(rest).unwrap_or_else(|| std::process::abort());
    }
});

/// Checks the first answer and returns what follows it.
fn check(answers: &[u8]) -> Option<&[u8]> {
    let end = answers.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let (head, rest) = answers.split_at(end);
    let head = str::from_utf8(head).ok()?;
    assert!(head.starts_with("HTTP/1.1 ") || head.starts_with("HTTP/1.0 "), "{head}");
    let status: u16 = head.get(9..12)?.parse().ok()?;
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    if matches!(status, 100 | 204) {
        assert!(field("Content-Length").is_none(), "{head}");
        return Some(rest);
    }
    let Some(len) = field("Content-Length") else {
        // A stream of events, which is empty, and in chunks unless the client is an old one.
        assert_eq!(status, 200);
        return if field("Transfer-Encoding").is_some() {
            rest.strip_prefix(b"0\r\n\r\n")
        } else {
            Some(rest)
        };
    };
    if rest.is_empty() || rest.starts_with(b"HTTP/1.") {
        // An answer to HEAD.
        return Some(rest);
    }
    let (body, rest) = rest.split_at_checked(len.parse().ok()?)?;
    if status >= 400 {
        assert_eq!(field("Content-Type"), Some("application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_slice(body).ok()?;
        assert!(body.get("fault_message")?.is_string());
    }
    Some(rest)
}
