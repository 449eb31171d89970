//! Host programs that want to go to the guest, and whatever takes too long.

use std::io;
use std::time::{Duration, Instant};

use kindling_virtio_device::{Watch, WorkerError};
use vmm_sys_util::epoll::EventSet;

use super::{LISTENER_TOKEN, TIMEOUT, VsockWorker, later};
use crate::connection::Connection;
use crate::host::{Handshake, Progress};
use crate::socket;
use crate::table::Entry;

/// Most host programs that have still to say where they want to go. More wait to be accepted.
const MAX_HANDSHAKES: usize = 256;

/// Most connections that are accepted before other things get their turn.
const ACCEPTS_AT_ONCE: usize = 64;

/// How long nothing is accepted when the host is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How close to each other the timer goes off.
const TIMER_GRAIN: Duration = Duration::from_millis(100);

impl VsockWorker {
    /// Accepts host programs that wait.
    pub(super) fn accept(&mut self, watch: &mut Watch<'_>) {
        for _ in 0..ACCEPTS_AT_ONCE {
            if self.handshakes >= MAX_HANDSHAKES {
                return;
            }
            let stream = match socket::accept(self.backend.host.listener()) {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It would fail again and again, and the listening socket stays readable.
                Err(_) => {
                    let again = later(Instant::now(), ACCEPT_PAUSE);
                    self.accept_after = Some(again);
                    self.timer.set(again);
                    return;
                }
            };
            let deadline = later(Instant::now(), TIMEOUT);
            let handshake = Entry::Handshake(Handshake::new(stream, deadline));
            if let Some(index) = self.table.insert(handshake) {
                self.handshakes = self.handshakes.saturating_add(1);
                self.timer.set(deadline);
                self.proceed(index, watch);
            } else {
                self.backend.metrics.connections_refused.increment();
            }
        }
    }

    /// Watches the listening socket while it can be accepted from.
    pub(super) fn watch_listener(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        let wanted = self.handshakes < MAX_HANDSHAKES && self.accept_after.is_none();
        if wanted != self.listening {
            let listener = self.backend.host.listener();
            if wanted {
                watch.add(listener, LISTENER_TOKEN, EventSet::IN)?;
            } else {
                watch.remove(listener);
            }
            self.listening = wanted;
        }
        Ok(())
    }

    /// Goes on with the handshake at `index`.
    pub(super) fn proceed(&mut self, index: u16, watch: &mut Watch<'_>) {
        let token = self.table.token(index);
        let Some(Entry::Handshake(handshake)) = self.table.entry(index) else { return };
        match handshake.proceed() {
            Progress::Waiting => {
                handshake.watched =
                    handshake.watched || watch.add(&handshake.stream, token, EventSet::IN).is_ok();
                if !handshake.watched {
                    self.fail_handshake(index, watch);
                }
            }
            Progress::Failed => self.fail_handshake(index, watch),
            Progress::Wants(guest_port) => {
                let Some(handshake) = self.end_handshake(index) else { return };
                let host_port = self.table.new_port(guest_port);
                let deadline = later(Instant::now(), TIMEOUT);
                let mut connection = Connection::requested(handshake.stream, host_port, guest_port, deadline);
                connection.watched = handshake.watched.then_some(EventSet::IN);
                // There is room: the handshake has just left.
                if let Some(index) = self.table.insert(Entry::Connection(connection)) {
                    self.table.touch(index);
                }
            }
        }
    }

    /// Gives a handshake up.
    fn fail_handshake(&mut self, index: u16, watch: &mut Watch<'_>) {
        if let Some(handshake) = self.end_handshake(index) {
            watch.remove(&handshake.stream);
            self.backend.metrics.handshakes_failed.increment();
        }
    }

    fn end_handshake(&mut self, index: u16) -> Option<Handshake> {
        let Entry::Handshake(handshake) = self.table.remove(index)? else { return None };
        self.handshakes = self.handshakes.saturating_sub(1);
        Some(handshake)
    }

    /// The timer has gone off.
    pub(super) fn expire(&mut self, watch: &mut Watch<'_>) {
        let now = Instant::now();
        self.timer.stop();
        self.accept_after = self.accept_after.filter(|moment| now < *moment);
        let mut next = self.accept_after;
        for index in self.table.indices() {
            let deadline = match self.table.entry(index) {
                Some(Entry::Handshake(handshake)) => Some(handshake.deadline),
                Some(Entry::Connection(connection)) => connection.deadline,
                None => None,
            };
            let Some(deadline) = deadline else { continue };
            if now < deadline {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
            } else if let Some(connection) = self.table.connection(index) {
                connection.reset();
                self.changed(index);
            } else {
                self.fail_handshake(index, watch);
            }
        }
        if let Some(next) = next {
            self.timer.set(next.max(later(now, TIMER_GRAIN)));
        }
    }
}
