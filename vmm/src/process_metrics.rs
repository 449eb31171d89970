//! What the monitor's process itself uses, asked of the system when somebody reads it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::Instant;

use kindling_metrics::{Metrics, Value};

/// See the [module](self).
#[derive(Debug)]
pub struct ProcessMetrics {
    started: Instant,
    /// Open for good: once the process is restricted, it can open nothing in `/proc`.
    stat: Option<File>,
}

impl ProcessMetrics {
    /// For a process that started at the moment `started`.
    pub fn new(started: Instant) -> Self {
        Self { started, stat: File::open("/proc/self/stat").ok() }
    }

    fn stat(&self) -> io::Result<String> {
        let mut stat = self.stat.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut text = String::new();
        stat.rewind()?;
        stat.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Threads and memory are missing where there is no `/proc`, as in a jail.
impl Metrics for ProcessMetrics {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, &'static str, Value)) {
        let uptime = Value::Gauge(self.started.elapsed().as_secs());
        visit("uptime_seconds", "Seconds since the monitor started.", uptime);
        let Some(usage) = self.stat().ok().as_deref().and_then(Usage::parse) else {
            return;
        };
        visit("threads", "Threads of the monitor.", Value::Gauge(usage.threads));
        let memory = Value::Gauge(usage.resident_pages.saturating_mul(page_size()));
        visit("resident_memory_bytes", "Memory of the host in use, the guest's included.", memory);
    }
}

/// What `/proc/self/stat` says (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    threads: u64,
    resident_pages: u64,
}

impl Usage {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, which may hold anything. Fields are counted from 1.
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        let threads = fields.nth(20 - 3)?.parse().ok()?;
        let resident_pages = fields.nth(24 - 21)?.parse().ok()?;
        Some(Self { threads, resident_pages })
    }
}

fn page_size() -> u64 {
    // SAFETY: sysconf takes any number and touches no memory of ours.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_is_seen_with_its_threads_memory_and_age() {
        let metrics = ProcessMetrics::new(Instant::now() - Duration::from_secs(90));
        let value = |name: &str| metrics.value(name).unwrap().number();
        assert!((90..100).contains(&value("uptime_seconds")));
        let before = value("resident_memory_bytes");
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(value("resident_memory_bytes") >= before + (32 << 20), "{before}");
        drop(touched);
        let (here, there) =
            std::thread::scope(|scope| (value("threads"), scope.spawn(|| value("threads")).join().unwrap()));
        assert!(here >= 1 && there >= 2, "{here} {there}");
    }

    #[test]
    fn a_programs_name_does_not_shift_its_fields() {
        let stat = "7 (a) S 1 (b)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24";
        assert_eq!(Usage::parse(stat), Some(Usage { threads: 17, resident_pages: 21 }));
        assert_eq!(Usage::parse("7 (a) S 1 2"), None);
        assert_eq!(Usage::parse(""), None);
    }
}
