#![no_main]
//! A driver makes well-formed chains of any requests, cut in any way, while the host puts the device to sleep, resets
//! it, and changes its file and its limits. A model knows what each request must give.

#![allow(clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::Arbitrary;
use kindling_rate_limiter::{BucketConfig, Update};
use kindling_virtio_blk::{Blk, BlkConfig, CacheMode, FileDisk, IoEngine};
use kindling_virtio_device::Device;
use kindling_virtio_device::test_utils::{Buffer, Inline, MockDriver};
use libfuzzer_sys::fuzz_target;

/// Sectors of the disk in the beginning, and at most.
const SECTORS: u64 = 32;
const MOST_SECTORS: u64 = 64;

#[derive(Arbitrary, Debug)]
struct Options {
    read_only: bool,
    is_async: bool,
    writeback: bool,
    discard: bool,
    /// Which of the features that are offered the driver accepts.
    accepted: u64,
    queues: u8,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Request {
        queue: u8,
        kind: Kind,
        sector: u8,
        cuts: [u8; 3],
        indirect: bool,
        wait: bool,
    },
    Sleep,
    Reset,
    /// Half sectors.
    Resize(u8),
    Exchange,
    LimitOps(u8),
    LimitBytes(u16),
    WriteConfig(u8, u32),
}

#[derive(Arbitrary, Clone, Debug)]
enum Kind {
    Read { sectors: u8, odd: u8 },
    Write { byte: u8, sectors: u8, odd: u8 },
    Flush,
    GetId { room: u8 },
    Clear { zero: bool, segments: Vec<(u8, u8, u8)> },
    Other(u32, u8),
}

/// What is expected of a request.
struct Expected {
    status: u8,
    /// Of a read: what it gives when it succeeds.
    data: Option<Vec<u8>>,
}

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// They have no names but these, and so nothing of them stays behind.
static FILES: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
    [0; 2].map(|_| {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file");
        format!("/proc/self/fd/{}", file.into_raw_fd()).into()
    })
});

struct Machine {
    device: Blk,
    driver: MockDriver,
    workers: Inline,
    read_only: bool,
    /// What the files should hold; the first is the disk.
    disks: [Vec<u8>; 2],
    /// Which of the files is the disk.
    file: usize,
    /// By queue and head.
    expected: HashMap<(usize, u16), Expected>,
    accepted: u64,
}

impl Machine {
    fn new(options: &Options) -> Self {
        let disks = [0x11, 0x22].map(|byte| vec![byte; SECTORS as usize * 512]);
        for (file, disk) in FILES.iter().zip(&disks) {
            let file = OpenOptions::new().write(true).truncate(true).open(file).expect("a file");
            file.write_all_at(disk, 0).expect("a disk");
        }
        let config = BlkConfig {
            engine: if options.is_async { IoEngine::Async } else { IoEngine::Sync },
            cache: if options.writeback { CacheMode::Writeback } else { CacheMode::Unsafe },
            discard: options.discard,
            queues: u16::from(options.queues % 3) + 1,
            id: "fuzz".into(),
            ..BlkConfig::default()
        };
        let disk = FileDisk::open(&FILES[0], options.read_only, false).expect("a disk");
        let mut device = Blk::new(Arc::new(disk), &config).expect("a device");
        let offered = device.features() | kindling_virtio_device::COMMON_FEATURES;
        let accepted = offered & options.accepted | 1 << 32;
        let driver = MockDriver::with_features(&device, accepted);
        let workers = start(&mut device, &driver);
        let read_only = options.read_only;
        Self { device, driver, workers, read_only, disks, file: 0, expected: HashMap::new(), accepted }
    }

    fn request(&mut self, queue: usize, kind: &Kind, sector: u64, cuts: [u8; 3], indirect: bool) {
        let (number, out, room) = match kind {
            Kind::Read { sectors, odd } => (0, Vec::new(), bytes(*sectors, *odd)),
            Kind::Write { byte, sectors, odd } => (1, vec![*byte; bytes(*sectors, *odd) as usize], 0),
            Kind::Flush => (4, Vec::new(), 0),
            Kind::GetId { room } => (8, Vec::new(), u32::from(*room)),
            Kind::Clear { zero, segments } => {
                let segments = segments.iter().flat_map(|(sector, sectors, flags)| {
                    (u128::from(*sector) | u128::from(*sectors) << 64 | u128::from(*flags) << 96)
                        .to_le_bytes()
                });
                (if *zero { 13 } else { 11 }, segments.collect(), 0)
            }
            Kind::Other(number, room) => (*number, Vec::new(), u32::from(*room)),
        };
        let expected = self.expect(number, sector, &out, room);
        let mut readable = (u128::from(number) | u128::from(sector) << 64).to_le_bytes().to_vec();
        readable.extend(out);
        let cut = |len: usize, by: u8| usize::from(by) % (len + 1);
        let (first, second) = readable.split_at(cut(readable.len(), cuts[0]));
        let (second, third) = second.split_at(cut(second.len(), cuts[1]));
        let writable = room + 1;
        let last = cut(writable as usize, cuts[2]) as u32;
        let buffers = [
            Buffer::Readable(first),
            Buffer::Readable(second),
            Buffer::Readable(third),
            Buffer::Writable(writable - last),
            Buffer::Writable(last),
        ];
        let accepts_indirect = self.accepted >> 28 & 1 == 1;
        let side = &mut self.driver.queues[queue];
        let head =
            if indirect && accepts_indirect { side.add_indirect(&buffers) } else { side.add(&buffers) };
        assert!(self.expected.insert((queue, head), expected).is_none());
    }

    /// What a request must give, by the specification; the model's disk is changed as it says.
    fn expect(&mut self, number: u32, sector: u64, out: &[u8], room: u32) -> Expected {
        let status = |status| Expected { status, data: None };
        let capacity = self.disks[self.file].len() as u64 / 512;
        let fits = |sector: u64, bytes: u64| bytes.is_multiple_of(512) && sector + bytes / 512 <= capacity;
        let has = |bit: u32| self.accepted >> bit & 1 == 1;
        let (read_only, disk) = (self.read_only, &mut self.disks[self.file]);
        let range = |sector: u64, bytes: u64| sector as usize * 512..(sector * 512 + bytes) as usize;
        match number {
            0 if fits(sector, room.into()) => {
                Expected { status: OK, data: Some(disk[range(sector, room.into())].to_vec()) }
            }
            0 => status(IOERR),
            1 | 11 | 13 if read_only => status(IOERR),
            1 if fits(sector, out.len() as u64) => {
                disk[range(sector, out.len() as u64)].copy_from_slice(out);
                status(OK)
            }
            1 => status(IOERR),
            4 => status(if has(9) { OK } else { UNSUPP }),
            8 => status(if room >= 20 { OK } else { IOERR }),
            11 | 13 if !has(if number == 11 { 13 } else { 14 }) => status(UNSUPP),
            11 | 13 => {
                if out.is_empty() || out.len() > 16 * 16 || !out.len().is_multiple_of(16) {
                    return status(IOERR);
                }
                let segments = out.chunks_exact(16).map(|segment| {
                    (u64::from(segment[0]), u64::from(segment[8]) * 512, u32::from(segment[12]))
                });
                for (sector, bytes, flags) in segments.clone() {
                    if flags & !u32::from(number == 13) != 0 {
                        return status(UNSUPP);
                    }
                    if bytes == 0 || !fits(sector, bytes) {
                        return status(IOERR);
                    }
                }
                for (sector, bytes, _) in segments {
                    disk[range(sector, bytes)].fill(0);
                }
                status(OK)
            }
            _ => status(UNSUPP),
        }
    }

    /// Lets the device work until it has given back everything, and looks at that.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            if self.expected.is_empty() {
                // What changed meanwhile is noticed before the next request.
                self.workers.run(100).expect("the driver keeps to the rules");
                return;
            }
            self.workers.step(100).expect("the driver keeps to the rules");
            for (index, queue) in self.driver.queues.iter_mut().enumerate() {
                while let Some(used) = queue.take_used() {
                    let expected = self.expected.remove(&(index, used.head)).expect("a request");
                    assert_eq!(used.written as usize, used.data.len());
                    let (status, data) = used.data.split_last().expect("a status");
                    assert_eq!(*status, expected.status);
                    if let Some(expected) = expected.data {
                        assert!(data == expected, "a read gave something else");
                    } else if *status != OK {
                        assert!(data.iter().all(|byte| *byte == 0));
                    }
                }
            }
        }
        panic!("{} requests are lost", self.expected.len());
    }

    fn sleep(&mut self) {
        let idle = Inline::start(Vec::new()).expect("nothing");
        let asleep = std::mem::replace(&mut self.workers, idle).stop();
        for state in asleep.iter().flat_map(|worker| worker.queues()) {
            assert_eq!(state.next_available, state.next_used);
        }
        self.workers = Inline::start(asleep).expect("the driver keeps to the rules");
    }
}

/// Mostly whole sectors.
fn bytes(sectors: u8, odd: u8) -> u32 {
    u32::from(sectors % 80) * 512 + if odd.is_multiple_of(8) { u32::from(odd) } else { 0 }
}

fn start(device: &mut Blk, driver: &MockDriver) -> Inline {
    Inline::start(device.activate(driver.activation()).expect("workers")).expect("no requests yet")
}

/// So many tokens in 10 µs: no request waits for long.
fn limit(size: u64) -> Update {
    match size {
        0 => Update::Unlimited,
        size => Update::Set(BucketConfig { size, refill_time: Duration::from_micros(10), one_time_burst: 1 }),
    }
}

fuzz_target!(|input: (Options, Vec<Step>)| {
    let (options, steps) = input;
    let mut machine = Machine::new(&options);
    let control = machine.device.control();
    for step in steps.iter().take(64) {
        match step {
            Step::Request { queue, kind, sector, cuts, indirect, wait } => {
                let queue = usize::from(*queue) % machine.driver.queues.len();
                machine.request(queue, kind, u64::from(sector % 80), *cuts, *indirect);
                // Requests on several queues, or at a time, have no order that the model could know.
                if *wait || options.is_async || machine.driver.queues.len() > 1 || machine.expected.len() > 40
                {
                    machine.settle();
                }
            }
            Step::Sleep => machine.sleep(),
            Step::Reset => {
                machine.settle();
                let idle = Inline::start(Vec::new()).expect("nothing");
                drop(std::mem::replace(&mut machine.workers, idle).stop());
                machine.device.reset();
                machine.driver = MockDriver::with_features(&machine.device, machine.accepted);
                machine.workers = start(&mut machine.device, &machine.driver);
            }
            Step::Resize(halves) => {
                machine.settle();
                let bytes = u64::from(*halves) * 256 % (MOST_SECTORS * 512);
                let file = OpenOptions::new().write(true).open(&FILES[machine.file]).expect("a file");
                file.set_len(bytes).expect("a size");
                machine.disks[machine.file].resize(bytes as usize, 0);
                assert_eq!(control.refresh().expect("a size"), bytes / 512 * 512);
                machine.settle();
            }
            Step::Exchange => {
                machine.settle();
                machine.file = 1 - machine.file;
                control.set_path(&FILES[machine.file]).expect("a disk");
                machine.settle();
            }
            Step::LimitOps(size) => {
                control.set_limits(Update::Keep, limit((*size).into())).expect("limits");
            }
            Step::LimitBytes(size) => {
                control.set_limits(limit(u64::from(*size) * 64), Update::Keep).expect("limits");
            }
            Step::WriteConfig(offset, value) => {
                let before = machine.device.config().generation();
                machine.device.write_config((*offset).into(), &value.to_le_bytes());
                assert_eq!(machine.device.config().generation(), before);
            }
        }
        let mut capacity = [0; 8];
        machine.device.config().read(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), machine.disks[machine.file].len() as u64 / 512);
    }
    machine.settle();
});
