//! What benchmarks have in common: their `main`, and what they measure of a process from outside, its processor time and its
//! memory.

use std::io::{Error, Result};
use std::process::Child;
use std::time::Duration;

/// The CPU clock of a process stands still if it does so for this long.
const STILL: Duration = Duration::from_millis(10);

/// Waits for the end of `child`, which has to succeed if it is `expected`; returns the processor time that it has used.
pub fn wait(child: &Child, expected: bool) -> Result<Duration> {
    let mut status = 0;
    // SAFETY: all zeros is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid; the standard library does not wait for a child on its own.
    if unsafe { libc::wait4(child.id().cast_signed(), &raw mut status, 0, &raw mut usage) } < 0 {
        return Err(Error::last_os_error());
    }
    if expected && status != 0 {
        return Err(Error::other(format!("a process ended with wait status {status:#x}")));
    }
    let duration = |time: libc::timeval| {
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_usec.unsigned_abs() as u32 * 1000)
    };
    Ok(duration(usage.ru_utime) + duration(usage.ru_stime))
}

/// The processor time that all threads of a running process have used.
pub fn process_clock(child: &Child) -> Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid.
    let error = unsafe { libc::clock_getcpuclockid(child.id().cast_signed(), &raw mut clock) };
    if error != 0 {
        return Err(Error::from_raw_os_error(error));
    }
    // SAFETY: the pointer is valid.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } < 0 {
        return Err(Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec.unsigned_abs() as u32))
}

/// The same, once it stands still: what was under way has been done.
pub fn still_clock(child: &Child) -> Result<Duration> {
    let mut before = process_clock(child)?;
    loop {
        std::thread::sleep(STILL);
        let now = process_clock(child)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}

/// The figure below which that part of all of them is: 0.5 for the median.
pub fn quantile(figures: &[f64], part: f64) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let index = (figures.len() as f64 * part) as usize;
    figures.get(index.min(figures.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// The `main` of a benchmark that takes a number of rounds as its argument and returns a table.
pub fn bench_main(
    name: &str,
    rounds: usize,
    bench: impl FnOnce(usize) -> std::result::Result<String, Box<dyn std::error::Error>>,
) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benchmarks, too, but without this argument.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(rounds);
    match bench(rounds) {
        Ok(table) => println!("{table}"),
        Err(error) => {
            eprintln!("{name}: {}", crate::error::chain(&*error));
            std::process::exit(1);
        }
    }
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// All of it.
    pub all: u64,
    /// Without the guest's RAM.
    pub own: u64,
}

impl Resident {
    /// That of a process whose guest has so many MiB of RAM.
    pub fn of(pid: u32, guest_mib: u64) -> Result<Self> {
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let field = |line: &str, name: &str| -> Option<u64> {
            line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok().map(|kib: u64| kib << 10)
        };
        let (mut size, mut all, mut guest) = (0, 0, None);
        for line in smaps.lines() {
            size = field(line, "Size:").unwrap_or(size);
            if let Some(resident) = field(line, "Rss:") {
                all += resident;
                if size >= guest_mib << 20 {
                    guest = guest.max(Some(resident));
                }
            }
        }
        let guest = guest.ok_or(Error::other("the process has no mapping that could be the guest's RAM"))?;
        Ok(Self { all, own: all - guest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_figures_that_were_there() {
        let figures = [3.0, 1.0, 2.0, 5.0, 4.0];
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|part| quantile(&figures, part)), [1.0, 3.0, 5.0, 5.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
