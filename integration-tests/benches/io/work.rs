//! What guests do, and what it cost them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::harness::{Guest, Tap};

use crate::monitors::{Attached, Monitor, Parts};

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";

/// Of the host's clock, which is slower than this machine's.
const LIMIT: Duration = Duration::from_secs(300);

const DISK_MIB: usize = 64;

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

/// Runs a guest that does what belongs to a group. What `report` gets is the name of a figure, and instructions for each
/// operation.
pub fn run(group: Group, monitor: &Monitor, parts: &Parts, report: &mut dyn FnMut(&str, f64)) -> Result<()> {
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
            disk(&mut start(&Attached::Disk { path: &path, is_async: group == Group::DiskAsync })?, report)
        }
        Group::Network => {
            let tap = Tap::new(&format!("{HOST}/24"), &[])?;
            network(&mut start(&Attached::Tap(&tap))?, &tap, report)
        }
        Group::Sockets => {
            let path = folder.path().join("vsock");
            sockets(&mut start(&Attached::Socket(&path))?, &path, report)
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

fn disk(guest: &mut Guest, report: &mut dyn FnMut(&str, f64)) -> Result<()> {
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
            let said = output(guest, &fio)?;
            let cost = fio_cost(&said, first, kib);
            let cost = cost.ok_or_else(|| Error::Protocol(format!("fio said {said:?}")))?;
            report(&name.replace("{}", way), cost);
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

fn network(guest: &mut Guest, tap: &Tap, report: &mut dyn FnMut(&str, f64)) -> Result<()> {
    output(guest, &format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"))?;
    output(guest, "iperf3 --server --daemon && sleep 1")?;
    for (way, direction) in [("to the host", &["--reverse"][..]), ("from the host", &[])] {
        let options = ["--client", GUEST, "--json", "--bytes", "64M"];
        let said = Report::parse(&tap.run("iperf3", &[&options[..], direction].concat(), LIMIT)?)?;
        let kib = said.number("sum_received", "bytes")? / 1024.0;
        report(&format!("TCP {way}, a KiB"), said.number("sum_received", "seconds")? * 1e9 / kib);
    }
    for (way, direction) in [("to the host", &["--reverse"][..]), ("from the host", &[])] {
        let options =
            ["--client", GUEST, "--json", "--udp", "--length", "64", "--bitrate", "0", "--time", "1"];
        let said = Report::parse(&tap.run("iperf3", &[&options[..], direction].concat(), LIMIT)?)?;
        let arrived = said.number("sum", "packets")? - said.number("sum", "lost_packets")?;
        report(&format!("UDP {way}, 64 bytes"), said.number("sum", "seconds")? * 1e9 / arrived);
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

fn sockets(guest: &mut Guest, path: &Path, report: &mut dyn FnMut(&str, f64)) -> Result<()> {
    const MIB: usize = 96;
    const PORT: u32 = 5000;
    let kib = (MIB << 10) as f64;
    let mut bytes = vec![0x5a; 64 << 10];

    let mut listening = path.as_os_str().to_owned();
    listening.push(format!("_{PORT}"));
    let listener = UnixListener::bind(&listening).doing(|| "cannot listen for the guest".to_owned())?;
    guest.begin(
        &format!("socat -u -b 65536 OPEN:/dev/zero,readbytes={} VSOCK-CONNECT:2:{PORT}", MIB << 20),
        LIMIT,
    )?;
    let (mut stream, _) = listener.accept().doing(|| "cannot accept the guest's connection".to_owned())?;
    let begun = Instant::now();
    let mut left = MIB << 20;
    while left > 0 {
        let read = stream.read(&mut bytes).doing(|| "cannot read from the guest".to_owned())?;
        if read == 0 {
            return Err(Error::Protocol(format!("{left} bytes from the guest are missing")));
        }
        left = left.saturating_sub(read);
    }
    report("to the host, a KiB", begun.elapsed().as_nanos() as f64 / kib);
    guest.finish(LIMIT)?;

    guest.begin(&format!("socat -u -b 65536 VSOCK-LISTEN:{PORT} OPEN:/dev/null"), LIMIT)?;
    let mut stream = connect(path, PORT)?;
    let begun = Instant::now();
    let sent = (0..MIB << 4).try_for_each(|_| stream.write_all(&bytes)).and_then(|()| {
        // The guest's program ends when it has read all.
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read(&mut bytes).map(drop)
    });
    sent.doing(|| "cannot write to the guest".to_owned())?;
    report("from the host, a KiB", begun.elapsed().as_nanos() as f64 / kib);
    guest.finish(LIMIT)?;
    Ok(())
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
