//! The `vmm` thread: waits for the guest's end, for signals, for the console, for requests and for devices that were late,
//! until the guest has ended.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kindling_api::server::Requests;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::console;
use crate::controller::Controller;
use crate::error::{Error, one_line};
use crate::outcome::{Outcome, OutcomeSlot};
use crate::signals::EndingSignals;

/// Events that are taken from the kernel at once: all that there can be.
const EVENTS: usize = 5;

/// What is waited for.
const ENDING: u64 = 0;
const SIGNALS: u64 = 1;
const CONSOLE: u64 = 2;
const REQUESTS: u64 = 3;
const LATE: u64 = 4;

struct Watch(Epoll);

impl Watch {
    fn add(&self, source: &impl AsRawFd, token: u64) -> Result<(), Error> {
        let event = EpollEvent::new(EventSet::IN, token);
        self.0.ctl(ControlOperation::Add, source.as_raw_fd(), event).map_err(Error::host("watch for events"))
    }

    fn remove(&self, source: &impl AsRawFd) {
        // Fails when it is not watched, which is what is wanted.
        let _ = self.0.ctl(ControlOperation::Delete, source.as_raw_fd(), EpollEvent::default());
    }
}

/// Serves events until the guest has ended, and says how it did.
pub fn run(
    outcome: &Arc<OutcomeSlot>,
    signals: &mut EndingSignals,
    controller: &mut Controller,
    mut requests: Option<&mut Requests>,
) -> Result<Outcome, Error> {
    let watch = Watch(Epoll::new().map_err(Error::host("create the event loop"))?);
    watch.add(outcome.event(), ENDING)?;
    watch.add(signals, SIGNALS)?;
    if let Some(requests) = &requests {
        watch.add(*requests, REQUESTS)?;
    }
    let mut has_guest = false;
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        if let Some(outcome) = outcome.get() {
            return Ok(outcome.clone());
        }
        if !has_guest && let Some(guest) = controller.guest_mut() {
            watch.add(&guest.console, CONSOLE)?;
            watch.add(guest.late(), LATE)?;
            has_guest = true;
        }
        let count = match watch.0.wait(controller.wait_ms(), &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::host("wait for events")(error)),
        };
        controller.write_metrics_if_due();
        for event in events.iter().take(count) {
            if outcome.is_set() {
                // What else has come is for a guest that is no more.
                break;
            }
            match event.data() {
                SIGNALS => {
                    while let Some(number) = signals.next() {
                        // Before it is logged: whatever becomes of the log, the guest ends.
                        outcome.report(Outcome::Signal(number));
                        log::info!("received signal {number}");
                    }
                }
                CONSOLE => {
                    if let Some(guest) = controller.guest_mut()
                        && let Err(error) = console::serve(guest, outcome)
                    {
                        // The guest runs on without a console rather than the loop spinning on a broken one.
                        log::error!("the console stops: {}", one_line(&error));
                        watch.remove(&guest.console);
                    }
                }
                REQUESTS => {
                    // One at a time: between two requests, the rest has its turn.
                    if let Some(request) = requests.as_mut().and_then(|requests| requests.take()) {
                        controller.serve(request);
                    }
                }
                LATE => {
                    if let Some(guest) = controller.guest_mut() {
                        guest.go_on();
                    }
                }
                // The guest has ended.
                _ => {}
            }
        }
    }
}
