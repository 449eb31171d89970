//! Workers come to their thread, and back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use kindling_virtio_device::{
    Interrupt, QueueError, QueueState, StopError, Watch, Worker, WorkerError, WorkerSlot, WorkerThread,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

/// What a worker does, as it says itself.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Started,
    Event(u32),
    Drained,
    Dropped,
}

/// What a worker does when something happens.
type Act = Box<dyn FnMut(&EventFd, &mut Watch<'_>) -> Result<(), WorkerError> + Send>;

/// A worker that watches one eventfd.
struct Probe {
    token: u32,
    event: EventFd,
    told: Sender<Told>,
    on_start: Act,
    on_event: Act,
    /// Waited for by `drain`.
    gate: Option<Receiver<()>>,
}

/// The test's side of a [`Probe`].
struct Control {
    event: EventFd,
    told: Receiver<Told>,
}

const TOKEN: u32 = 7;

fn probe() -> (Box<Probe>, Control) {
    let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let (sender, told) = channel();
    let control = Control { event: event.try_clone().unwrap(), told };
    let worker = Probe {
        token: TOKEN,
        event,
        told: sender,
        on_start: Box::new(|_, _| Ok(())),
        on_event: Box::new(|_, _| Ok(())),
        gate: None,
    };
    (Box::new(worker), control)
}

impl Worker for Probe {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add(&self.event, self.token, EventSet::IN)?;
        let _ = self.told.send(Told::Started);
        (self.on_start)(&self.event, watch)
    }

    fn event(&mut self, token: u32, _: EventSet, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        let _ = self.event.read();
        let _ = self.told.send(Told::Event(token));
        (self.on_event)(&self.event, watch)
    }

    fn drain(&mut self) {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        let _ = self.told.send(Told::Drained);
    }

    fn queues(&self) -> Vec<QueueState> {
        vec![QueueState { index: self.token as u16, ..QueueState::default() }]
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.told.send(Told::Dropped);
    }
}

impl Control {
    fn kick(&self) {
        self.event.write(1).unwrap();
    }

    #[track_caller]
    fn next(&self) -> Told {
        self.told.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    /// Nothing comes, and the worker is still there.
    #[track_caller]
    fn silent(&self) {
        assert_eq!(self.told.recv_timeout(Duration::from_millis(30)), Err(RecvTimeoutError::Timeout));
    }
}

#[derive(Default)]
struct Resets(AtomicU32);

impl Interrupt for Resets {
    fn queue_used(&self, _: u16) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn thread() -> WorkerThread {
    WorkerThread::spawn("io test", || Ok(())).unwrap()
}

fn interrupt() -> Arc<Resets> {
    Arc::new(Resets::default())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn take(slot: &WorkerSlot) -> Box<dyn Worker> {
    slot.stop().wait(soon()).unwrap().unwrap()
}

fn broken(_: &EventFd, _: &mut Watch<'_>) -> Result<(), WorkerError> {
    Err(WorkerError::queue(0)(QueueError::InUse { head: 0 }))
}

#[test]
fn a_worker_gets_its_events_between_start_and_stop_and_again_after_the_next_start() {
    let slot = thread().slot();
    let (worker, control) = probe();
    let mut worker: Box<dyn Worker> = worker;
    for _ in 0..3 {
        slot.start(worker, interrupt());
        assert_eq!(control.next(), Told::Started);
        control.silent();
        for _ in 0..3 {
            control.kick();
            assert_eq!(control.next(), Told::Event(TOKEN));
        }
        worker = take(&slot);
        assert_eq!(control.next(), Told::Drained);
        assert_eq!(worker.queues()[0].index, 7, "the same worker");
        control.kick();
        control.silent();
        control.event.read().unwrap();
    }
}

#[test]
fn an_event_that_came_during_the_sleep_is_seen_after_it() {
    let slot = thread().slot();
    let (worker, control) = probe();
    slot.start(worker, interrupt());
    let worker = take(&slot);
    control.kick();
    slot.start(worker, interrupt());
    let told: Vec<_> = (0..4).map(|_| control.next()).collect();
    assert_eq!(told, [Told::Started, Told::Drained, Told::Started, Told::Event(TOKEN)]);
}

#[test]
fn an_empty_slot_has_nothing_to_give_back() {
    let slot = thread().slot();
    assert!(slot.stop().wait(soon()).unwrap().is_none());
    slot.start(probe().0, interrupt());
    take(&slot);
    assert!(slot.stop().wait(soon()).unwrap().is_none());
}

#[test]
fn a_worker_that_hangs_misses_the_deadline_and_comes_back_later() {
    let slot = thread().slot();
    let (mut worker, control) = probe();
    let (open, gate) = channel();
    worker.gate = Some(gate);
    slot.start(worker, interrupt());
    let stopping = slot.stop();
    for deadline in [Instant::now(), Instant::now() + Duration::from_millis(20)] {
        assert!(matches!(stopping.wait(deadline), Err(StopError::Deadline)));
    }
    let event = Arc::new(EventFd::new(0).unwrap());
    stopping.notify(&event);
    open.send(()).unwrap();
    assert_eq!(event.read().unwrap(), 1);
    assert_eq!(stopping.wait(Instant::now()).unwrap().unwrap().queues()[0].index, 7);
    assert_eq!(
        (control.next(), control.next(), control.next()),
        (Told::Started, Told::Drained, Told::Dropped)
    );
}

#[test]
fn a_worker_that_nobody_waits_for_ends_and_the_slot_can_be_used_again() {
    let slot = thread().slot();
    let (mut worker, control) = probe();
    let (open, gate) = channel();
    worker.gate = Some(gate);
    slot.start(worker, interrupt());
    drop(slot.stop());
    let (next, next_control) = probe();
    slot.start(next, interrupt());
    next_control.silent();
    open.send(()).unwrap();
    assert_eq!(
        (control.next(), control.next(), control.next()),
        (Told::Started, Told::Drained, Told::Dropped)
    );
    assert_eq!(next_control.next(), Told::Started);
}

#[test]
fn a_worker_that_cannot_start_asks_for_a_reset_and_is_left_alone() {
    let (slot, resets) = (thread().slot(), interrupt());
    let (mut worker, control) = probe();
    worker.on_start = Box::new(broken);
    slot.start(worker, resets.clone());
    assert_eq!(control.next(), Told::Started);
    control.kick();
    control.silent();
    assert_eq!(resets.0.load(Ordering::SeqCst), 1);
    let _worker = take(&slot);
    assert_eq!(control.next(), Told::Drained);
}

#[test]
fn a_worker_that_fails_is_left_alone_and_its_neighbours_go_on() {
    let (thread, resets) = (thread(), interrupt());
    let slots: Vec<_> = (0..3).map(|_| thread.slot()).collect();
    let mut controls = Vec::new();
    for (at, slot) in slots.iter().enumerate() {
        let (mut worker, control) = probe();
        if at == 1 {
            worker.on_event = Box::new(broken);
        }
        slot.start(worker, resets.clone());
        assert_eq!(control.next(), Told::Started);
        controls.push(control);
    }
    for round in 0..3 {
        for (at, control) in controls.iter().enumerate() {
            control.kick();
            if at != 1 || round == 0 {
                assert_eq!(control.next(), Told::Event(TOKEN));
            }
        }
    }
    controls[1].silent();
    assert_eq!(resets.0.load(Ordering::SeqCst), 1);
    let mut failed = take(&slots[1]);
    assert_eq!(controls[1].next(), Told::Drained);

    // After a reset, the slot serves the next worker, whatever became of the one before.
    let (worker, control) = probe();
    slots[1].start(worker, resets.clone());
    assert_eq!(control.next(), Told::Started);
    control.kick();
    assert_eq!(control.next(), Told::Event(TOKEN));
    failed.drain();
    assert_eq!(resets.0.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_workers_events_keep_nobody_busy() {
    let (sender, thread_id) = channel();
    let thread = WorkerThread::spawn("io failed", move || {
        // SAFETY: asks for a number.
        let _ = sender.send(unsafe { libc::gettid() });
        Ok(())
    })
    .unwrap();
    let path = format!("/proc/self/task/{}/schedstat", thread_id.recv().unwrap());
    let nanoseconds = || -> u64 {
        let text = std::fs::read_to_string(&path).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let (slot, resets) = (thread.slot(), interrupt());
    let (mut worker, control) = probe();
    worker.on_event = Box::new(broken);
    slot.start(worker, resets.clone());
    control.kick();
    assert_eq!((control.next(), control.next()), (Told::Started, Told::Event(TOKEN)));
    control.kick();
    let before = nanoseconds();
    std::thread::sleep(Duration::from_millis(200));
    assert!(nanoseconds() - before < 20_000_000, "the thread turns in circles");
}

#[test]
fn a_slot_that_goes_takes_its_worker_with_it_and_no_other() {
    let thread = thread();
    let (first, second) = (thread.slot(), thread.slot());
    let ((worker, gone), (other, stays)) = (probe(), probe());
    first.start(worker, interrupt());
    second.start(other, interrupt());
    drop(first);
    assert_eq!((gone.next(), gone.next(), gone.next()), (Told::Started, Told::Drained, Told::Dropped));
    gone.kick();
    stays.kick();
    assert_eq!((stays.next(), stays.next()), (Told::Started, Told::Event(TOKEN)));
    stays.silent();
}

#[test]
fn a_worker_that_is_replaced_is_drained_first() {
    let slot = thread().slot();
    let ((first, old), (second, new)) = (probe(), probe());
    slot.start(first, interrupt());
    slot.start(second, interrupt());
    assert_eq!((old.next(), old.next(), old.next()), (Told::Started, Told::Drained, Told::Dropped));
    assert_eq!(new.next(), Told::Started);
    old.kick();
    new.kick();
    assert_eq!(new.next(), Told::Event(TOKEN));
    new.silent();
}

#[test]
fn no_worker_gets_the_events_of_the_one_before_it() {
    let thread = thread();
    let (slot, other) = (thread.slot(), thread.slot());
    // Holds the thread up, so that it finds what follows all at once.
    let (mut holding, hold) = probe();
    let (open, gate) = channel::<()>();
    holding.on_event = Box::new(move |_, _| {
        let _ = gate.recv();
        Ok(())
    });
    other.start(holding, interrupt());
    let (first, old) = probe();
    slot.start(first, interrupt());
    assert_eq!((hold.next(), old.next()), (Told::Started, Told::Started));
    hold.kick();
    assert_eq!(hold.next(), Told::Event(TOKEN));

    let stopping = slot.stop();
    let (mut second, new) = probe();
    second.token = 8;
    slot.start(second, interrupt());
    old.kick();
    open.send(()).unwrap();
    stopping.wait(soon()).unwrap().unwrap();
    assert_eq!((old.next(), old.next()), (Told::Event(TOKEN), Told::Drained));
    assert_eq!(new.next(), Told::Started);
    new.silent();
}

#[test]
fn watches_can_be_changed_and_taken_away() {
    let slot = thread().slot();
    let (mut worker, control) = probe();
    let mut events = 0;
    worker.on_event = Box::new(move |event, watch| {
        events += 1;
        match events {
            1 => {
                assert!(watch.add(event, 1, EventSet::IN).is_err(), "it is watched already");
                watch.modify(event, 9, EventSet::OUT)
            }
            2 => {
                watch.remove(event);
                watch.remove(event);
                assert!(watch.modify(event, 9, EventSet::IN).is_err(), "it is not watched");
                Ok(())
            }
            _ => unreachable!(),
        }
    });
    slot.start(worker, interrupt());
    control.kick();
    let told: Vec<_> = (0..3).map(|_| control.next()).collect();
    assert_eq!(told, [Told::Started, Told::Event(TOKEN), Told::Event(9)]);
    control.kick();
    control.silent();
    drop(take(&slot));
}

/// Says so when its thread ends.
struct Ending(Sender<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

thread_local! {
    static ENDING: RefCell<Option<Ending>> = const { RefCell::new(None) };
}

#[test]
fn a_thread_ends_when_all_its_handles_are_gone() {
    let (sender, ended) = channel();
    let thread = WorkerThread::spawn("io ends", move || {
        assert_eq!(std::thread::current().name(), Some("io ends"));
        ENDING.set(Some(Ending(sender)));
        Ok(())
    })
    .unwrap();
    let (worker, control) = probe();
    let (first, second) = (thread.slot(), thread.clone().slot());
    first.start(worker, interrupt());
    drop((thread, second));
    assert_eq!(control.next(), Told::Started);
    assert_eq!(ended.recv_timeout(Duration::from_millis(30)), Err(RecvTimeoutError::Timeout));
    drop(first);
    assert_eq!((control.next(), control.next()), (Told::Drained, Told::Dropped));
    ended.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_thread_that_cannot_be_set_up_is_not_there() {
    let (sender, ended) = channel();
    let result = WorkerThread::spawn("io never", move || {
        ENDING.set(Some(Ending(sender)));
        Err(io::Error::other("no such filter"))
    });
    assert_eq!(result.unwrap_err().to_string(), "no such filter");
    ended.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_worker_whose_thread_has_ended_is_gone() {
    let slot = thread().slot();
    let (mut worker, control) = probe();
    worker.on_event = Box::new(|_, _| panic!("a bug, which ends a thread of a test"));
    slot.start(worker, interrupt());
    control.kick();
    assert_eq!(
        (control.next(), control.next(), control.next()),
        (Told::Started, Told::Event(TOKEN), Told::Dropped)
    );
    assert!(matches!(slot.stop().wait(soon()), Err(StopError::Gone)));
    slot.start(probe().0, interrupt());
}
