//! The `vmm` thread: waits for the guest's end, for signals and for the console, until the guest has ended.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use crate::console::ConsoleSource;
use crate::error::Error;
use crate::outcome::{Outcome, OutcomeSlot};
use crate::signals::EndingSignals;

/// Ends the loop: there is nothing to do but to be woken.
struct Ending(Arc<OutcomeSlot>);

impl MutEventSubscriber for Ending {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // The loop looks at the slot after every wake-up; reading makes the eventfd quiet again.
        let _ = self.0.event().read();
    }

    fn init(&mut self, _: &mut EventOps<'_>) {}
}

/// Turns a signal into the end of the guest.
struct SignalSource<'a> {
    signals: &'a mut EndingSignals,
    outcome: Arc<OutcomeSlot>,
}

impl MutEventSubscriber for SignalSource<'_> {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        while let Some(number) = self.signals.next() {
            // Before it is logged: whatever becomes of the log, the guest ends.
            self.outcome.report(Outcome::Signal(number));
            log::info!("received signal {number}");
        }
    }

    fn init(&mut self, _: &mut EventOps<'_>) {}
}

type Manager<'a> = EventManager<Box<dyn MutEventSubscriber + 'a>>;

/// Has `subscriber` served whenever `fd` is readable.
fn watch<'a>(
    manager: &mut Manager<'a>,
    fd: &impl AsRawFd,
    subscriber: impl MutEventSubscriber + 'a,
) -> Result<(), event_manager::Error> {
    // Added here and not in the subscriber's `init`, which could not say that it has failed.
    let events = Events::new(fd, EventSet::IN);
    let id = manager.add_subscriber(Box::new(subscriber));
    manager.event_ops(id)?.add(events)
}

/// Serves events until the guest has ended, and says how it did.
pub fn run(
    outcome: &Arc<OutcomeSlot>,
    signals: &mut EndingSignals,
    console: ConsoleSource<'_>,
) -> Result<Outcome, Error> {
    let mut manager = Manager::new().map_err(Error::host("create the event loop"))?;
    let (signal_fd, console_fd) = (signals.as_raw_fd(), console.console.as_raw_fd());
    let signals = SignalSource { signals, outcome: Arc::clone(outcome) };
    watch(&mut manager, outcome.event(), Ending(Arc::clone(outcome)))
        .and_then(|()| watch(&mut manager, &signal_fd, signals))
        .and_then(|()| watch(&mut manager, &console_fd, console))
        .map_err(Error::host("watch for events"))?;
    loop {
        if let Some(outcome) = outcome.get() {
            return Ok(outcome.clone());
        }
        manager.run().map_err(Error::host("wait for events"))?;
    }
}
