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
/// have a reader; both are opened here, so that an error answers the request that caused it.
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

/// Names the machine in every line from now on: several monitors may log to one place.
pub fn set_id(id: &str) {
    lock(&SINK.state).id = Some(id.to_owned());
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
        if let Some(output) = output {
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
        match state.output.write(state.line(level, place, text).as_bytes()) {
            Ok(()) => self.metrics.lines.increment(),
            // A guest, and the end of one, must not wait for the reader of a log.
            Err(_) => self.metrics.lost_lines.increment(),
        }
    }

    /// Says what the limit kept from being said.
    fn note(&self, state: &mut State, place: Place, left_out: u64) {
        let (file, line) = place;
        let text = format_args!("left out {left_out} more lines like this, from {file}:{line}");
        self.write(state, Level::Warn, place, text);
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
