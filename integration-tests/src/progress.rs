//! What a person sees while something is prepared: a spinner on a terminal, a line per finished step elsewhere.
//!
//! Everything goes to standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps quicker than this are not worth a line.
const QUICK: Duration = Duration::from_millis(500);

/// Shows steps as they happen.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Looks whether standard error is a terminal.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Runs `work`, showing `what` meanwhile and the time it took afterwards.
    pub fn during<T, E>(&self, what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        let spinner = self.spinner(what);
        let result = work();
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        let took = start.elapsed();
        match &result {
            Err(_) => eprintln!("  {what}: failed after {:.1} s", took.as_secs_f64()),
            Ok(_) if took >= QUICK => eprintln!("  {what}: {:.1} s", took.as_secs_f64()),
            Ok(_) => {}
        }
        result
    }

    /// Prints a line that stays.
    pub fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    fn spinner(&self, what: &str) -> Option<ProgressBar> {
        if !self.terminal {
            return None;
        }
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.set_message(what.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Some(spinner)
    }
}
