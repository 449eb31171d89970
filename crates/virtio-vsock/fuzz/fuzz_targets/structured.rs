#![no_main]
//! Well-formed chains with any packets in them, and host programs that do anything, against a model of what the device may
//! send: packets of the right form, never more bytes than there is credit for, no reset in answer to a reset, and no work
//! when there is nothing to be done.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::num::NonZeroU16;
use std::os::unix::net::{UnixListener, UnixStream};

use arbitrary::Arbitrary;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use kindling_virtio_device::{COMMON_FEATURES, Device};
use kindling_virtio_vsock::Vsock;
use libfuzzer_sys::fuzz_target;

const CID: u64 = 3;
const REQUEST: u32 = 1;
const RESPONSE: u32 = 2;
const RST: u32 = 3;
const RW: u32 = 5;

#[derive(Arbitrary, Debug)]
enum Step {
    Send(Packet),
    /// Gives the device receive buffers, in two pieces each.
    Receive {
        count: u8,
        first: u8,
        second: u16,
    },
    Connect {
        port: u8,
    },
    Line(Vec<u8>),
    Accept,
    Write {
        program: u8,
        len: u16,
    },
    Read {
        program: u8,
        len: u16,
    },
    ShutDown {
        program: u8,
        write: bool,
    },
    Close {
        program: u8,
    },
    Event {
        len: u8,
    },
    Pause,
}

#[derive(Arbitrary, Debug)]
struct Packet {
    /// Right addresses and type, unless it is 0.
    right: u8,
    op: u8,
    /// A small port, or one that the device has given away.
    host_port: u8,
    guest_port: u8,
    flags: u8,
    room: Room,
    /// How much the guest has taken: all, or this.
    taken: Option<u32>,
    len: u16,
    /// Bytes by which the length in the header is wrong.
    excess: u8,
    cut: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Room {
    Much,
    Little(u8),
    Any(u32),
}

/// What the guest said and received last on a connection.
#[derive(Default)]
struct Credit {
    room: u32,
    taken: u32,
    sent: u32,
}

struct Fuzz {
    driver: MockDriver,
    credit: BTreeMap<(u32, u32), Credit>,
    /// Resets that the device sent.
    resets: usize,
}

impl Fuzz {
    fn send(&mut self, packet: &Packet) {
        let host_port = match packet.host_port {
            port @ 0..=7 => u32::from(port),
            port => (1 << 30) + u32::from(port - 8) % 16,
        };
        let guest_port = u32::from(packet.guest_port % 4);
        let credit = self.credit.entry((host_port, guest_port)).or_default();
        let right = packet.right != 0;
        let len = u32::from(packet.len) * 4;
        if right && packet.excess == 0 {
            credit.room = match packet.room {
                Room::Much => 1 << 20,
                Room::Little(room) => room.into(),
                Room::Any(room) => room,
            };
            credit.taken = packet.taken.unwrap_or(credit.sent);
        }
        let mut bytes = vec![0x5a; 44 + len as usize];
        bytes[0..8].copy_from_slice(&CID.to_le_bytes());
        bytes[8..16].copy_from_slice(&2_u64.to_le_bytes());
        bytes[16..20].copy_from_slice(&guest_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&host_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&(len + u32::from(packet.excess)).to_le_bytes());
        bytes[28..30].copy_from_slice(&1_u16.to_le_bytes());
        bytes[30..32].copy_from_slice(&u16::from(packet.op % 9).to_le_bytes());
        bytes[32..36].copy_from_slice(&u32::from(packet.flags).to_le_bytes());
        bytes[36..40].copy_from_slice(&credit.room.to_le_bytes());
        bytes[40..44].copy_from_slice(&credit.taken.to_le_bytes());
        if !right {
            let at = [0, 8, 28][usize::from(packet.flags) % 3];
            bytes[at] ^= 0x40;
        }
        let (first, second) = bytes.split_at(usize::from(packet.cut).min(bytes.len()));
        let buffers = [Buffer::Readable(first), Buffer::Readable(second)];
        if packet.cut & 1 == 0 {
            self.driver.queues[1].add(&buffers);
        } else {
            self.driver.queues[1].add_indirect(&buffers);
        }
    }

    /// Looks at what the device has sent.
    fn check(&mut self) {
        while self.driver.queues[1].take_used().is_some() {}
        while let Some(used) = self.driver.queues[0].take_used() {
            let Some((header, payload)) = used.data.split_first_chunk::<44>().filter(|_| used.written > 0)
            else {
                assert!(used.data.len() <= 44, "a buffer that is big enough is used");
                continue;
            };
            let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
            let (ports, len, op) = ((u32_at(16), u32_at(20)), u32_at(24), u32_at(28) >> 16);
            assert_eq!(used.written, 44 + len);
            assert!(payload.len() >= len as usize && (op == RW) == (len > 0));
            if op == RST {
                self.resets += 1;
                continue;
            }
            assert_eq!((u32_at(0), u32_at(8), u32_at(28) & 0xffff), (2, CID as u32, 1));
            let credit = self.credit.entry(ports).or_default();
            if [REQUEST, RESPONSE].contains(&op) {
                credit.sent = 0;
            }
            let available = credit.room.saturating_sub(credit.sent.wrapping_sub(credit.taken));
            assert!(len <= available, "{len} bytes for a credit of {available}");
            credit.sent = credit.sent.wrapping_add(len);
        }
    }
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (modern, steps) = input;
    let dir = std::env::temp_dir().join(format!("kindling-vsock-structured-{}", std::process::id()));
    // Fails when it is there already.
    let _ = std::fs::create_dir(&dir);
    let path = dir.join("v");
    let Some(limit) = NonZeroU16::new(6) else { unreachable!() };
    let Ok(mut device) = Vsock::new(CID as u32, &path, limit) else { unreachable!() };
    let listener_path = dir.join("v_1");
    let _ = std::fs::remove_file(&listener_path);
    let Ok(listener) = UnixListener::bind(&listener_path) else { unreachable!() };
    assert!(listener.set_nonblocking(true).is_ok());
    let driver = MockDriver::with_features(&device, if modern { COMMON_FEATURES } else { 1 << 32 });
    let Ok(workers) = device.activate(driver.activation()) else { unreachable!() };
    let Ok(mut inline) = Inline::start(workers) else { unreachable!() };
    let mut fuzz = Fuzz { driver, credit: BTreeMap::new(), resets: 0 };
    let mut programs: Vec<UnixStream> = Vec::new();
    let mut buffer = vec![0x5a; 1 << 16];

    for step in steps.iter().take(200) {
        let resets = fuzz.resets;
        let mut may_reset = true;
        let count = programs.len().max(1);
        match step {
            Step::Send(packet) => {
                // Without the buffers, older ones may still wait.
                may_reset = packet.op % 9 != RST as u8 || fuzz.driver.queues[0].outstanding() == 0;
                // Without indirect tables there are none.
                let cut = if modern { packet.cut } else { packet.cut & !1 };
                fuzz.send(&Packet { cut, ..*packet });
            }
            Step::Receive { count, first, second } => {
                for _ in 0..(count % 16) {
                    if fuzz.driver.queues[0].outstanding() < 100 {
                        let (first, second) = (u32::from(*first), u32::from(second % 8192));
                        fuzz.driver.queues[0].add(&[Buffer::Writable(first), Buffer::Writable(second)]);
                    }
                }
            }
            Step::Connect { port } => {
                let Ok(mut stream) = UnixStream::connect(&path) else { return };
                assert!(stream.set_nonblocking(true).is_ok());
                let _ = stream.write(format!("CONNECT {}\n", port % 4).as_bytes());
                programs.push(stream);
            }
            Step::Line(line) => {
                let Ok(mut stream) = UnixStream::connect(&path) else { return };
                assert!(stream.set_nonblocking(true).is_ok());
                let _ = stream.write(line);
                programs.push(stream);
            }
            Step::Accept => {
                if let Ok((stream, _)) = listener.accept() {
                    assert!(stream.set_nonblocking(true).is_ok());
                    programs.push(stream);
                }
            }
            Step::Write { program: index, len } => {
                let _ = programs
                    .get_mut(usize::from(*index) % count)
                    .map(|stream| stream.write(&buffer[..usize::from(*len)]));
            }
            Step::Read { program: index, len } => {
                let _ = programs
                    .get_mut(usize::from(*index) % count)
                    .map(|stream| stream.read(&mut buffer[..usize::from(*len)]));
            }
            Step::ShutDown { program: index, write } => {
                let how = if *write { Shutdown::Write } else { Shutdown::Read };
                let _ = programs.get_mut(usize::from(*index) % count).map(|stream| stream.shutdown(how));
            }
            Step::Close { program: index } => {
                if !programs.is_empty() {
                    programs.swap_remove(usize::from(*index) % count);
                }
            }
            Step::Event { len } => {
                if fuzz.driver.queues[2].outstanding() < 100 {
                    fuzz.driver.queues[2].add(&[Buffer::Writable(u32::from(*len) + 1)]);
                }
            }
            Step::Pause => {
                let Ok(next) = Inline::start(inline.stop()) else { unreachable!() };
                inline = next;
            }
        }
        let Ok(steps) = inline.run(2_000) else { unreachable!("the rings are right") };
        assert!(steps < 2_000, "busy with nothing");
        fuzz.check();
        assert!(may_reset || fuzz.resets == resets, "a reset was answered with a reset");
    }
});
