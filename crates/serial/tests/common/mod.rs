//! A machine around a console: somebody who drives the event loop, and a guest at the registers.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kindling_serial::{Backend, Console, ConsoleEvent, RegisterRead, SerialPort};
use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

const DATA: u8 = 0;
const LSR: u8 = 5;

/// The guests of these tests poll.
pub struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

pub type Port = Arc<Mutex<SerialPort<NoInterrupt>>>;

/// What a vCPU thread has: the port and the way to wake the event loop.
pub struct Guest {
    pub port: Port,
    kick: EventFd,
}

impl Guest {
    pub fn may_send(&self) -> bool {
        self.read(LSR) & 0x20 != 0
    }

    pub fn send_byte(&self, byte: u8) {
        let wake = self.port.lock().unwrap().write(DATA, byte);
        if wake {
            self.kick.write(1).unwrap();
        }
    }

    /// Sends as a driver that minds LSR does.
    pub fn send(&self, bytes: &[u8]) {
        for burst in bytes.chunks(16) {
            let start = Instant::now();
            while !self.may_send() {
                assert!(start.elapsed() < PATIENCE, "the transmitter stays busy");
                std::thread::sleep(Duration::from_micros(100));
            }
            burst.iter().for_each(|byte| self.send_byte(*byte));
        }
    }

    /// One byte of input, if there is one.
    pub fn receive(&self) -> Option<u8> {
        (self.read(LSR) & 0x01 != 0).then(|| self.read(DATA))
    }

    /// All input that is there.
    pub fn receive_all(&self) -> impl Iterator<Item = u8> {
        std::iter::from_fn(|| self.receive())
    }

    pub fn read(&self, offset: u8) -> u8 {
        let RegisterRead { value, wake } = self.port.lock().unwrap().read(offset);
        if wake {
            self.kick.write(1).unwrap();
        }
        value
    }

    pub fn lost(&self) -> u64 {
        self.port.lock().unwrap().lost_output()
    }
}

pub fn machine(backend: Backend) -> (Guest, Console<NoInterrupt>) {
    let port = Arc::new(Mutex::new(SerialPort::new(NoInterrupt)));
    let console = Console::new(port.clone(), backend).unwrap();
    (Guest { port, kick: console.kick().unwrap() }, console)
}

/// Whether `fd` becomes readable within `limit`.
pub fn readable(fd: &impl AsRawFd, limit: Duration) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd, and the count says one.
    unsafe { libc::poll(&raw mut entry, 1, i32::try_from(limit.as_millis()).unwrap()) > 0 }
}

/// Serves the console until it has nothing more to do, as an event loop would.
pub fn settle(console: &mut Console<NoInterrupt>) -> Option<ConsoleEvent> {
    let (mut event, mut calls) = (None, 0);
    while readable(console, Duration::from_millis(20)) {
        event = event.or(console.service().unwrap());
        calls += 1;
        assert!(calls < 10_000, "the console spins");
    }
    event
}

/// Serves the console until `done`.
pub fn serve_until(console: &mut Console<NoInterrupt>, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "it never came to that");
        if readable(console, Duration::from_millis(1)) {
            console.service().unwrap();
        }
    }
}

/// An event loop in a thread of its own; gives the console back when it is stopped.
pub struct Loop {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Console<NoInterrupt>, usize)>,
}

impl Loop {
    pub fn start(mut console: Console<NoInterrupt>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut calls = 0;
            while !stopped.load(Ordering::Relaxed) {
                if readable(&console, Duration::from_millis(5)) {
                    console.service().unwrap();
                    calls += 1;
                }
            }
            (console, calls)
        });
        Loop { stop, thread }
    }

    /// The console, and how often it was served.
    pub fn stop(self) -> (Console<NoInterrupt>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Bytes in which a loss or a swap shows.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| u8::try_from(index.wrapping_mul(2_654_435_761) >> 9 & 0xff).unwrap()).collect()
}

pub fn flags(fd: &impl AsRawFd) -> i32 {
    // SAFETY: F_GETFL touches no memory of ours.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }
}

/// A pseudo-terminal in the mode that terminals start with: master and slave.
pub fn terminal() -> (File, File) {
    let (mut master, mut slave) = (0, 0);
    let (name, mode, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: the two out-pointers are valid, the others may be null.
    let result = unsafe { libc::openpty(&raw mut master, &raw mut slave, name, mode, size) };
    assert_eq!(result, 0);
    // SAFETY: openpty has just returned both, and nothing else owns them.
    unsafe { (OwnedFd::from_raw_fd(master).into(), OwnedFd::from_raw_fd(slave).into()) }
}

/// The four mode words of a terminal.
pub fn mode(terminal: &impl AsRawFd) -> [u32; 4] {
    let mut mode = std::mem::MaybeUninit::<libc::termios>::zeroed();
    // SAFETY: tcgetattr writes a termios to a valid pointer; all zeroes is one as well.
    let mode = unsafe {
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), mode.as_mut_ptr()), 0);
        mode.assume_init()
    };
    [mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag]
}

pub fn open_slave(path: &Path) -> File {
    std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}
