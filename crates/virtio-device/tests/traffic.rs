//! A driver and a device on threads of their own: no kick and no interrupt is lost. Either side sleeps until the other
//! one wakes it, so that a lost one would be the end.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use common::{EVENT_IDX, INDIRECT, driver, set_word, word, words};
use kindling_virtio_device::test_utils::{Buffer, MockDriver};
use kindling_virtio_device::{
    Chain, Queue, QueueState, Watch, Worker, WorkerError, WorkerSlot, WorkerThread,
};
use vmm_sys_util::epoll::EventSet;

/// Gives back what it reads.
struct Echo {
    queue: Queue,
    chain: Chain,
    random: Random,
}

impl Echo {
    fn new(driver: &MockDriver) -> Box<Self> {
        let queue = common::queue(driver);
        let chain = Chain::new(queue.memory());
        Box::new(Self { queue, chain, random: Random(1) })
    }

    fn echo(&mut self) -> Result<(), WorkerError> {
        self.queue.begin_batch();
        while self.queue.pop(&mut self.chain).map_err(WorkerError::queue(0))? {
            let value: [u8; 8] = self.chain.readable.take().unwrap();
            let written = self.chain.writable.write(&value);
            self.queue.push(self.chain.head(), written as u32);
        }
        // The moment at which a kick is easily lost.
        self.random.pause();
        self.queue.end_batch();
        Ok(())
    }
}

impl Worker for Echo {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add_kicks(&self.queue, 0)?;
        self.echo()
    }

    fn event(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        self.echo()
    }

    fn queues(&self) -> Vec<QueueState> {
        vec![self.queue.state()]
    }
}

/// Says when it is kicked, and does nothing else.
struct Listener {
    queue: Queue,
    kicked: Sender<()>,
}

impl Worker for Listener {
    fn start(&mut self, watch: &mut Watch<'_>) -> Result<(), WorkerError> {
        watch.add_kicks(&self.queue, 0)
    }

    fn event(&mut self, _: u32, _: EventSet, _: &mut Watch<'_>) -> Result<(), WorkerError> {
        let _ = self.kicked.send(());
        Ok(())
    }

    fn queues(&self) -> Vec<QueueState> {
        vec![self.queue.state()]
    }
}

/// Random enough, and the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Often none, at times as long as the other side takes for a few chains.
    fn pause(&mut self) {
        for _ in 0..self.below(8).saturating_sub(4) * self.below(1000) {
            std::hint::spin_loop();
        }
    }
}

/// Sends `count` chains, in bursts, with up to 16 under way. `meanwhile` happens once per burst.
fn send(driver: &mut MockDriver, count: u64, mut meanwhile: impl FnMut(&mut MockDriver, u64)) {
    let (words, mut random) = (words(driver), Random(0x5eed));
    let event_index = driver.features & EVENT_IDX != 0;
    let indirect = driver.features & INDIRECT != 0;
    let (mut sent, mut received) = (0_u64, 0_u64);
    while received < count {
        for _ in 0..random.below(17 - (sent - received)).min(count - sent) {
            let bytes = sent.to_le_bytes();
            let buffers = [Buffer::Readable(&bytes[..3]), Buffer::Readable(&bytes[3..]), Buffer::Writable(8)];
            let head = driver.queues[0].prepare(&buffers, indirect);
            driver.queues[0].offer(head);
            sent += 1;
        }
        driver.queues[0].kick_if_wanted();
        random.pause();
        meanwhile(driver, sent);

        let interrupts = driver.interrupt.queue(0);
        let before = received;
        while let Some(used) = driver.queues[0].take_used() {
            assert_eq!((used.written, &used.data[..]), (8, &received.to_le_bytes()[..]));
            received += 1;
        }
        if sent == received || received > before && random.below(2) == 0 {
            continue;
        }
        if event_index {
            // Be interrupted when three quarters are done, unless they are already.
            let later = ((sent - received) * 3 / 4) as u16;
            let event = (received as u16).wrapping_add(later);
            set_word(driver, words.used_event, event);
            if word(driver, words.used_index).wrapping_sub(received as u16) > later {
                continue;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while driver.interrupt.queue(0) == interrupts {
            assert!(Instant::now() < deadline, "nothing came any more: {sent} sent, {received} received");
            std::thread::yield_now();
        }
    }
    assert!(!driver.interrupt.is_reset_needed());
}

fn start(driver: &MockDriver) -> WorkerSlot {
    let slot = WorkerThread::spawn("io echo", || Ok(())).unwrap().slot();
    slot.start(Echo::new(driver), driver.interrupt.clone());
    slot
}

fn stop(slot: &WorkerSlot) -> Box<dyn Worker> {
    slot.stop().wait(Instant::now() + Duration::from_secs(30)).unwrap().unwrap()
}

#[test]
fn with_flags_100_000_chains_need_no_kick_and_no_interrupt_that_does_not_come() {
    let mut driver = driver(64, 0);
    let _slot = start(&driver);
    send(&mut driver, 100_000, |_, _| ());
}

#[test]
fn with_event_indices_100_000_chains_need_no_kick_and_no_interrupt_that_does_not_come() {
    let mut driver = driver(64, EVENT_IDX | INDIRECT);
    let _slot = start(&driver);
    send(&mut driver, 100_000, |_, _| ());
    assert!(driver.interrupt.queue(0) < 100_000);
}

#[test]
fn a_kick_that_nobody_reads_wakes_a_worker_once_and_each_that_starts() {
    #[track_caller]
    fn once(kicked: &Receiver<()>) {
        kicked.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(kicked.recv_timeout(Duration::from_millis(30)), Err(RecvTimeoutError::Timeout));
    }
    let driver = driver(64, 0);
    let (sender, kicked) = channel();
    let slot = WorkerThread::spawn("io listen", || Ok(())).unwrap().slot();
    driver.queues[0].kick();
    slot.start(
        Box::new(Listener { queue: common::queue(&driver), kicked: sender }),
        driver.interrupt.clone(),
    );
    once(&kicked);
    for _ in 0..3 {
        driver.queues[0].kick();
        once(&kicked);
    }
    slot.start(stop(&slot), driver.interrupt.clone());
    once(&kicked);
}

#[test]
fn a_sleep_in_the_middle_of_traffic_loses_nothing() {
    for features in [0, EVENT_IDX | INDIRECT] {
        let mut driver = driver(64, features);
        let slot = start(&driver);
        let mut sleeps = 0;
        send(&mut driver, 10_000, |driver, sent| {
            if sent / 100 > sleeps {
                sleeps = sent / 100;
                slot.start(stop(&slot), driver.interrupt.clone());
            }
        });
        assert_eq!(sleeps, 100);
    }
}

#[test]
fn another_worker_goes_on_in_the_middle_of_traffic_where_one_left_off() {
    for features in [0, EVENT_IDX | INDIRECT] {
        let mut driver = driver(64, features);
        let mut slot = start(&driver);
        let mut moves = 0;
        send(&mut driver, 10_000, |driver, sent| {
            if sent / 500 > moves {
                moves = sent / 500;
                driver.queues[0].state = stop(&slot).queues()[0];
                slot = start(driver);
            }
        });
        assert_eq!(moves, 20);
    }
}

#[test]
fn a_driver_that_breaks_the_protocol_is_told_to_reset_the_device() {
    let mut driver = driver(64, EVENT_IDX);
    let slot = start(&driver);
    send(&mut driver, 10, |_, _| ());
    driver.queues[0].offer(99);
    driver.queues[0].kick();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !driver.interrupt.is_reset_needed() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    let state = stop(&slot).queues()[0];
    assert_eq!((state.next_available, state.next_used), (10, 10));
}
