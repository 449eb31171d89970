//! The data path: a worker for each queue pair.

mod commands;
mod detour;
mod held;
mod rx;
mod tx;

use std::fs::File;
use std::io;
use std::sync::Arc;

use kindling_rate_limiter::Share;
use kindling_virtio_device::{Queue, QueueState, Subscription, Watch, Worker, WorkerError};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU};
use vmm_sys_util::epoll::EventSet;

use crate::backend::takes_large_frames;
use crate::control::{NetSettings, Shared};
use crate::{HEADER_BYTES, MAX_FRAME_BYTES};

pub(crate) use commands::Commands;
pub(crate) use detour::WorkerDetour;
use rx::Receiver;
use tx::Transmitter;

/// Frames that a queue moves before the other queues of its thread have their turn.
const BATCH: usize = 64;

const TAP: u32 = 0;
const RECEIVE: u32 = 1;
const TRANSMIT: u32 = 2;
const COMMANDS: u32 = 3;
const RECEIVE_TIMER: u32 = 4;
const TRANSMIT_TIMER: u32 = 5;
const COMMANDS_TIMER: u32 = 6;
const SETTINGS: u32 = 7;
const DETOUR_TIMER: u32 = 8;

/// What a queue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// Its driver, which kicks it.
    Driver,
    /// The tap, to be readable or writable.
    Tap,
    /// The rate limiter and its timer.
    Tokens,
    /// Nothing: the tap works no longer.
    Never,
}

/// What was agreed with the driver about the frames that it receives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Negotiated {
    /// Whether a frame may have several buffers.
    mergeable: bool,
    /// Whether it may be left to the driver to compute and check sums.
    checksums: bool,
    /// Bytes of the largest frame with its header.
    largest: usize,
    /// The same of a frame that is not to be cut into packets.
    largest_whole: usize,
}

impl Negotiated {
    /// For the features accepted, and the MTU that the driver was told of.
    pub fn new(features: u64, mtu: Option<u16>) -> Self {
        let has = |bit: u32| features >> bit & 1 == 1;
        // Ethernet header with a VLAN tag, which need not be counted in the MTU.
        let frame = |mtu: u16| usize::from(mtu).saturating_add(HEADER_BYTES + 18);
        let most = HEADER_BYTES + MAX_FRAME_BYTES;
        let largest = if takes_large_frames(features) {
            most
        } else {
            frame(mtu.unwrap_or_default().max(1500)).min(most)
        };
        Self {
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            checksums: has(VIRTIO_NET_F_GUEST_CSUM),
            largest,
            largest_whole: mtu.filter(|_| has(VIRTIO_NET_F_MTU)).map_or(largest, frame),
        }
    }
}

/// What moves the frames of one queue pair.
pub(crate) struct NetWorker {
    rx: Receiver,
    tx: Transmitter,
    commands: Option<Commands>,
    detour: Option<WorkerDetour>,
    tap: Arc<File>,
    /// What the tap is watched for; `None` when it works no longer.
    interest: Option<EventSet>,
    link_up: bool,
    settings: Subscription<NetSettings>,
    shared: Arc<Shared>,
}

impl NetWorker {
    pub fn new(
        shared: &Arc<Shared>,
        tap: Arc<File>,
        negotiated: Negotiated,
        receive: Queue,
        transmit: Queue,
        commands: Option<Commands>,
        detour: Option<WorkerDetour>,
    ) -> io::Result<Self> {
        Ok(Self {
            rx: Receiver::new(receive, negotiated, Share::new(&shared.rx)?, &shared.metrics),
            tx: Transmitter::new(transmit, Share::new(&shared.tx)?, &shared.metrics),
            commands,
            detour,
            tap,
            interest: Some(EventSet::empty()),
            link_up: true,
            settings: shared.settings.subscribe()?,
            shared: Arc::clone(shared),
        })
    }

    fn receive(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        if self.interest.is_none() {
            // No frame will ever come, and buffers for one need no kick.
            self.rx.queue.begin_batch();
            return Ok(());
        }
        let wait = self.rx.run(&self.tap, self.link_up, self.detour.as_mut())?;
        self.wait_for(EventSet::IN, wait, watch)
    }

    fn transmit(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        let is_connected = self.link_up && self.interest.is_some();
        let wait = self.tx.run(is_connected.then_some(&*self.tap), self.detour.as_mut())?;
        self.wait_for(EventSet::OUT, wait, watch)?;
        if self.detour.as_mut().is_some_and(WorkerDetour::was_fed) {
            // What answers the frames that were sent.
            self.receive(watch)?;
        }
        Ok(())
    }

    /// Watches the tap for `event`, or not, as a direction's `wait` asks.
    fn wait_for(&mut self, event: EventSet, wait: Wait, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        if wait == Wait::Never {
            return self.lose_tap(watch);
        }
        let Some(interest) = &mut self.interest else { return Ok(()) };
        let mut wanted = *interest;
        wanted.set(event, wait == Wait::Tap);
        if wanted != *interest {
            watch.modify(&*self.tap, TAP, wanted)?;
            *interest = wanted;
        }
        Ok(())
    }

    /// The tap works no longer. The guest learns that its link is down, and what it sends is dropped.
    fn lose_tap(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        if self.interest.take().is_some() {
            // It would be readable for ever.
            watch.remove(&*self.tap);
            self.shared.metrics.tap_lost.increment();
            self.shared.lose_tap();
        }
        self.transmit(watch)
    }

    fn obey(&mut self) -> Result<(), WorkerError> {
        self.commands.as_mut().map_or(Ok(()), Commands::run)
    }

    fn apply_settings(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        self.link_up = self.settings.latest().link_up;
        // Who waits asks again: the limits may be others.
        self.rx.limiter.forget();
        self.tx.limiter.forget();
        self.receive(watch)?;
        self.transmit(watch)
    }
}

impl Worker for NetWorker {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add_kicks(&self.rx.queue, RECEIVE)?;
        watch.add_kicks(&self.tx.queue, TRANSMIT)?;
        watch.add(self.rx.limiter.timer(), RECEIVE_TIMER, EventSet::IN)?;
        watch.add(self.tx.limiter.timer(), TRANSMIT_TIMER, EventSet::IN)?;
        watch.add(&self.settings, SETTINGS, EventSet::IN)?;
        if let Some(commands) = &self.commands {
            watch.add_kicks(&commands.queue, COMMANDS)?;
            watch.add(commands.limiter.timer(), COMMANDS_TIMER, EventSet::IN)?;
        }
        if let Some(interest) = self.interest {
            watch.add(&*self.tap, TAP, interest)?;
        }
        if let Some(detour) = &mut self.detour {
            detour.start(watch)?;
        }
        self.obey()?;
        self.apply_settings(watch)
    }

    fn event(&mut self, token: u32, events: EventSet, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        match token {
            TAP if self.interest.is_none() => Ok(()),
            TAP if events.intersects(EventSet::ERROR | EventSet::HANG_UP) => self.lose_tap(watch),
            TAP => {
                if events.contains(EventSet::IN) {
                    self.receive(watch)?;
                }
                if events.contains(EventSet::OUT) {
                    self.transmit(watch)?;
                }
                Ok(())
            }
            RECEIVE => self.receive(watch),
            TRANSMIT => self.transmit(watch),
            COMMANDS => self.obey(),
            RECEIVE_TIMER => {
                self.rx.limiter.on_timer();
                self.receive(watch)
            }
            TRANSMIT_TIMER => {
                self.tx.limiter.on_timer();
                self.transmit(watch)
            }
            COMMANDS_TIMER => {
                if let Some(commands) = &mut self.commands {
                    commands.limiter.on_timer();
                }
                self.obey()
            }
            DETOUR_TIMER => {
                if let Some(detour) = &mut self.detour {
                    detour.on_timer();
                }
                self.receive(watch)
            }
            _ => self.apply_settings(watch),
        }
    }

    fn drain(&mut self) {
        self.rx.drain();
        self.tx.drain();
        if let Some(commands) = &mut self.commands {
            commands.drain();
        }
    }

    fn queues(&self) -> Vec<QueueState> {
        let commands = self.commands.as_ref().map(|commands| &commands.queue);
        [&self.rx.queue, &self.tx.queue].into_iter().chain(commands).map(Queue::state).collect()
    }
}
