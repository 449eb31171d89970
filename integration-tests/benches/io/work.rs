//! What guests do, and what it cost them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::harness::{Guest, Tap};

use crate::Figures;
use crate::monitors::{Attached, Monitor, Parts};

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";

/// Of the host's clock, which is slower than this machine's.
const LIMIT: Duration = Duration::from_secs(300);

const DISK_MIB: usize = 64;

const SOCKET_MIB: usize = 96;

const PORT: u32 = 5000;

/// Figures that come from one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A disk with the synchronous engine.
    DiskSync,
    /// A disk with the asynchronous engine.
    DiskAsync,
    /// A network interface.
    Network,
    /// A socket.
    Sockets,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::DiskSync, Self::DiskAsync, Self::Network, Self::Sockets];

    /// As in the table and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::DiskSync => "blk sync",
            Self::DiskAsync => "blk async",
            Self::Network => "net",
            Self::Sockets => "vsock",
        }
    }
}

/// Runs a guest that does what belongs to a group.
pub fn run(group: Group, monitor: &Monitor, parts: &Parts, figures: &Figures<'_>) -> Result<()> {
    let folder = tempfile::tempdir().doing(|| "cannot create a folder".to_owned())?;
    let start = |attached: &Attached<'_>| -> Result<Guest> {
        let mut guest = monitor.guest(parts, attached, folder.path())?.start()?;
        guest.wait_ready(LIMIT)?;
        Ok(guest)
    };
    match group {
        Group::DiskSync | Group::DiskAsync => {
            let path = folder.path().join("disk");
            // Not zeros, of which one could make holes.
            let written = File::create(&path)
                .and_then(|mut file| (0..DISK_MIB).try_for_each(|_| file.write_all(&vec![0x5a; 1 << 20])));
            written.doing(|| format!("cannot write {}", path.display()))?;
            disk(&mut start(&Attached::Disk { path: &path, is_async: group == Group::DiskAsync })?, figures)
        }
        Group::Network => {
            let tap = Tap::new(&format!("{HOST}/24"), &[])?;
            network(&mut start(&Attached::Tap(&tap))?, &tap, figures)
        }
        Group::Sockets => {
            let path = folder.path().join("vsock");
            sockets(&mut start(&Attached::Socket(&path))?, &path, figures)
        }
    }
}

/// Runs a command in the guest, which must succeed.
fn output(guest: &mut Guest, command: &str) -> Result<String> {
    let output = guest.run_within(command, LIMIT)?;
    if output.code == 0 {
        return Ok(output.stdout);
    }
    Err(Error::Command { command: command.to_owned(), detail: format!("{}: {}", output.code, output.stdout) })
}

fn disk(guest: &mut Guest, figures: &Figures<'_>) -> Result<()> {
    for (way, first) in [("read", 5), ("write", 46)] {
        for (name, pattern, kib, depth, mib) in [
            ("random {}, 4 KiB, 1 at a time", "rand", 4, 1, 16),
            ("random {}, 4 KiB, 32 at a time", "rand", 4, 32, 16),
            ("sequential {}, 128 KiB, 4 at a time", "", 128, 4, 64),
        ] {
            let fio = format!(
                "fio --name=job --filename=/dev/vdb --ioengine=libaio --direct=1 --size={DISK_MIB}M \
                 --norandommap --rw={pattern}{way} --bs={kib}k --iodepth={depth} --io_size={mib}M \
                 --output-format=terse --terse-version=3"
            );
            figures.measure(&name.replace("{}", way), || {
                let said = output(guest, &fio)?;
                fio_cost(&said, first, kib).ok_or_else(|| Error::Protocol(format!("fio said {said:?}")))
            })?;
        }
    }
    Ok(())
}

/// Nanoseconds for each operation of `kib` KiB. `first` is the field with the KiB moved; three further on are the
/// milliseconds that it took.
fn fio_cost(report: &str, first: usize, kib: u32) -> Option<f64> {
    let mut fields = report.lines().find(|line| line.starts_with("3;"))?.split(';').skip(first);
    let moved: f64 = fields.next()?.parse().ok()?;
    let milliseconds: f64 = fields.nth(2)?.parse().ok()?;
    (moved > 0.0).then_some(milliseconds * 1e6 / (moved / f64::from(kib)))
}

fn network(guest: &mut Guest, tap: &Tap, figures: &Figures<'_>) -> Result<()> {
    output(guest, &format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"))?;
    output(guest, "iperf3 --server --daemon && sleep 1")?;
    let iperf3 = |options: &[&str], direction: &[&str]| {
        let options = [&["--client", GUEST, "--json"], options, direction].concat();
        Report::parse(&tap.run("iperf3", &options, LIMIT)?)
    };
    let directions = [("to the host", &["--reverse"][..]), ("from the host", &[])];
    for (way, direction) in directions {
        figures.measure(&format!("TCP {way}, a KiB"), || {
            let said = iperf3(&["--bytes", "64M"], direction)?;
            let kib = said.number("sum_received", "bytes")? / 1024.0;
            Ok(said.number("sum_received", "seconds")? * 1e9 / kib)
        })?;
    }
    for (way, direction) in directions {
        figures.measure(&format!("UDP {way}, 64 bytes"), || {
            let said = iperf3(&["--udp", "--length", "64", "--bitrate", "0", "--time", "1"], direction)?;
            let arrived = said.number("sum", "packets")? - said.number("sum", "lost_packets")?;
            Ok(said.number("sum", "seconds")? * 1e9 / arrived)
        })?;
    }
    Ok(())
}

/// What iperf3 says in the end.
struct Report(serde_json::Value);

impl Report {
    fn parse(text: &str) -> Result<Self> {
        let report = serde_json::from_str(text);
        report.map(Self).map_err(|error| Error::Protocol(format!("iperf3 said {text:?}: {error}")))
    }

    fn number(&self, sum: &str, name: &str) -> Result<f64> {
        let number = self.0["end"][sum][name].as_f64();
        number.ok_or_else(|| Error::Protocol(format!("iperf3 said nothing of {name}: {}", self.0)))
    }
}

fn sockets(guest: &mut Guest, path: &Path, figures: &Figures<'_>) -> Result<()> {
    figures.measure("to the host, a KiB", || from_guest(guest, path))?;
    figures.measure("from the host, a KiB", || to_guest(guest, path))
}

/// Receives from the guest; returns the nanoseconds for a KiB.
fn from_guest(guest: &mut Guest, path: &Path) -> Result<f64> {
    let mut listening = path.as_os_str().to_owned();
    listening.push(format!("_{PORT}"));
    let listener = UnixListener::bind(&listening).doing(|| "cannot listen for the guest".to_owned())?;
    guest.begin(
        &format!("socat -u -b 65536 OPEN:/dev/zero,readbytes={} VSOCK-CONNECT:2:{PORT}", SOCKET_MIB << 20),
        LIMIT,
    )?;
    let (mut stream, _) = listener.accept().doing(|| "cannot accept the guest's connection".to_owned())?;
    let begun = Instant::now();
    let mut bytes = vec![0; 64 << 10];
    let mut left = SOCKET_MIB << 20;
    while left > 0 {
        let read = stream.read(&mut bytes).doing(|| "cannot read from the guest".to_owned())?;
        if read == 0 {
            return Err(Error::Protocol(format!("{left} bytes from the guest are missing")));
        }
        left = left.saturating_sub(read);
    }
    let took = begun.elapsed();
    guest.finish(LIMIT)?;
    Ok(took.as_nanos() as f64 / (SOCKET_MIB << 10) as f64)
}

/// Sends to the guest; returns the nanoseconds for a KiB.
fn to_guest(guest: &mut Guest, path: &Path) -> Result<f64> {
    guest.begin(&format!("socat -u -b 65536 VSOCK-LISTEN:{PORT} OPEN:/dev/null"), LIMIT)?;
    let mut stream = connect(path, PORT)?;
    let begun = Instant::now();
    let mut bytes = vec![0x5a; 64 << 10];
    let sent = (0..SOCKET_MIB << 4).try_for_each(|_| stream.write_all(&bytes)).and_then(|()| {
        // The guest's program ends when it has read all.
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read(&mut bytes).map(drop)
    });
    sent.doing(|| "cannot write to the guest".to_owned())?;
    let took = begun.elapsed();
    guest.finish(LIMIT)?;
    Ok(took.as_nanos() as f64 / (SOCKET_MIB << 10) as f64)
}

/// Connects to the guest as soon as its program listens.
fn connect(path: &Path, port: u32) -> Result<UnixStream> {
    let end = Instant::now() + LIMIT;
    loop {
        let connected = UnixStream::connect(path).and_then(|mut stream| {
            stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
            let mut answer = [0; 64];
            let read = stream.read(&mut answer)?;
            Ok((stream, answer[..read].starts_with(b"OK ")))
        });
        match connected {
            Ok((stream, true)) => return Ok(stream),
            _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(100)),
            Ok(_) => return Err(Error::Protocol("the guest does not listen".to_owned())),
            Err(error) => return Err(error).doing(|| "cannot connect to the guest".to_owned()),
        }
    }
}
