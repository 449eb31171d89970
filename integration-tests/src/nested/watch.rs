//! Follows a nested host's console and its init's reports.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::process::ChildStderr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much of the console is kept.
const CONSOLE_KEPT: usize = 4 << 10;

/// QEMU says this of every feature of the processor model that it does not emulate.
const EXPECTED_WARNING: &str = "warning: TCG doesn't support requested feature";

/// The last line of init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The job ended with this code.
    Exit(u8),
    /// The job could not be run.
    Failed(String),
}

struct State {
    began: bool,
    report: Option<Report>,
    last_sign: Instant,
    console: VecDeque<u8>,
}

impl State {
    fn keep<'a>(&mut self, bytes: impl Iterator<Item = &'a u8>) {
        self.console.extend(bytes);
        let excess = self.console.len().saturating_sub(CONSOLE_KEPT);
        self.console.drain(..excess);
    }
}

/// What is known about a host, kept by threads that end with it.
pub struct Watch {
    state: Arc<Mutex<State>>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Starts to read all channels.
    pub fn start(console: PipeReader, control: PipeReader, stderr: Option<ChildStderr>) -> Self {
        let state = State { began: false, report: None, last_sign: Instant::now(), console: VecDeque::new() };
        let state = Arc::new(Mutex::new(state));
        let [one, two, three] = [(); 3].map(|()| Arc::clone(&state));
        let mut threads = vec![
            std::thread::spawn(move || read_console(console, &one)),
            std::thread::spawn(move || read_control(control, &two)),
        ];
        if let Some(stderr) = stderr {
            threads.push(std::thread::spawn(move || read_errors(stderr, &three)));
        }
        Self { state, threads }
    }

    /// Time since the last sign of life.
    pub fn silent_for(&self) -> Duration {
        lock(&self.state).last_sign.elapsed()
    }

    /// Waits for the ends of the channels (the host has to be gone) and returns whether the job began, what init
    /// reported and the end of the console.
    pub fn finish(&mut self) -> (bool, Option<Report>, String) {
        for thread in self.threads.drain(..) {
            // The threads do not panic; if one did, what it has read is still there.
            let _ = thread.join();
        }
        let mut state = lock(&self.state);
        let console = String::from_utf8_lossy(state.console.make_contiguous()).replace('\r', "");
        (state.began, state.report.clone(), console)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_console(mut console: PipeReader, state: &Mutex<State>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        let mut state = lock(state);
        state.last_sign = Instant::now();
        state.keep(buffer.iter().take(count));
    }
}

fn read_errors(stderr: ChildStderr, state: &Mutex<State>) {
    for mut line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        if !String::from_utf8_lossy(&line).contains(EXPECTED_WARNING) {
            line.push(b'\n');
            lock(state).keep(line.iter());
        }
    }
}

fn read_control(control: PipeReader, state: &Mutex<State>) {
    for line in BufReader::new(control).split(b'\n').map_while(Result::ok) {
        let mut state = lock(state);
        state.last_sign = Instant::now();
        match parse(&line) {
            Line::Began => state.began = true,
            Line::Report(report) => state.report = Some(report),
            Line::Alive => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Began,
    Alive,
    Report(Report),
}

fn parse(line: &[u8]) -> Line {
    let line = String::from_utf8_lossy(line);
    match line.trim().split_once(' ') {
        None if line.trim() == "started" => Line::Began,
        Some(("exit", code)) => match code.parse() {
            Ok(code) => Line::Report(Report::Exit(code)),
            Err(_) => Line::Report(Report::Failed(format!("init reported {line:?}"))),
        },
        Some(("failed", why)) => Line::Report(Report::Failed(why.to_owned())),
        _ => Line::Alive,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn reports_are_told_from_signs_of_life() {
        assert_eq!(parse(b"started\r"), Line::Began);
        assert_eq!(parse(b".\r"), Line::Alive);
        assert_eq!(parse(b"exit 42"), Line::Report(Report::Exit(42)));
        assert_eq!(parse(b"failed no luck"), Line::Report(Report::Failed("no luck".to_owned())));
        assert!(matches!(parse(b"exit 999"), Line::Report(Report::Failed(_))));
        assert_eq!(parse(b"\xff\xfe"), Line::Alive);
    }

    #[test]
    fn the_end_of_a_long_console_is_kept() {
        let (console, mut console_end) = std::io::pipe().unwrap();
        let (control, mut control_end) = std::io::pipe().unwrap();
        let mut watch = Watch::start(console, control, None);
        console_end.write_all(&vec![b'a'; 2 * CONSOLE_KEPT]).unwrap();
        console_end.write_all(b"the end").unwrap();
        control_end.write_all(b"started\n.\nexit 3\n").unwrap();
        drop((console_end, control_end));
        let (began, report, console) = watch.finish();
        assert!(began);
        assert_eq!(report, Some(Report::Exit(3)));
        assert_eq!(console.len(), CONSOLE_KEPT);
        assert!(console.ends_with("aathe end"));
    }
}
