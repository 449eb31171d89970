#![no_main]
//! Guest and host do sensible and less sensible things. Frames come in order and unchanged, and each is accounted for.

use std::os::unix::net::UnixDatagram;

use arbitrary::Arbitrary;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver, MockQueue};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use kindling_virtio_net::{Backend, MAX_FRAME_BYTES, Net};
use libfuzzer_sys::fuzz_target;

/// Features that change what the device does: for a set bit of the input, the driver refuses.
const CHOICES: [u32; 8] = [1, 3, 7, 10, 15, 17, 28, 29];

#[derive(Arbitrary, Debug)]
enum Action {
    /// The guest gives a buffer to receive in, of these pieces.
    Give {
        pieces: Vec<u16>,
        indirect: bool,
    },
    /// The guest sends a frame of so many bytes, header included, cut at these lengths.
    Transmit {
        len: u16,
        is_long: bool,
        cuts: Vec<u16>,
        indirect: bool,
    },
    /// The host sends a frame of so many bytes.
    Send {
        len: u16,
        is_long: bool,
    },
    /// The host takes all frames.
    Take,
    /// The guest takes all frames.
    Collect,
    Kick(u8),
    Step(u8),
    Sleep,
    /// Sleep, and wake in another worker with the same queues.
    Move,
    SetLink(bool),
    Command(Vec<u8>),
    WriteConfig(u16, [u8; 4]),
}

/// A frame that says which one it is; too short ones say nothing.
fn frame(number: u64, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = number.to_le_bytes().repeat(len / 8 + 1);
    frame.truncate(len);
    frame
}

/// Checks that a frame is what it says, and that it comes after the last one.
fn check(frame_seen: &[u8], last: &mut u64) {
    let number = u64::from_le_bytes(*frame_seen.first_chunk().unwrap_or(&[0; 8]));
    assert!(number > *last, "frame {number} after {last}");
    assert!(frame_seen == frame(number, frame_seen.len()), "frame {number} is another");
    *last = number;
}

fn metric(net: &Net, names: &[&str]) -> u64 {
    let metrics = net.metrics();
    names.iter().filter_map(|name| metrics.value(name)).map(|value| value.number()).sum()
}

/// Takes what the guest received.
fn collect(queue: &mut MockQueue, last: &mut u64) {
    while let Some(used) = queue.take_used() {
        // An empty one is a buffer that was of no use.
        if used.written == 0 {
            continue;
        }
        let mut message = used.data[..used.written as usize].to_vec();
        let [.., low, high] = message[..12] else { unreachable!() };
        for _ in 1..u16::from_le_bytes([low, high]) {
            let Some(next) = queue.take_used() else { unreachable!("a buffer of a frame is missing") };
            message.extend(&next.data[..next.written as usize]);
        }
        check(&message[12..], last);
    }
}

fuzz_target!(|input: (u8, Vec<Action>)| {
    let (choice, actions) = input;
    let Ok((socket, host)) = UnixDatagram::pair() else { return };
    let Ok((other, _other_host)) = UnixDatagram::pair() else { return };
    for socket in [&socket, &host, &other] {
        assert!(socket.set_nonblocking(true).is_ok());
    }
    let backend = Backend::sockets(vec![socket.into(), other.into()]);
    let Ok(mut net) = backend.and_then(|backend| Net::new(backend, None, Some(9_000))) else {
        unreachable!()
    };
    let refused =
        (0..8).filter(|bit| choice >> bit & 1 == 1).fold(0_u64, |mask, bit| mask | 1 << CHOICES[bit]);
    let features = (net.features() | COMMON_FEATURES) & !refused;
    let mut driver = MockDriver::with_features(&net, features);
    let may_be_indirect = features >> 28 & 1 == 1;
    let Ok(workers) = net.activate(driver.activation()) else { unreachable!() };
    let Ok(inline) = Inline::start(workers) else { unreachable!() };
    let mut inline = Some(inline);
    let (mut sent, mut transmitted, mut moves) = (0, 0, 0);
    let (mut last_received, mut last_taken) = (0, 0);
    let mut message = vec![0; 80_000];

    for action in actions.iter().take(64) {
        let Some(device) = &mut inline else { unreachable!() };
        match action {
            Action::Give { pieces, indirect } => {
                let pieces = pieces.get(..pieces.len().min(8)).unwrap_or_default();
                let buffers: Vec<_> = pieces.iter().map(|len| Buffer::Writable(u32::from(*len))).collect();
                match driver.queues[0].outstanding() < 16 && !buffers.is_empty() {
                    true if *indirect && may_be_indirect => drop(driver.queues[0].add_indirect(&buffers)),
                    true => drop(driver.queues[0].add(&buffers)),
                    false => {}
                }
            }
            Action::Transmit { len, is_long, cuts, indirect } => {
                transmitted += 1;
                let message = [vec![0; 12], frame(transmitted, size(*len, *is_long))].concat();
                let mut rest = &message[..message.len() - usize::from(len % 64 == 1) * message.len().min(20)];
                let mut buffers = Vec::new();
                for cut in cuts.iter().take(8) {
                    let (piece, behind) = rest.split_at(rest.len().min(usize::from(*cut)));
                    buffers.push(Buffer::Readable(piece));
                    rest = behind;
                }
                buffers.push(Buffer::Readable(rest));
                while driver.queues[1].take_used().is_some() {}
                match driver.queues[1].outstanding() < 16 {
                    true if *indirect && may_be_indirect => drop(driver.queues[1].add_indirect(&buffers)),
                    true => drop(driver.queues[1].add(&buffers)),
                    false => transmitted -= 1,
                }
            }
            Action::Send { len, is_long } => {
                let frame = frame(sent + 1, size(*len, *is_long));
                sent += u64::from(host.send(&[vec![0; 12], frame].concat()).is_ok());
            }
            Action::Take => {
                while let Ok(len) = host.recv(&mut message) {
                    check(&message[12..len], &mut last_taken);
                }
            }
            Action::Collect => collect(&mut driver.queues[0], &mut last_received),
            Action::Kick(queue) => driver.queues[usize::from(*queue) % 5].kick(),
            Action::Step(steps) => assert!(device.run(usize::from(*steps)).is_ok()),
            Action::Sleep => {
                let Some(Ok(next)) = inline.take().map(|inline| Inline::start(inline.stop())) else {
                    unreachable!()
                };
                inline = Some(next);
            }
            Action::Move => {
                let workers = inline.take().map(Inline::stop).unwrap_or_default();
                for state in workers.iter().flat_map(|worker| worker.queues()) {
                    driver.queues[usize::from(state.index)].state = state;
                }
                let saved = net.save();
                net.reset();
                assert!(net.restore(&saved).is_ok());
                let Ok(workers) = net.activate(driver.activation()) else { unreachable!() };
                inline = Inline::start(workers).ok();
                moves += 1;
            }
            Action::SetLink(up) => net.control().set_link(*up),
            Action::Command(command) => {
                // Its place depends on the features: the last queue, as all of these have MQ.
                if features >> 17 & 1 == 1 && driver.queues[4].outstanding() < 16 {
                    driver.queues[4].add(&[Buffer::Readable(command), Buffer::Writable(2)]);
                }
            }
            Action::WriteConfig(offset, data) => net.write_config(u64::from(*offset), data),
        }
    }

    // At last everybody makes room, and everything comes through.
    net.control().set_link(true);
    let Some(device) = &mut inline else { unreachable!() };
    for _ in 0..32 {
        match device.run(1_000) {
            Ok(steps) => assert!(steps < 1_000, "busy with nothing"),
            Err(error) => unreachable!("{error}"),
        }
        collect(&mut driver.queues[0], &mut last_received);
        while driver.queues[1].take_used().is_some() {}
        while driver.queues[4].take_used().is_some() {}
        while let Ok(len) = host.recv(&mut message) {
            check(&message[12..len], &mut last_taken);
        }
        if driver.queues[0].outstanding() < 64 {
            driver.queues[0].add(&[Buffer::Writable(MAX_FRAME_BYTES as u32 + 12)]);
        }
    }
    assert_eq!(driver.queues[1].outstanding(), 0);
    let dropped = ["tx_dropped_link_down", "tx_dropped_size", "tx_refused"];
    assert_eq!(metric(&net, &["tx_frames"]) + metric(&net, &dropped), transmitted);
    let dropped = ["rx_dropped_link_down", "rx_dropped_size", "rx_dropped_no_room"];
    let arrived = metric(&net, &["rx_frames"]) + metric(&net, &dropped);
    // A frame in a worker's memory is lost with the worker.
    assert!(arrived <= sent && sent <= arrived + moves, "{arrived} of {sent}");
    assert_eq!(metric(&net, &["tap_lost"]), 0);
});

/// Bytes of a frame: enough for its number, and sometimes as many as there can be, or more.
fn size(len: u16, is_long: bool) -> usize {
    if is_long { usize::from(len) + 4_000 } else { 14 + usize::from(len % 3_000) }
}
