//! Where the monitor's own log lines go: standard error, a file or a FIFO. The guest's console is not a log.
//!
//! A line is `<UTC> vmm [ID] [LEVEL] [FILE:LINE]: <text>`; the parts in brackets are there if they were asked for, and
//! without their brackets. Lines about the guest's behaviour are rare by design, and each place in the source is limited
//! besides. What is written, lost and left out is counted.
//!
//! Settings can change while the process runs: `PUT /logger` may come again and again before the guest starts.

mod limit;
mod time;

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::SystemTime;

use kindling_api::{FieldError, LogLevel, LoggerConfig};
use kindling_metrics::{Metrics, metrics};
use kindling_rate_limiter::{Clock, Monotonic};
use kindling_seccomp_profiles::report_to;
use kindling_serial::terminal::is_raw;
use log::{Level, LevelFilter, Log, Metadata, Record};

use self::limit::{Place, Places};
use self::time::Utc;
use crate::devices::lock;
use crate::line_output::LineOutput;

static SINK: LazyLock<Sink> = LazyLock::new(Sink::new);

/// Whether the program's logger is this one.
static INSTALLED: AtomicBool = AtomicBool::new(false);

metrics! {
    /// What became of the log's lines.
    pub struct LoggerMetrics {
        /// Log lines that were written.
        lines: Counter,
        /// Log lines that were lost, since their destination was full, gone or could not be written.
        lost_lines: Counter,
        /// Log lines that were left out, since there were too many from the same place in the source.
        suppressed_lines: Counter,
    }
}

/// Makes this the program's logger, to standard error and from level `Info` on; to be called once, before the first thread is
/// started. A library user's logger that is there already stays.
pub fn install() {
    if log::set_logger(&*SINK).is_ok() {
        INSTALLED.store(true, Ordering::Relaxed);
        log::set_max_level(filter(LogLevel::default()));
    }
}

/// Changes the settings that `config` has, and leaves the others as they are. A log file is appended to and a FIFO need not
/// have a reader; both are opened here, so that an error answers the request that caused it. What a thread is ended for by its
/// filter of system calls is reported there too, from now on.
///
/// # Errors
///
/// The field at fault, and what is wrong. Nothing has changed then.
pub fn configure(config: &LoggerConfig) -> Result<(), FieldError> {
    SINK.configure(config)?;
    if let Some(level) = config.level
        && INSTALLED.load(Ordering::Relaxed)
    {
        log::set_max_level(filter(level));
    }
    Ok(())
}

/// Names the machine, in one word, in every line from now on: several monitors may log to one place.
pub fn set_id(id: &str) {
    lock(&SINK.state).id = Some(id.to_owned());
}

/// Opens now what the first line would: threads that run with a filter of system calls may not.
pub fn prepare() {
    lock(&SINK.state).output.prepare();
}

/// What became of the lines.
pub fn metrics() -> Arc<dyn Metrics> {
    Arc::<LoggerMetrics>::clone(&SINK.metrics)
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }
}

struct Sink {
    state: Mutex<State>,
    metrics: Arc<LoggerMetrics>,
}

struct State {
    output: LineOutput,
    /// The output is standard error, which may be the terminal that the guest's console has in raw mode.
    standard_error: bool,
    id: Option<String>,
    module: String,
    show_level: bool,
    show_origin: bool,
    places: Places,
}

impl Sink {
    fn new() -> Self {
        let state = State {
            output: LineOutput::standard_error(),
            standard_error: true,
            id: None,
            module: String::new(),
            show_level: false,
            show_origin: false,
            places: Places::default(),
        };
        Self { state: Mutex::new(state), metrics: Arc::default() }
    }

    fn configure(&self, config: &LoggerConfig) -> Result<(), FieldError> {
        config.validate()?;
        let open = |path| {
            LineOutput::open(path)
                .map_err(|cause| FieldError { field: "log_path".to_owned(), cause: cause.to_string() })
        };
        let output = config.log_path.as_deref().map(open).transpose()?;
        let mut state = lock(&self.state);
        if let Some(mut output) = output {
            // Before the descriptor that it has by now is closed. The thread that serves the API is bound already.
            report_to(output.prepare());
            state.output = output;
            state.standard_error = false;
        }
        if let Some(module) = &config.module {
            state.module.clone_from(module);
        }
        state.show_level = config.show_level.unwrap_or(state.show_level);
        state.show_origin = config.show_log_origin.unwrap_or(state.show_origin);
        Ok(())
    }

    fn write(&self, state: &mut State, level: Level, place: Place, text: fmt::Arguments<'_>) {
        let line = state.line(level, place, text);
        match state.output.write(line.as_bytes()) {
            Ok(()) => self.metrics.lines.increment(),
            // A guest, and the end of one, must not wait for the reader of a log.
            Err(_) => self.metrics.lost_lines.increment(),
        }
    }

    /// Says what the limit kept from being said.
    fn note(&self, state: &mut State, place: Place, left_out: u64) {
        let (file, line) = place;
        self.write(state, Level::Warn, place, format_args!("lines left out from {file}:{line}: {left_out}"));
    }
}

impl State {
    fn line(&self, level: Level, place: Place, text: fmt::Arguments<'_>) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut line = format!("{} vmm", Utc(now));
        if let Some(id) = &self.id {
            line.push_str(&format!(" {id}"));
        }
        if self.show_level {
            line.push_str(&format!(" {level}"));
        }
        if self.show_origin {
            let (file, number) = place;
            line.push_str(&format!(" {file}:{number}"));
        }
        line.push_str(": ");
        // Whatever a message quotes, it stays one line.
        for c in text.to_string().chars() {
            match c.is_control() {
                true => line.extend(c.escape_default()),
                false => line.push(c),
            }
        }
        // A terminal in raw mode does not return the carriage by itself.
        let raw = self.standard_error && is_raw() && io::stderr().is_terminal();
        line.push_str(if raw { "\r\n" } else { "\n" });
        line
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(&lock(&self.state).module)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let place = (record.file_static().unwrap_or("?"), record.line().unwrap_or(0));
        let mut state = lock(&self.state);
        match state.places.admit(place, Monotonic.now()) {
            Some(left_out) => {
                if left_out > 0 {
                    self.note(&mut state, place, left_out);
                }
                self.write(&mut state, record.level(), place, *record.args());
            }
            None => self.metrics.suppressed_lines.increment(),
        }
    }

    /// Lines are not kept back; but what the limit left out last is said here.
    fn flush(&self) {
        let mut state = lock(&self.state);
        let left_out: Vec<_> = state.places.take_left_out().collect();
        for (place, left_out) in left_out {
            self.note(&mut state, place, left_out);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::read_to_string;
    use std::path::Path;

    use super::*;
    use crate::line_output::tests::fifo;

    fn to(path: &Path) -> LoggerConfig {
        LoggerConfig { log_path: Some(path.to_owned()), ..LoggerConfig::default() }
    }

    fn log(sink: &Sink, target: &str, line: u32, text: &str) {
        let mut record = Record::builder();
        record.level(Level::Warn).target(target).file_static(Some("src/door.rs")).line(Some(line));
        sink.log(&record.args(format_args!("{text}")).build());
    }

    /// The log's lines without their time, which every line has.
    fn lines(path: &Path) -> Vec<String> {
        let without_time = |line: &str| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert_eq!((time.len(), time.matches(['-', 'T', ':', '.', 'Z']).count()), (27, 7), "{line}");
            rest.to_owned()
        };
        read_to_string(path).unwrap().lines().map(without_time).collect()
    }

    fn counted(sink: &Sink) -> [u64; 3] {
        let metrics = &sink.metrics;
        [metrics.lines.get(), metrics.lost_lines.get(), metrics.suppressed_lines.get()]
    }

    #[test]
    fn settings_change_one_by_one_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let sink = Sink::new();
        let then = |change: LoggerConfig| {
            sink.configure(&change).unwrap();
            log(&sink, "vmm::door", 7, "open");
        };
        then(to(&path));
        then(LoggerConfig { show_level: Some(true), ..LoggerConfig::default() });
        then(LoggerConfig { show_log_origin: Some(true), ..LoggerConfig::default() });
        then(LoggerConfig { module: Some("elsewhere".into()), ..LoggerConfig::default() });
        lock(&sink.state).id = Some("web1".into());
        then(LoggerConfig { module: Some("vmm".into()), show_level: Some(false), ..LoggerConfig::default() });
        let expected =
            ["vmm: open", "vmm WARN: open", "vmm WARN src/door.rs:7: open", "vmm web1 src/door.rs:7: open"];
        assert_eq!(lines(&path), expected);
        assert_eq!(counted(&sink), [4, 0, 0]);
    }

    #[test]
    fn the_log_moves_from_one_file_to_another() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        let sink = Sink::new();
        for (path, text) in [(&first, "one"), (&second, "two"), (&first, "three")] {
            sink.configure(&to(path)).unwrap();
            log(&sink, "vmm", 1, text);
        }
        assert_eq!(lines(&first), ["vmm: one", "vmm: three"]);
        assert_eq!(lines(&second), ["vmm: two"]);
    }

    #[test]
    fn a_refused_change_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let sink = Sink::new();
        sink.configure(&to(&path)).unwrap();
        for bad in [folder.path(), Path::new("/nonexistent/log"), Path::new("")] {
            let config = LoggerConfig { show_level: Some(true), module: Some("no".into()), ..to(bad) };
            assert_eq!(sink.configure(&config).unwrap_err().field, "log_path");
        }
        log(&sink, "vmm", 1, "still here");
        assert_eq!(lines(&path), ["vmm: still here"]);
    }

    #[test]
    fn one_place_cannot_fill_the_log_and_what_it_lacks_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let sink = Sink::new();
        sink.configure(&to(&path)).unwrap();
        for _ in 0..1_000 {
            log(&sink, "vmm", 1, "flood");
        }
        log(&sink, "vmm", 2, "heard");
        sink.flush();
        sink.flush();
        let lines = lines(&path);
        assert_eq!(lines[..10], ["vmm: flood"; 10]);
        assert_eq!(lines.iter().filter(|line| *line == "vmm: heard").count(), 1);
        // A slow machine takes seconds, after each of which there is one line more.
        let notes =
            lines.iter().filter_map(|line| line.strip_prefix("vmm: lines left out from src/door.rs:1: "));
        let left_out: u64 = notes.map(|number| number.parse::<u64>().unwrap()).sum();
        let floods = lines.iter().filter(|line| *line == "vmm: flood").count() as u64;
        assert!(floods < 100 && left_out + floods == 1_000, "{lines:?}");
        assert_eq!(counted(&sink), [lines.len() as u64, 0, left_out]);
    }

    #[test]
    fn a_message_stays_on_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let sink = Sink::new();
        sink.configure(&to(&path)).unwrap();
        log(&sink, "vmm", 1, "a\n2026 vmm: forged\u{1b}[2J\u{85}é");
        assert_eq!(lines(&path), ["vmm: a\\n2026 vmm: forged\\u{1b}[2J\\u{85}é"]);
    }

    #[test]
    fn lines_that_nobody_takes_are_lost_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(&folder);
        let sink = Sink::new();
        sink.configure(&to(&path)).unwrap();
        let text = "x".repeat(4_000);
        // The FIFO has room for 65,536 bytes. Each line comes from another place.
        (0..20).for_each(|place| log(&sink, "vmm", place, &text));
        assert_eq!(counted(&sink), [16, 4, 0]);
    }

    #[test]
    fn the_programs_log_follows_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        install();
        configure(&LoggerConfig { level: Some(LogLevel::Warning), ..to(&path) }).unwrap();
        log::info!("quiet");
        log::warn!("loud");
        configure(&LoggerConfig { level: Some(LogLevel::Info), ..LoggerConfig::default() }).unwrap();
        log::info!("not so quiet");
        let lines = lines(&path);
        let has = |text: &str| lines.iter().any(|line| line.ends_with(text));
        assert!(!has(": quiet") && has(": loud") && has(": not so quiet"), "{lines:?}");
    }
}
