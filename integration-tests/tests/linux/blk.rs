//! Disks: a root file system, data that survives, space that is given back, drivers that come and go.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use kindling_api::client::Client;
use kindling_integration_tests::harness::{Builder, Guest, LoopDevice, files};
use serde_json::json;

use super::live::patch;
use super::{END_LIMIT, output, power_off, ready, seconds, with_root};

/// A command that reads or writes as much as a test does.
pub const IO_LIMIT: Duration = Duration::from_secs(300);

pub const MIB: u64 = 1 << 20;

/// How many writes fio makes before it reads them back. It reads nothing back when its time is over before.
pub const BACKLOG: u64 = 32;

/// A disk of `bytes` bytes, all of them holes.
pub fn disk(folder: &Path, name: &str, bytes: u64) -> String {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path.display().to_string()
}

/// Bytes that the host spends on a file.
fn spent(path: &str) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn guest_boots_from_an_ext4_root_file_system_and_writes_to_it() {
    let folder = files::scratch().unwrap();
    let root = files::writable_root_image(folder.path()).unwrap();
    let builder = || {
        Guest::builder()
            .arg("--disk")
            .arg(format!("{},cache=writeback", root.display()))
            .cmdline_extra("kindling.root=/dev/vda")
    };
    let mut guest = ready(builder());
    let mounted = output(&mut guest, "grep ' / ' /proc/mounts | tail -n 1");
    assert!(mounted.starts_with("/dev/vda / ext4 rw"), "{mounted}");
    output(&mut guest, "mkdir /kept && echo content > /kept/file && sync");
    power_off(&mut guest);
    let mut guest = ready(builder());
    assert_eq!(output(&mut guest, "cat /kept/file"), "content");
    power_off(&mut guest);
}

#[test]
fn guest_sees_a_disks_size_name_sectors_and_that_it_is_read_only() {
    let folder = files::scratch().unwrap();
    let (first, second) = (disk(folder.path(), "a", 5 * MIB), disk(folder.path(), "b", 8 * MIB));
    let mut guest = ready(
        Guest::builder()
            .modules(&["virtio_mmio", "virtio_blk"])
            .arg("--disk")
            .arg(format!("{first},ro,id=first"))
            .arg("--disk")
            .arg(format!("{second},sector=4096,cache=writeback")),
    );
    let mut read = |path: &str| output(&mut guest, &format!("cat /sys/block/{path}"));
    assert_eq!((read("vda/size"), read("vdb/size")), ("10240".to_owned(), "16384".to_owned()));
    assert_eq!((read("vda/serial"), read("vdb/serial")), ("first".to_owned(), "disk1".to_owned()));
    assert_eq!((read("vda/ro"), read("vdb/ro")), ("1".to_owned(), "0".to_owned()));
    assert_eq!(read("vda/queue/logical_block_size"), "512");
    assert_eq!(read("vdb/queue/logical_block_size"), "4096");
    assert_eq!(read("vda/queue/write_cache"), "write through");
    assert_eq!(read("vdb/queue/write_cache"), "write back");
    let refused = guest.run("dd if=/dev/zero of=/dev/vda bs=512 count=1").unwrap();
    assert_ne!(refused.code, 0, "{refused:?}");
}

/// The engines, and the disks that have them.
const ENGINES: [(&str, &str); 2] = [("sync", "vdb"), ("async", "vdc")];

/// Makes a disk for each engine.
fn make_disks(folder: &Path, bytes: u64) {
    ENGINES.iter().for_each(|(_, name)| drop(disk(folder, name, bytes)));
}

/// A guest that has them behind that of its programs; `options` go for both.
fn with_disks(folder: &Path, options: &str) -> Builder {
    ENGINES.iter().fold(with_root(), |builder, (engine, name)| {
        let disk = format!("{},engine={engine}{options}", folder.join(name).display());
        builder.arg("--disk").arg(disk)
    })
}

/// Random reads and writes whose contents are checked, with each engine: some MiB, or for `KINDLING_IO_SECONDS`.
fn verified_io(queues: u32) {
    let folder = files::scratch().unwrap();
    let options = format!(",queues={queues},cache=writeback");
    make_disks(folder.path(), 64 * MIB);
    let mut guest = ready(with_disks(folder.path(), &options).cpus(queues));
    for (engine, name) in ENGINES {
        verify(&mut guest, engine, name, queues);
    }
    power_off(&mut guest);
}

fn verify(guest: &mut Guest, engine: &str, name: &str, queues: u32) {
    assert_eq!(output(guest, &format!("ls /sys/block/{name}/mq | wc -l")), queues.to_string());
    for queue in 0..queues {
        // Each processor has a queue of its own.
        let read = format!("dd if=/dev/{name} of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null");
        output(guest, &format!("taskset {:x} {read}", 1 << queue));
    }
    let seconds = seconds("KINDLING_IO_SECONDS", 0);
    let amount = match seconds {
        0 => "--io_size=8M".to_owned(),
        seconds => format!("--time_based --runtime={seconds}"),
    };
    let fio = format!(
        "fio --name=verified --filename=/dev/{name} --rw=randrw --bsrange=512-128k --blockalign=512 --size=60M \
         --ioengine=libaio --direct=1 --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_backlog={BACKLOG} \
         --fsync=64 {amount} --output-format=terse"
    );
    let limit = IO_LIMIT + 2 * Duration::from_secs(seconds);
    let report = guest.run_within(&fio, limit).unwrap();
    assert_eq!(report.code, 0, "{report:?}");
    // Terse format 3: error is field 5, KiB read field 6, KiB written field 47.
    let fields: Vec<_> =
        report.stdout.lines().find(|line| line.starts_with("3;")).unwrap().split(';').collect();
    assert_eq!(fields[4], "0", "{report:?}");
    let (read, written): (u64, u64) = (fields[5].parse().unwrap(), fields[46].parse().unwrap());
    // Half of the requests are reads, and what is written is read once more.
    assert!(written > 0 && read > written + written / 4, "{report:?}");
    println!("{engine}, {queues} queues: {read} KiB read, {written} KiB written");
}

#[test]
fn random_io_is_right_with_both_engines_and_one_queue() {
    verified_io(1);
}

#[test]
fn random_io_is_right_with_both_engines_and_four_queues() {
    verified_io(4);
}

#[test]
fn fstrim_makes_the_hosts_file_smaller() {
    let folder = files::scratch().unwrap();
    make_disks(folder.path(), 64 * MIB);
    let mut guest = ready(with_disks(folder.path(), ""));
    for (engine, name) in ENGINES {
        let spent = || spent(&folder.path().join(name).display().to_string());
        let make = "mke2fs -q -t ext4 -E nodiscard,lazy_itable_init=0";
        output(&mut guest, &format!("{make} /dev/{name} && mount -t ext4 /dev/{name} /mnt"));
        let write = "dd if=/dev/zero of=/mnt/large bs=1M count=20 conv=fsync && rm /mnt/large && sync";
        output(&mut guest, write);
        let before = spent();
        assert!(before > 20 * MIB, "{before}");
        output(&mut guest, "fstrim -v /mnt && umount /mnt");
        let after = spent();
        assert!(after + 19 * MIB < before, "{engine}: {before} to {after}");
    }
    power_off(&mut guest);
}

#[test]
fn a_block_device_and_a_file_give_space_back_and_can_be_exchanged() {
    let folder = files::scratch().unwrap();
    let socket = folder.path().join("api");
    let first = LoopDevice::new(folder.path(), "first", 16 * MIB).unwrap();
    let second = LoopDevice::new(folder.path(), "second", 8 * MIB).unwrap();
    File::options().write(true).open(second.path()).unwrap().write_all(b"second\n").unwrap();
    let plain = disk(folder.path(), "plain", 16 * MIB);
    let mut guest = ready(
        with_root()
            .arg("--disk")
            .arg(format!("{},id=data,cache=writeback", first.path().display()))
            .arg("--disk")
            .arg(format!("{plain},cache=writeback"))
            // The other disk is none that the options name.
            .arg("--landlock=off")
            .arg("--api-sock")
            .arg(&socket),
    );
    for (name, file) in [("vdb", first.file().display().to_string()), ("vdc", plain)] {
        let mut run = |command: &str| output(&mut guest, &command.replace('@', &format!("/dev/{name}")));
        run("dd if=/dev/urandom of=@ bs=1M count=16 oflag=direct conv=fsync 2>/dev/null");
        let before = spent(&file);
        assert!(before >= 16 * MIB, "{name}: {before}");
        run("blkdiscard --zeroout --offset 1M --length 1M @");
        let zeros = run("dd if=@ bs=1M skip=1 count=1 iflag=direct 2>/dev/null | md5sum");
        assert!(zeros.starts_with("b6d81b360a5672d80c27430f39153e2c"), "{name}: {zeros}");
        run("blkdiscard --offset 4M --length 12M @");
        let after = spent(&file);
        assert!(after + 11 * MIB < before, "{name}: {before} to {after}");
    }

    let exchange = json!({"drive_id": "data", "path_on_host": second.path()});
    patch(&Client::new(&socket), "/drives/data", &exchange);
    let size = (8 * MIB / 512).to_string();
    output(&mut guest, &format!("until [ $(cat /sys/block/vdb/size) = {size} ]; do sleep 0.1; done"));
    assert_eq!(
        output(&mut guest, "dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -n 1"),
        "second"
    );
    power_off(&mut guest);
}

/// The host's own memory outlives the monitor. That a flush goes beyond it is for the tests of the device.
#[test]
fn nothing_that_was_flushed_is_left_in_the_monitor_when_it_is_killed() {
    let folder = files::scratch().unwrap();
    make_disks(folder.path(), 32 * MIB);
    let start = || ready(with_disks(folder.path(), ",direct,cache=writeback"));
    let mut guest = start();
    let sums = ENGINES.map(|(_, name)| {
        output(&mut guest, &format!("mke2fs -q -t ext4 /dev/{name} && mount -t ext4 /dev/{name} /mnt"));
        let write = "dd if=/dev/urandom of=/mnt/file bs=64k count=25 conv=fsync && md5sum /mnt/file";
        output(&mut guest, &format!("({write}) 2>/dev/null"))
    });
    guest.signal(libc::SIGKILL).unwrap();
    guest.wait_exit(END_LIMIT).unwrap();
    drop(guest);
    let mut guest = start();
    for ((engine, name), sum) in ENGINES.into_iter().zip(sums) {
        // The journal is replayed here.
        output(&mut guest, &format!("mount -t ext4 /dev/{name} /mnt"));
        assert_eq!(
            output(&mut guest, "md5sum /mnt/file && umount /mnt").lines().next(),
            Some(&sum[..]),
            "{engine}"
        );
    }
    power_off(&mut guest);
}

#[test]
fn a_disk_works_again_after_its_driver_was_unbound() {
    let folder = files::scratch().unwrap();
    let data = disk(folder.path(), "data", 8 * MIB);
    let mut guest = ready(with_root().cpus(2).arg("--disk").arg(format!("{data},engine=async,queues=2")));
    let name = output(&mut guest, "basename $(readlink /sys/block/vdb/device)");
    for round in 0..3 {
        // Over one queue and back over the other.
        let write =
            format!("echo round {round} | taskset 1 dd of=/dev/vdb bs=512 conv=sync,fsync 2>/dev/null");
        output(&mut guest, &write);
        output(&mut guest, &format!("echo {name} > /sys/bus/virtio/drivers/virtio_blk/unbind"));
        assert_ne!(guest.run("test -e /sys/block/vdb").unwrap().code, 0);
        output(&mut guest, &format!("echo {name} > /sys/bus/virtio/drivers/virtio_blk/bind"));
        let read = "taskset 2 dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -n 1";
        let read = output(&mut guest, read);
        assert_eq!(read, format!("round {round}"));
    }
    power_off(&mut guest);
}

#[test]
fn two_hundred_disks_in_one_guest_are_all_usable() {
    const DISKS: usize = 200;
    let folder = files::scratch().unwrap();
    let mut builder = Guest::builder().memory("512M").modules(&["virtio_mmio", "virtio_blk"]);
    let mut paths = Vec::new();
    for index in 0..DISKS {
        let path = folder.path().join(format!("d{index}"));
        let mut sector = format!("disk number {index}\n").into_bytes();
        sector.resize(4096, 0);
        fs::write(&path, sector).unwrap();
        builder = builder.arg("--disk").arg(&path);
        paths.push(path);
    }
    let mut guest = ready(builder);
    assert_eq!(output(&mut guest, "ls /sys/block | grep -c ^vd"), DISKS.to_string());
    // Each is read, and written in another place.
    let copy = "for disk in /sys/block/vd*; do name=/dev/${disk##*/}; \
                dd if=$name of=$name bs=512 count=1 seek=1 iflag=direct oflag=direct 2>/dev/null || exit 1; done";
    let copied = guest.run_within(copy, IO_LIMIT).unwrap();
    assert_eq!(copied.code, 0, "{copied:?}");
    power_off(&mut guest);
    for (index, path) in paths.iter().enumerate() {
        let bytes = fs::read(path).unwrap();
        assert!(bytes[..512].starts_with(format!("disk number {index}\n").as_bytes()));
        assert_eq!(bytes[..512], bytes[512..1024], "{}", path.display());
    }
}
