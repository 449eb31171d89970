//! The `vmm` thread: waits for the guest's end, for signals and for the console, until the guest has ended.

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

    fn init(&mut self, ops: &mut EventOps<'_>) {
        register(ops, Events::new(self.0.event(), EventSet::IN), "the guest's end");
    }
}

/// Turns a signal into the end of the guest.
struct SignalSource {
    signals: EndingSignals,
    outcome: Arc<OutcomeSlot>,
}

impl MutEventSubscriber for SignalSource {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        while let Some(number) = self.signals.next() {
            log::info!("received signal {number}");
            self.outcome.report(Outcome::Signal(number));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        register(ops, Events::new(&self.signals, EventSet::IN), "signals");
    }
}

/// Adds a descriptor to the loop; a failure is logged, since a subscriber has no other way to tell.
pub fn register(ops: &mut EventOps<'_>, events: Events, what: &str) {
    if let Err(error) = ops.add(events) {
        log::error!("cannot watch {what}: {error:?}");
    }
}

/// Serves events until the guest has ended, and says how it did.
pub fn run(
    outcome: &Arc<OutcomeSlot>,
    signals: EndingSignals,
    console: ConsoleSource<'_>,
) -> Result<Outcome, Error> {
    let mut manager: EventManager<Box<dyn MutEventSubscriber + '_>> =
        EventManager::new().map_err(Error::host("create the event loop"))?;
    manager.add_subscriber(Box::new(Ending(Arc::clone(outcome))));
    manager.add_subscriber(Box::new(SignalSource { signals, outcome: Arc::clone(outcome) }));
    manager.add_subscriber(Box::new(console));
    loop {
        if let Some(outcome) = outcome.get() {
            return Ok(outcome.clone());
        }
        manager.run().map_err(Error::host("wait for events"))?;
    }
}
