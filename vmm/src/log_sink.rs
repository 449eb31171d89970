//! Where the monitor's own log lines go: standard error or a file, one line each, with a level and the seconds since
//! start. Lines about the guest's behaviour are rare by design; the guest's console is not a log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use kindling_api::{LogLevel, LoggerConfig};
use kindling_serial::terminal::is_raw;
use log::{LevelFilter, Log, Metadata, Record};

struct Sink {
    /// None: standard error.
    file: Option<Mutex<File>>,
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
        Some(path) => Some(Mutex::new(open(path)?)),
        None => None,
    };
    let sink = Sink {
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
        let end = if self.file.is_none() && is_raw() { "\r\n" } else { "\n" };
        line.push_str(&format!(": {}{end}", record.args()));
        // A full or vanished destination loses the line: the guest must not wait for a log.
        let _ = match &self.file {
            None => io::stderr().write_all(line.as_bytes()),
            Some(file) => {
                file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).write_all(line.as_bytes())
            }
        };
    }

    fn flush(&self) {}
}
