//! Where the monitor's own log lines go: standard error or a file, one line each, with a level and the seconds since
//! start. Lines about the guest's behaviour are rare by design; the guest's console is not a log.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use kindling_api::{LogLevel, LoggerConfig};
use kindling_serial::Backend;
use kindling_serial::terminal::is_raw;
use log::{LevelFilter, Log, Metadata, Record};

use crate::devices::lock;

struct Sink {
    /// Opened by the first line; nothing is lost by it, and nothing is paid for a log that stays empty.
    output: OnceLock<Option<Mutex<Backend>>>,
    /// None: standard error.
    file: Option<File>,
    /// Standard error is a terminal.
    terminal: bool,
    started: Instant,
    module: Option<String>,
    show_level: bool,
    show_origin: bool,
}

/// Installs the log sink that `config` describes; to be called once, before the first thread is started.
///
/// A log file is appended to, a FIFO is opened without waiting for its reader.
pub fn install(config: &LoggerConfig) -> io::Result<()> {
    let file = match &config.log_path {
        Some(path) => Some(open(path)?),
        None => None,
    };
    let sink = Sink {
        output: OnceLock::new(),
        terminal: file.is_none() && io::stderr().is_terminal(),
        file,
        started: Instant::now(),
        module: config.module.clone(),
        show_level: config.show_level.unwrap_or(false),
        show_origin: config.show_log_origin.unwrap_or(false),
    };
    let level = match config.level.unwrap_or_default() {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    };
    // A second call would come from a library user who has a logger already: theirs stays.
    if log::set_boxed_logger(Box::new(sink)).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    let is_fifo = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    OpenOptions::new()
        // Reading too keeps a FIFO open while its reader comes and goes.
        .read(is_fifo)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

impl Sink {
    /// Writes what can be written without waiting: a guest, and the end of one, must not wait for the reader of a log.
    fn write(&self, line: &[u8]) {
        let output = self.output.get_or_init(|| {
            let backend = match &self.file {
                Some(file) => Backend::output(file.as_fd()),
                None => Backend::output(io::stderr().as_fd()),
            };
            backend.ok().map(Mutex::new)
        });
        if let Some(output) = output {
            // A full or vanished destination loses the line.
            let _ = lock(output).write(line);
        }
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.module.as_ref().is_none_or(|module| metadata.target().starts_with(module.as_str()))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = format!("{:.6} vmm", self.started.elapsed().as_secs_f64());
        if self.show_level {
            line.push_str(&format!(" {}", record.level()));
        }
        if self.show_origin {
            line.push_str(&format!(" {}:{}", record.file().unwrap_or("?"), record.line().unwrap_or(0)));
        }
        // A terminal in raw mode does not return the carriage by itself.
        let end = if self.terminal && is_raw() { "\r\n" } else { "\n" };
        line.push_str(&format!(": {}{end}", record.args()));
        self.write(line.as_bytes());
    }

    fn flush(&self) {}
}
