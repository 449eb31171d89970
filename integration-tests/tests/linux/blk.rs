//! Disks: a root file system, data that survives, space that is given back, drivers that come and go.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use kindling_api::client::Client;
use kindling_integration_tests::harness::{Guest, LoopDevice, files};
use serde_json::json;

use super::live::patch;
use super::{END_LIMIT, output, power_off, ready, seconds, with_root};

/// A command that reads or writes as much as a test does.
pub const IO_LIMIT: Duration = Duration::from_secs(300);

pub const MIB: u64 = 1 << 20;

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

/// Random reads and writes whose contents are checked, for `KINDLING_IO_SECONDS`.
fn verified_io(engine: &str, queues: u32) {
    let folder = files::scratch().unwrap();
    let data = disk(folder.path(), "data", 64 * MIB);
    let mut guest = ready(
        with_root()
            .cpus(queues)
            .arg("--disk")
            .arg(format!("{data},engine={engine},queues={queues},cache=writeback")),
    );
    assert_eq!(output(&mut guest, "ls /sys/block/vdb/mq | wc -l"), queues.to_string());
    let seconds = seconds("KINDLING_IO_SECONDS", 5);
    let fio = format!(
        "fio --name=verified --filename=/dev/vdb --rw=randrw --bsrange=512-128k --blockalign=512 --size=60M \
         --ioengine=libaio --direct=1 --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_backlog=256 \
         --fsync=64 --time_based --runtime={seconds} --output-format=terse"
    );
    let limit = IO_LIMIT + 2 * Duration::from_secs(seconds);
    let report = guest.run_within(&fio, limit).unwrap();
    assert_eq!(report.code, 0, "{report:?}");
    // Terse format 3: error is field 5, KiB read field 6, KiB written field 47.
    let fields: Vec<_> =
        report.stdout.lines().find(|line| line.starts_with("3;")).unwrap().split(';').collect();
    assert_eq!(fields[4], "0", "{report:?}");
    let (read, written): (u64, u64) = (fields[5].parse().unwrap(), fields[46].parse().unwrap());
    assert!(read > 0 && written > 0, "{report:?}");
    println!("{engine}, {queues} queues: {seconds} s, {read} KiB read, {written} KiB written, all verified");
    power_off(&mut guest);
}

#[test]
fn random_io_is_right_with_the_sync_engine_and_one_queue() {
    verified_io("sync", 1);
}

#[test]
fn random_io_is_right_with_the_sync_engine_and_four_queues() {
    verified_io("sync", 4);
}

#[test]
fn random_io_is_right_with_the_async_engine_and_one_queue() {
    verified_io("async", 1);
}

#[test]
fn random_io_is_right_with_the_async_engine_and_four_queues() {
    verified_io("async", 4);
}

#[test]
fn fstrim_makes_the_hosts_file_smaller() {
    for engine in ["sync", "async"] {
        let folder = files::scratch().unwrap();
        let data = disk(folder.path(), "data", 128 * MIB);
        let mut guest = ready(with_root().arg("--disk").arg(format!("{data},engine={engine}")));
        output(
            &mut guest,
            "mke2fs -q -t ext4 -E nodiscard,lazy_itable_init=0 /dev/vdb && mount -t ext4 /dev/vdb /mnt",
        );
        output(
            &mut guest,
            "dd if=/dev/zero of=/mnt/large bs=1M count=40 conv=fsync && rm /mnt/large && sync",
        );
        let before = spent(&data);
        assert!(before > 40 * MIB, "{before}");
        output(&mut guest, "fstrim -v /mnt");
        let after = spent(&data);
        assert!(after + 39 * MIB < before, "{engine}: {before} to {after}");
        power_off(&mut guest);
    }
}

#[test]
fn a_block_device_and_a_file_give_space_back_and_can_be_exchanged() {
    let folder = files::scratch().unwrap();
    let socket = folder.path().join("api");
    let first = LoopDevice::new(folder.path(), "first", 16 * MIB).unwrap();
    let second = LoopDevice::new(folder.path(), "second", 8 * MIB).unwrap();
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
        let read = "dd if=@ bs=1M skip=1 count=1 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c";
        assert_eq!(run(read), "0", "{name}");
        run("blkdiscard --offset 4M --length 12M @");
        let after = spent(&file);
        assert!(after + 11 * MIB < before, "{name}: {before} to {after}");
    }

    let exchange = json!({"drive_id": "data", "path_on_host": second.path()});
    patch(&Client::new(&socket), "/drives/data", &exchange);
    let size = (8 * MIB / 512).to_string();
    output(&mut guest, &format!("until [ $(cat /sys/block/vdb/size) = {size} ]; do sleep 0.1; done"));
    output(&mut guest, "dd if=/dev/vdb of=/dev/null bs=1M iflag=direct 2>/dev/null");
    power_off(&mut guest);
}

#[test]
fn what_was_flushed_is_there_after_the_monitor_was_killed() {
    for engine in ["sync", "async,direct"] {
        let folder = files::scratch().unwrap();
        let data = disk(folder.path(), "data", 64 * MIB);
        let builder = || with_root().arg("--disk").arg(format!("{data},engine={engine},cache=writeback"));
        let mut guest = ready(builder());
        output(&mut guest, "mke2fs -q -t ext4 /dev/vdb && mount -t ext4 /dev/vdb /mnt");
        let write = "dd if=/dev/urandom of=/mnt/file bs=64k count=25 conv=fsync && md5sum /mnt/file";
        let sum = output(&mut guest, &format!("({write}) 2>/dev/null"));
        guest.signal(libc::SIGKILL).unwrap();
        guest.wait_exit(END_LIMIT).unwrap();
        let mut guest = ready(builder());
        // The journal is replayed here.
        output(&mut guest, "mount -t ext4 /dev/vdb /mnt");
        assert_eq!(output(&mut guest, "md5sum /mnt/file"), sum, "{engine}");
        power_off(&mut guest);
    }
}

#[test]
fn a_disk_works_again_after_its_driver_was_unbound() {
    let folder = files::scratch().unwrap();
    let data = disk(folder.path(), "data", 8 * MIB);
    let mut guest = ready(with_root().cpus(2).arg("--disk").arg(format!("{data},engine=async,queues=2")));
    let name = output(&mut guest, "basename $(readlink /sys/block/vdb/device)");
    for round in 0..3 {
        let write = format!("echo round {round} | dd of=/dev/vdb bs=512 conv=sync,fsync 2>/dev/null");
        output(&mut guest, &write);
        output(&mut guest, &format!("echo {name} > /sys/bus/virtio/drivers/virtio_blk/unbind"));
        assert_ne!(guest.run("test -e /sys/block/vdb").unwrap().code, 0);
        output(&mut guest, &format!("echo {name} > /sys/bus/virtio/drivers/virtio_blk/bind"));
        let read = output(&mut guest, "dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -n 1");
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
