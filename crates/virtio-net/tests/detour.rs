//! Frames that take a detour: which ones do, and how those of the detour get to the guest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{EVENT_IDX, Host, LARGE, MRG_RXBUF, Random, Rig, device, metric};
use kindling_rate_limiter::{BucketConfig, Update};
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{Device, WorkerThread};
use kindling_virtio_net::{DETOUR_HEAD_BYTES, Detour, MAX_FRAME_BYTES, Net};

/// What frames for the detour begin with.
const MARK: [u8; 6] = [6, 1, 2, 3, 4, 5];

/// Takes frames with the mark. What it has for the guest is put there by the test, or is what came, backwards.
#[derive(Default)]
struct Mock {
    taken: Mutex<Vec<Vec<u8>>>,
    frames: Mutex<VecDeque<Vec<u8>>>,
    timeout: Mutex<Option<Instant>>,
    is_echo: bool,
    asked: AtomicUsize,
}

struct Shared(Arc<Mock>);

impl Detour for Shared {
    fn wants(&self, head: &[u8; DETOUR_HEAD_BYTES]) -> bool {
        head.starts_with(&MARK)
    }

    fn receive(&self, _: Instant, frame: &[u8]) {
        self.0.taken.lock().unwrap().push(frame.to_vec());
        if self.0.is_echo {
            self.0.frames.lock().unwrap().push_back(frame.iter().rev().copied().collect());
        }
    }

    fn next_frame(&self, _: Instant, buffer: &mut [u8]) -> Option<usize> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        if self.0.timeout.lock().unwrap().is_some_and(|timeout| Instant::now() < timeout) {
            return None;
        }
        *self.0.timeout.lock().unwrap() = None;
        assert!(buffer.len() >= MAX_FRAME_BYTES);
        let frame = self.0.frames.lock().unwrap().pop_front()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Some(frame.len())
    }

    fn next_timeout(&self, now: Instant) -> Option<Duration> {
        self.0.timeout.lock().unwrap().map(|timeout| timeout.saturating_duration_since(now))
    }
}

fn mock(is_echo: bool) -> Arc<Mock> {
    Arc::new(Mock { is_echo, ..Mock::default() })
}

fn with_detour(pairs: usize, mock: &Arc<Mock>) -> (Net, Vec<Host>) {
    let (net, hosts) = device(pairs);
    (net.with_detour(Box::new(Shared(Arc::clone(mock)))), hosts)
}

fn rig(mock: &Arc<Mock>, refused: u64) -> Rig {
    let (net, mut hosts) = with_detour(1, mock);
    Rig::of(net, hosts.remove(0), refused)
}

/// Has a rig take notice of what a test has put into its detour.
fn wake(rig: &mut Rig) {
    rig.tx().add(&[Buffer::Readable(&[0; 12]), Buffer::Readable(&[&MARK[..], &[0; 60]].concat())]);
}

#[test]
fn frames_that_the_detour_wants_do_not_reach_the_host_and_others_do() {
    for refused in [0, EVENT_IDX, LARGE | MRG_RXBUF] {
        let mock = mock(false);
        let mut rig = rig(&mock, refused);
        let mut random = Random(3);
        let mut detoured = 0;
        let (mut to_host, mut to_detour, mut at_host) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..300 {
            let most = [60, 1_500, MAX_FRAME_BYTES][round / 3 % 3];
            let mut frame = random.frame_up_to(most);
            let is_wanted = round % 3 != 0;
            if is_wanted {
                frame[..6].copy_from_slice(&MARK);
            }
            // One that is too short to be asked about is none of those that a detour is for.
            let is_detoured = is_wanted && frame.len() >= DETOUR_HEAD_BYTES;
            detoured += u64::from(is_detoured);
            // Cut in any way, the header too.
            let message = [vec![0; 12], frame.clone()].concat();
            let (first, rest) = message.split_at(random.below(message.len().min(40)));
            let (second, rest) = rest.split_at(random.below(rest.len().min(40)));
            rig.tx().add(&[Buffer::Readable(first), Buffer::Readable(second), Buffer::Readable(rest)]);
            if is_detoured { &mut to_detour } else { &mut to_host }.push(frame);
            rig.run();
            while rig.tx().take_used().is_some() {}
            at_host.extend(std::iter::from_fn(|| rig.host.receive()).map(|message| message[12..].to_vec()));
        }
        assert!(at_host == to_host);
        assert!(*mock.taken.lock().unwrap() == to_detour);
        assert_eq!((rig.metric("tx_frames"), rig.metric("tx_detoured")), (300, detoured));
    }
}

#[test]
fn frames_of_the_detour_come_into_buffers_of_any_size_with_an_empty_header() {
    for (refused, size) in
        [(0, 70_000), (0, 100), (MRG_RXBUF, 1_600), (LARGE, 700), (LARGE | MRG_RXBUF, 1_600)]
    {
        let mock = mock(false);
        let mut rig = rig(&mock, refused);
        let mut random = Random(5);
        for round in 0..50 {
            while rig.rx().outstanding() < 40 {
                rig.rx().add(&[Buffer::Writable(size)]);
            }
            let frame = random.frame_up_to(1_514);
            mock.frames.lock().unwrap().push_back(frame.clone());
            wake(&mut rig);
            rig.run();
            let header = {
                let got = rig.rx().take_used().unwrap();
                let num_buffers = u16::from_le_bytes([got.data[10], got.data[11]]);
                let mut bytes = got.data[..got.written as usize].to_vec();
                for _ in 1..num_buffers {
                    let next = rig.rx().take_used().unwrap();
                    bytes.extend(&next.data[..next.written as usize]);
                }
                assert!(bytes[12..] == frame, "refused {refused:#x}");
                bytes[..10].to_vec()
            };
            assert_eq!(header, [0; 10]);
            rig.host.send(&[round; 60]);
            rig.run();
            assert_eq!(rig.received().unwrap().0, [round; 60], "a frame of the host");
            while rig.tx().take_used().is_some() {}
        }
        assert_eq!((rig.metric("rx_frames"), rig.metric("rx_detoured")), (100, 50));
    }
}

#[test]
fn more_frames_than_a_batch_has_come_without_the_host_sending_any() {
    let mock = mock(false);
    let mut rig = rig(&mock, 0);
    for _ in 0..250 {
        rig.rx().add(&[Buffer::Writable(2_000)]);
    }
    rig.run();
    mock.frames.lock().unwrap().extend((0..200).map(|byte| vec![byte; 60]));
    wake(&mut rig);
    rig.run();
    for byte in 0..200 {
        assert_eq!(rig.received(), Some((vec![byte; 60], 1)));
    }
    assert!(rig.driver.interrupt.queue(0) <= 4, "an interrupt for each batch at most");
}

#[test]
fn without_buffers_frames_stay_with_the_detour_and_nothing_spins() {
    for refused in [0, MRG_RXBUF, EVENT_IDX] {
        let mock = mock(true);
        let mut rig = rig(&mock, refused);
        for byte in 0..100 {
            rig.transmit(&[&MARK[..], &[byte; 60]].concat());
        }
        assert!(rig.inline.as_mut().unwrap().run(100).unwrap() < 10);
        assert_eq!(rig.inline.as_mut().unwrap().step(0).unwrap(), 0);
        assert_eq!(mock.asked.load(Ordering::SeqCst), 0, "nothing is asked for that cannot be passed on");
        for byte in 0..100 {
            rig.rx().add(&[Buffer::Writable(2_000)]);
            rig.run();
            let (frame, _) = rig.received().unwrap();
            assert_eq!(frame, [&[byte; 60][..], &[5, 4, 3, 2, 1, 6]].concat());
        }
        assert_eq!(rig.received(), None);
    }
}

#[test]
fn a_frame_that_the_guest_has_no_room_for_is_dropped_as_others_are() {
    let mock = mock(false);
    let mut rig = rig(&mock, MRG_RXBUF);
    let small = rig.rx().add(&[Buffer::Writable(100)]);
    let large = rig.rx().add(&[Buffer::Writable(2_000)]);
    mock.frames.lock().unwrap().extend([vec![1; 1_000], vec![2; 1_000], vec![3; 13], vec![4; 60_000]]);
    wake(&mut rig);
    rig.run();
    let used: Vec<_> = std::iter::from_fn(|| rig.rx().take_used()).map(|u| (u.head, u.written)).collect();
    assert_eq!(used, [(small, 0), (large, 1_012)]);
    rig.rx().add(&[Buffer::Writable(70_000)]);
    rig.run();
    assert_eq!(rig.metric("rx_dropped_no_room"), 1);
    assert_eq!(rig.metric("rx_dropped_size"), 1, "the one that is too short");
    assert_eq!(rig.received(), Some((vec![4; 60_000], 1)));
}

#[test]
fn no_frame_is_larger_than_the_guest_was_told() {
    let mock = mock(false);
    let (socket, host) = common::socket_pair();
    let backend = kindling_virtio_net::Backend::sockets(vec![socket]).unwrap();
    let net = Net::new(backend, None, Some(1_000)).unwrap().with_detour(Box::new(Shared(Arc::clone(&mock))));
    let mut rig = Rig::of(net, host, 0);
    for _ in 0..2 {
        rig.rx().add(&[Buffer::Writable(70_000)]);
    }
    mock.frames.lock().unwrap().extend([vec![1; 1_019], vec![2; 1_018]]);
    wake(&mut rig);
    rig.run();
    assert_eq!(rig.received(), Some((vec![2; 1_018], 1)));
    assert_eq!((rig.received(), rig.metric("rx_dropped_size")), (None, 1));
}

#[test]
fn while_the_link_is_down_nothing_comes_either_way_and_nothing_spins() {
    let mock = mock(true);
    let mut rig = rig(&mock, 0);
    let control = rig.net.control();
    for _ in 0..4 {
        rig.rx().add(&[Buffer::Writable(2_000)]);
    }
    mock.frames.lock().unwrap().push_back(vec![1; 60]);
    *mock.timeout.lock().unwrap() = Some(Instant::now() + Duration::from_millis(30));
    wake(&mut rig);
    rig.run();
    control.set_link(false);
    rig.run();
    wake(&mut rig);
    rig.run();
    assert_eq!((mock.taken.lock().unwrap().len(), rig.metric("tx_dropped_link_down")), (1, 1));
    // The timer fires meanwhile.
    std::thread::sleep(Duration::from_millis(50));
    rig.run();
    assert_eq!((rig.received(), rig.inline.as_mut().unwrap().step(0).unwrap()), (None, 0));
    control.set_link(true);
    rig.run();
    assert_eq!(rig.received(), Some((vec![1; 60], 1)));
}

#[test]
fn rate_limits_hold_for_the_detour_too() {
    let mock = mock(true);
    let (net, mut hosts) = with_detour(1, &mock);
    let hour = BucketConfig { size: 10, refill_time: Duration::from_secs(3_600), one_time_burst: 0 };
    let control = net.control();
    control.limit_tx(Update::Keep, Update::Set(hour)).unwrap();
    control.limit_rx(Update::Keep, Update::Set(BucketConfig { size: 5, ..hour })).unwrap();
    let mut rig = Rig::of(net, hosts.remove(0), 0);
    for _ in 0..30 {
        rig.rx().add(&[Buffer::Writable(2_000)]);
        wake(&mut rig);
    }
    rig.run();
    assert_eq!(mock.taken.lock().unwrap().len(), 10);
    // Five are paid for, and one is owed.
    assert_eq!(std::iter::from_fn(|| rig.received()).count(), 6);
    assert!(rig.metric("tx_throttled") > 0 && rig.metric("rx_throttled") > 0);
    control.limit_tx(Update::Keep, Update::Unlimited).unwrap();
    control.limit_rx(Update::Keep, Update::Unlimited).unwrap();
    rig.run();
    assert_eq!(mock.taken.lock().unwrap().len(), 30);
    assert_eq!(std::iter::from_fn(|| rig.received()).count(), 24);
}

#[test]
fn the_detour_is_asked_again_when_it_said_so() {
    let mock = mock(false);
    let mut rig = rig(&mock, 0);
    for _ in 0..4 {
        rig.rx().add(&[Buffer::Writable(2_000)]);
    }
    rig.run();
    let begin = Instant::now();
    *mock.timeout.lock().unwrap() = Some(begin + Duration::from_millis(50));
    mock.frames.lock().unwrap().push_back(vec![1; 60]);
    wake(&mut rig);
    rig.run();
    assert_eq!(rig.received(), None);
    while rig.rx().outstanding() == 4 {
        rig.inline.as_mut().unwrap().step(1_000).unwrap();
        if let Some(got) = rig.received() {
            assert_eq!(got, (vec![1; 60], 1));
            break;
        }
    }
    assert!((50..5_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    assert_eq!(rig.inline.as_mut().unwrap().step(50).unwrap(), 0, "and not without reason");
}

#[test]
fn sleep_and_other_workers_keep_what_the_detour_has() {
    let mock = mock(true);
    let mut rig = rig(&mock, 0);
    wake(&mut rig);
    rig.run();
    let workers = rig.inline.take().unwrap().stop();
    rig.inline = Some(Inline::start(workers).unwrap());
    rig.rx().add(&[Buffer::Writable(2_000)]);
    rig.run();
    assert!(rig.received().is_some());

    // A timer that was set before fires for the next workers too.
    mock.frames.lock().unwrap().push_back(vec![1; 60]);
    *mock.timeout.lock().unwrap() = Some(Instant::now() + Duration::from_millis(20));
    wake(&mut rig);
    rig.run();
    let workers = rig.inline.take().unwrap().stop();
    for state in workers.iter().flat_map(|worker| worker.queues()) {
        rig.driver.queues[usize::from(state.index)].state = state;
    }
    drop(workers);
    rig.inline = Some(Inline::start(rig.net.activate(rig.driver.activation()).unwrap()).unwrap());
    for _ in 0..3 {
        rig.rx().add(&[Buffer::Writable(2_000)]);
    }
    let end = Instant::now() + Duration::from_secs(10);
    let mut received = Vec::new();
    while received.len() < 2 {
        assert!(Instant::now() < end, "{received:?}");
        rig.inline.as_mut().unwrap().step(100).unwrap();
        received.extend(std::iter::from_fn(|| rig.received()));
    }
    assert!(received.contains(&(vec![1; 60], 1)));
}

#[test]
fn without_a_tap_there_is_no_detour_either() {
    let mock = mock(true);
    let (net, hosts) = with_detour(1, &mock);
    drop(hosts);
    let (_, other) = common::socket_pair();
    let mut rig = Rig::of(net, other, 0);
    rig.rx().add(&[Buffer::Writable(2_000)]);
    wake(&mut rig);
    assert!(rig.inline.as_mut().unwrap().run(100).unwrap() < 20);
    assert!(!rig.net.control().is_link_up());
    assert_eq!((mock.taken.lock().unwrap().len(), rig.received()), (0, None));
}

#[test]
fn each_queue_pair_passes_on_what_answers_its_frames() {
    let mock = mock(true);
    let (mut net, _hosts) = with_detour(2, &mock);
    let mut driver = MockDriver::new(&net);
    let workers = net.activate(driver.activation()).unwrap();
    let slots: Vec<_> = workers
        .into_iter()
        .map(|worker| {
            let slot = WorkerThread::spawn("net", || Ok(())).unwrap().slot();
            slot.start(worker, Arc::clone(&driver.interrupt) as _);
            slot
        })
        .collect();
    for pair in [1, 0, 1, 1, 0] {
        for _ in 0..100 {
            driver.queues[2 * pair].add(&[Buffer::Writable(2_000)]);
            let frame = [&[0; 12][..], &MARK, &[pair as u8; 60]].concat();
            driver.queues[2 * pair + 1].add(&[Buffer::Readable(&frame)]);
            let used = driver.queues[2 * pair].wait_used(20);
            assert_eq!(used.data[12..72], [pair as u8; 60]);
            driver.queues[2 * pair + 1].wait_used(20);
        }
    }
    // What comes without a frame of the guest comes by the first.
    for pair in 0..2 {
        driver.queues[2 * pair].add(&[Buffer::Writable(2_000)]);
    }
    *mock.timeout.lock().unwrap() = Some(Instant::now() + Duration::from_millis(30));
    mock.frames.lock().unwrap().push_back(vec![9; 60]);
    let frame = [&[0; 12][..], &MARK, &[3; 60]].concat();
    driver.queues[3].add(&[Buffer::Readable(&frame)]);
    assert_eq!(driver.queues[0].wait_used(20).data[12], 9);
    let deadline = Instant::now() + Duration::from_secs(10);
    for slot in &slots {
        assert!(slot.stop().wait(deadline).unwrap().is_some());
    }
    assert_eq!(metric(&net, "tx_detoured"), 501);
}
