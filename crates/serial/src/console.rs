//! The port and its back end as one thing for an event loop to serve: [`Console`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kindling_rate_limiter::{BucketConfig, Clock, Monotonic, TokenBucket};
use log::{debug, warn};
use vm_superio::Trigger;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::escape::Escape;
use crate::{Backend, Error, OUTPUT_CAPACITY, ReadOutcome, SerialPort, WriteOutcome};

/// Bytes moved per system call.
const CHUNK: usize = 8 * 1024;

/// Keystrokes that are kept for a guest that does not take them. More are read, for there may be an escape among them,
/// but dropped and counted.
const TYPE_AHEAD: usize = 64 << 10;

/// How long output collects after some was taken before the next is: longer than a guest takes from one byte to the
/// next, shorter than anybody at a terminal notices.
const BATCH_TIME: Duration = Duration::from_millis(2);

/// Output that comes so soon after the last is a stream, whose next batch is waited for. What comes after a silence may
/// be all there is, an echoed key say, and nothing is arranged for more before there is more.
const STREAM_TIME: Duration = BATCH_TIME.saturating_mul(2);

const KICK: u64 = 0;
const INPUT: u64 = 1;
const OUTPUT: u64 = 2;
const LISTENER: u64 = 3;
const BATCH: u64 = 4;

/// What a console asks of the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// Somebody at the terminal typed Ctrl-A x: end the guest.
    Quit,
    /// Somebody at the terminal typed Ctrl-A p: press the guest's power button.
    PowerButton,
    /// Somebody at the terminal typed Ctrl-A d: press Ctrl+Alt+Del on the guest's keyboard.
    CtrlAltDel,
}

/// A port and its back end, as one thing for an event loop to serve.
///
/// The console is itself a file descriptor (an epoll instance) to be watched for input, level-triggered: it becomes
/// readable when there is something to do, be it bytes from outside, room for output, a client of the socket, or a
/// wake-up from a vCPU through [`kick`](Self::kick). What it waits for inside changes from call to call, so that nothing
/// spins: no input while the guest does not take any, no output while there is none, none of what epoll refuses.
pub struct Console<T: Trigger> {
    port: Arc<Mutex<SerialPort<T>>>,
    backend: Backend,
    epoll: Epoll,
    kick: EventFd,
    /// Fires when the next batch of output is due.
    batch: TimerFd,
    input_watch: Watch,
    output_watch: Watch,
    listener_watch: Watch,
    /// Input that was read and that the guest has no room for yet.
    pending: VecDeque<u8>,
    /// Bytes of input that were dropped.
    lost_input: u64,
    /// None where all that is typed goes to the guest.
    escape: Option<Escape>,
    /// Limits the bytes of output.
    limit: Option<TokenBucket>,
    input_ready: bool,
    /// The output takes nothing until epoll says otherwise.
    output_blocked: bool,
    /// When output was last taken.
    output_moved: Option<Instant>,
    /// Accepting failed; not tried again before something else happens.
    listener_paused: bool,
    /// Accepting failed the last time, and that was logged.
    listener_failing: bool,
    /// The last write failed, and that was logged.
    output_failing: bool,
    buffer: Box<[u8]>,
}

impl<T: Trigger> Console<T> {
    /// Joins `port`, which is shared with the vCPUs, to `backend`.
    pub fn new(port: Arc<Mutex<SerialPort<T>>>, backend: Backend) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(Error::Watch)?;
        let kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Watch)?;
        Watch::new(KICK).set(&epoll, Some((kick.as_raw_fd(), EventSet::IN))).map_err(Error::Watch)?;
        let batch = TimerFd::new().map_err(|error| Error::Watch(error.into()))?;
        Watch::new(BATCH).set(&epoll, Some((batch.as_raw_fd(), EventSet::IN))).map_err(Error::Watch)?;
        let mut console = Console {
            port,
            backend,
            epoll,
            kick,
            batch,
            input_watch: Watch::new(INPUT),
            output_watch: Watch::new(OUTPUT),
            listener_watch: Watch::new(LISTENER),
            pending: VecDeque::new(),
            lost_input: 0,
            escape: Some(Escape::default()),
            limit: None,
            input_ready: false,
            output_blocked: false,
            output_moved: None,
            listener_paused: false,
            listener_failing: false,
            output_failing: false,
            buffer: vec![0; CHUNK].into_boxed_slice(),
        };
        let closed = console.backend.output_fd().is_none();
        console.port().set_closed(closed);
        // What waits already, and what epoll will never announce.
        console.kick_self()?;
        console.watch().map_err(Error::Watch)?;
        Ok(console)
    }

    /// An eventfd for vCPU threads to write to when the port asks for a wake-up.
    pub fn kick(&self) -> Result<EventFd, Error> {
        self.kick.try_clone().map_err(Error::Watch)
    }

    /// Has all that is typed at a terminal go to the guest: there are no escapes any more.
    pub fn disable_escapes(&mut self) {
        self.escape = None;
    }

    /// Limits the bytes of output from now on. What the guest sends beyond is lost, and counted as such.
    ///
    /// # Errors
    ///
    /// When there is no such bucket.
    pub fn limit_output(&mut self, limit: BucketConfig) -> Result<(), Error> {
        self.limit = Some(TokenBucket::new(limit, Monotonic.now()).map_err(Error::Limit)?);
        Ok(())
    }

    /// Bytes of output that nobody got.
    pub fn lost_output(&self) -> u64 {
        self.port().lost_output()
    }

    /// Bytes typed at a terminal that the guest did not take, and for which there was no room any more.
    pub fn lost_input(&self) -> u64 {
        self.lost_input
    }

    /// Where the bytes come from and go to.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Moves what can be moved now, without waiting. To be called when the console's descriptor is readable; calling it
    /// at other times does no harm.
    ///
    /// What fails outside ends or discards (and logs) the direction concerned. An error means that epoll itself has
    /// failed; the call can be repeated.
    pub fn service(&mut self) -> Result<Option<ConsoleEvent>, Error> {
        self.collect_events().map_err(Error::Watch)?;
        let event = self.move_input()?;
        let moved = self.move_output()?;
        self.expect_output(moved)?;
        self.watch().map_err(Error::Watch)?;
        // Epoll does not announce these.
        let input_goes_on = !self.backend.input_pollable() && self.wants_input();
        let output_goes_on = !self.backend.output_pollable() && self.port().output_len() > 0;
        if input_goes_on || output_goes_on {
            self.kick_self()?;
        }
        Ok(event)
    }

    /// Pushes out what the guest has sent and returns how many bytes are left: none, unless the reader has taken nothing
    /// for `patience`, or not all within five times that. For the end: the guest must have stopped.
    pub fn drain(&mut self, patience: Duration) -> usize {
        let start = Instant::now();
        let (mut progress, mut left) = (start, self.port().output_len());
        loop {
            self.output_blocked = false;
            let moved = self.move_output();
            let before = std::mem::replace(&mut left, self.port().output_len());
            if left < before {
                progress = Instant::now();
            }
            let overall = patience.saturating_mul(5).saturating_sub(start.elapsed());
            let remaining = patience.saturating_sub(progress.elapsed()).min(overall);
            if left == 0 || remaining.is_zero() || moved.is_err() {
                return left;
            }
            if self.output_blocked && self.backend.wait_for_output(remaining).is_err() {
                return left;
            }
        }
    }

    fn collect_events(&mut self) -> io::Result<()> {
        self.listener_paused = false;
        let mut events = [EpollEvent::default(); 5];
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        let (mut hung_up, mut client_waits) = (false, false);
        for event in events.iter().take(count) {
            match event.data() {
                KICK => drop(self.kick.read()),
                // It has fired, so this does not wait.
                BATCH => drop(self.batch.wait()),
                INPUT => self.input_ready = true,
                OUTPUT => {
                    self.output_blocked = false;
                    hung_up = event.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR);
                }
                _ => client_waits = true,
            }
        }
        // In this order, so that a client that has gone makes room for the one that waits.
        if hung_up {
            self.close_output()?;
        }
        if client_waits {
            self.accept_client()?;
        }
        Ok(())
    }

    /// Takes one client; epoll tells if there are more.
    fn accept_client(&mut self) -> io::Result<()> {
        let client = match self.backend.accept() {
            Ok(client) => client,
            Err(error) => {
                // Too many open files, most likely. Epoll would announce the client again and again.
                if !std::mem::replace(&mut self.listener_failing, true) {
                    warn!("failed to accept a client of the serial port: {error}");
                }
                self.listener_paused = true;
                return Ok(());
            }
        };
        self.listener_failing = false;
        let Some(client) = client else { return Ok(()) };
        // The former client may have left input behind; it goes with its client.
        self.close_input()?;
        match self.backend.attach(client) {
            Ok(()) => {
                self.output_blocked = false;
                self.port().set_closed(false);
            }
            Err(error) => warn!("failed to serve a client of the serial port: {error}"),
        }
        Ok(())
    }

    /// Whether what is read may be an escape, which has to be found even if the guest takes nothing.
    fn has_escapes(&self) -> bool {
        self.escape.is_some() && self.backend.is_interactive()
    }

    fn move_input(&mut self) -> Result<Option<ConsoleEvent>, Error> {
        self.push_pending();
        let ready = std::mem::take(&mut self.input_ready) || !self.backend.input_pollable();
        if !ready || !self.wants_input() {
            return Ok(None);
        }
        let room = if self.has_escapes() { CHUNK } else { self.port().input_room() };
        let Some(buffer) = self.buffer.get_mut(..room.min(CHUNK)) else { return Ok(None) };
        let mut event = None;
        match self.backend.read(buffer) {
            Ok(ReadOutcome::Data(count)) => {
                let input = buffer.get(..count).unwrap_or_default();
                match self.escape.as_mut().filter(|_| self.backend.is_interactive()) {
                    Some(escape) => event = escape.filter(input, &mut self.pending),
                    None => self.pending.extend(input),
                }
                let excess = self.pending.len().saturating_sub(TYPE_AHEAD);
                self.lost_input = self.lost_input.saturating_add(excess as u64);
                self.pending.truncate(TYPE_AHEAD);
                self.push_pending();
            }
            Ok(ReadOutcome::NotReady) => {}
            Ok(ReadOutcome::Eof) => self.close_input().map_err(Error::Watch)?,
            Err(error) => {
                warn!("failed to read input for the serial port: {error}");
                self.close_input().map_err(Error::Watch)?;
            }
        }
        Ok(event)
    }

    fn push_pending(&mut self) {
        if !self.pending.is_empty() {
            let taken = lock(&self.port).push_input(self.pending.make_contiguous());
            self.pending.drain(..taken);
        }
    }

    /// Arranges for the next batch of output: by the timer while output flows, by a wake-up when it has stopped.
    fn expect_output(&mut self, moved: bool) -> Result<(), Error> {
        let streams = moved && {
            let now = Instant::now();
            self.output_moved.replace(now).is_some_and(|last| now.duration_since(last) < STREAM_TIME)
        };
        let mut port = lock(&self.port);
        // Under the lock: a byte that came after the last look is either seen here or wakes the loop.
        let expected = streams || (port.output_len() > 0 && !self.output_blocked);
        port.expect_output(expected);
        drop(port);
        if expected {
            self.batch.reset(BATCH_TIME, None).map_err(|error| Error::Watch(error.into()))?;
        }
        Ok(())
    }

    /// Returns whether there was any output to take.
    fn move_output(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        // At most what fits the port, so that a busy guest does not keep the loop from its other work.
        for _ in 0..OUTPUT_CAPACITY / CHUNK {
            if self.output_blocked {
                break;
            }
            let count = lock(&self.port).peek_output(&mut self.buffer);
            let allowed = match &mut self.limit {
                Some(limit) => usize::try_from(limit.available(Monotonic.now())).unwrap_or(count).min(count),
                None => count,
            };
            let output = self.buffer.get(..allowed).unwrap_or_default();
            if count == 0 {
                break;
            }
            if allowed == 0 {
                moved = true;
                self.port().discard_output(count);
                continue;
            }
            match self.backend.write(output) {
                Ok(WriteOutcome::Taken(taken)) => {
                    moved = true;
                    if let Some(limit) = &mut self.limit {
                        limit.take(taken as u64);
                    }
                    self.port().consume_output(taken);
                    self.output_failing = false;
                }
                Ok(WriteOutcome::NotReady) => self.output_blocked = true,
                Ok(WriteOutcome::Closed) => self.close_output().map_err(Error::Watch)?,
                Err(error) => {
                    if !std::mem::replace(&mut self.output_failing, true) {
                        warn!("failed to write the serial port's output, which is lost: {error}");
                    }
                    self.port().discard_output(count);
                }
            }
        }
        Ok(moved)
    }

    /// Watches for what this console waits for now, and for nothing else.
    fn watch(&mut self) -> io::Result<()> {
        let input = self.backend.input_fd().filter(|_| self.backend.input_pollable() && self.wants_input());
        self.input_watch.set(&self.epoll, input.map(|fd| (fd, EventSet::IN)))?;

        let has_output = self.port().output_len() > 0;
        let events = if has_output {
            Some(EventSet::OUT)
        } else if self.backend.output_may_hang_up() {
            // Epoll always tells about that.
            Some(EventSet::empty())
        } else {
            None
        };
        let output = self.backend.output_fd().filter(|_| self.backend.output_pollable());
        self.output_watch.set(&self.epoll, output.zip(events))?;

        let listener = self.backend.listener_fd().filter(|_| !self.listener_paused);
        self.listener_watch.set(&self.epoll, listener.map(|fd| (fd, EventSet::IN)))
    }

    fn wants_input(&self) -> bool {
        self.backend.input_fd().is_some()
            && (self.has_escapes() || (self.pending.is_empty() && self.port().input_room() > 0))
    }

    fn close_input(&mut self) -> io::Result<()> {
        self.input_watch.set(&self.epoll, None)?;
        self.backend.close_input();
        Ok(())
    }

    fn close_output(&mut self) -> io::Result<()> {
        self.output_watch.set(&self.epoll, None)?;
        self.backend.close_output();
        self.output_blocked = false;
        self.port().set_closed(true);
        debug!("the reader of the serial port's output has gone; output is discarded");
        Ok(())
    }

    fn kick_self(&self) -> Result<(), Error> {
        match self.kick.write(1) {
            // Kicked plenty already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map_err(Error::Watch),
        }
    }

    fn port(&self) -> MutexGuard<'_, SerialPort<T>> {
        lock(&self.port)
    }
}

impl<T: Trigger> AsRawFd for Console<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn lock<T: Trigger>(port: &Mutex<SerialPort<T>>) -> MutexGuard<'_, SerialPort<T>> {
    // A thread that panicked elsewhere while it held the lock has not left the port half-changed.
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What epoll watches a descriptor for.
///
/// It must be unset before the descriptor is closed: epoll would keep a description that a duplicate holds open.
struct Watch {
    token: u64,
    current: Option<(RawFd, EventSet)>,
}

impl Watch {
    fn new(token: u64) -> Self {
        Watch { token, current: None }
    }

    fn set(&mut self, epoll: &Epoll, wanted: Option<(RawFd, EventSet)>) -> io::Result<()> {
        if self.current == wanted {
            return Ok(());
        }
        let event = |events| EpollEvent::new(events, self.token);
        match (self.current, wanted) {
            (Some((old, _)), Some((new, events))) if old == new => {
                epoll.ctl(ControlOperation::Modify, new, event(events))?;
            }
            (current, wanted) => {
                if let Some((fd, _)) = current {
                    epoll.ctl(ControlOperation::Delete, fd, event(EventSet::empty()))?;
                    self.current = None;
                }
                if let Some((fd, events)) = wanted {
                    epoll.ctl(ControlOperation::Add, fd, event(events))?;
                }
            }
        }
        self.current = wanted;
        Ok(())
    }
}
