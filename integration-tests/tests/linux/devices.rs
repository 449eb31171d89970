//! All devices together: none holds up another, and all work for a second kernel.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::{Guest, HangingDisk, Tap, files, image};

use super::vsock::connect;
use super::{BOOT_LIMIT, MODULES, output, power_off, ready, with_root};

/// Has what echoes at port 5000 in the guest do so.
fn echo_over_vsock(path: &Path) {
    let mut stream = connect(path, 5000);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello");
}

#[test]
fn hanging_disks_leave_network_sockets_console_and_shutdown_alone() {
    let folder = files::scratch().unwrap();
    let tap = Tap::new("10.0.0.1/24", &[]).unwrap();
    let hanging = ["sync", "async"].map(|engine| {
        let folder = folder.path().join(engine);
        std::fs::create_dir(&folder).unwrap();
        (engine, HangingDisk::new(&folder).unwrap())
    });
    let vsock = folder.path().join("v.sock");
    let with_disks = hanging.iter().fold(with_root(), |builder, (engine, disk)| {
        builder.arg("--disk").arg(format!("{},engine={engine}", disk.path().display()))
    });
    let mut guest = ready(
        with_disks
            .modules(&MODULES)
            .tap(&tap)
            .arg("--net")
            .arg(format!("tap={}", Tap::NAME))
            .arg("--vsock")
            .arg(format!("cid=3,path={}", vsock.display()))
            .arg("--rng"),
    );
    // Dropped before the guest: nothing that waits for a disk holds up the end of a test that fails.
    let hanging = hanging;
    output(&mut guest, "ip link set eth0 up && ip address add 10.0.0.2/24 dev eth0");
    output(&mut guest, "socat VSOCK-LISTEN:5000,fork PIPE >/dev/null 2>&1 &");
    let read = |name| format!("dd if=/dev/{name} of=/dev/null bs=4096 count=1 iflag=direct");
    for ((_, disk), name) in hanging.iter().zip(["vdb", "vdc"]) {
        output(&mut guest, &format!("{} 2>/dev/null", read(name)));
        disk.hang();
        output(&mut guest, &format!("{} skip=1 >/dev/null 2>&1 &", read(name)));
    }
    let both_wait = "[ $(pidof dd | wc -w) = 2 ]";
    output(&mut guest, &format!("sleep 1; {both_wait}"));
    output(&mut guest, "ping -c 3 -W 10 10.0.0.1");
    echo_over_vsock(&vsock);
    assert_eq!(output(&mut guest, "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c"), "16");
    // The other disk.
    output(&mut guest, "dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null");
    output(&mut guest, both_wait);

    let asked = Instant::now();
    guest.signal(libc::SIGTERM).unwrap();
    let ended = guest.wait_exit(Duration::from_secs(20));
    drop(hanging);
    assert_eq!(ended.unwrap().code(), Some(143), "{}", guest.console());
    println!("ended {:?} after SIGTERM", asked.elapsed());
}

#[test]
fn all_devices_work_for_a_second_kernel() {
    let folder = files::scratch().unwrap();
    let tap = Tap::new("10.0.0.1/24", &[]).unwrap();
    let vsock = folder.path().join("v.sock");
    let image = image().unwrap();
    let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
    let (kernel, initrd) = (image.vmlinuz(), image.initramfs());
    let mut guest = ready(
        with_root()
            .memory("1G")
            .cpus(2)
            .modules(&MODULES)
            .tap(&tap)
            .arg("--disk")
            .arg(format!("{},ro", kernel.display()))
            .arg("--disk")
            .arg(format!("{},ro,engine=async", initrd.display()))
            .arg("--net")
            .arg(format!("tap={}", Tap::NAME))
            .arg("--vsock")
            .arg(format!("cid=3,path={}", vsock.display()))
            .arg("--rng")
            .arg("--balloon")
            .arg("64M"),
    );
    let exercise = |guest: &mut Guest| {
        output(
            guest,
            "ip link set eth0 up && ip address add 10.0.0.2/24 dev eth0 && ping -c 2 -W 10 10.0.0.1",
        );
        output(guest, "socat VSOCK-LISTEN:5000 PIPE >/dev/null 2>&1 &");
        echo_over_vsock(&vsock);
        assert_eq!(output(guest, "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c"), "16");
        output(guest, "dd if=/dev/vdb of=/dev/null bs=1M iflag=direct 2>/dev/null");
        output(guest, "dd if=/dev/vdc of=/dev/null bs=1M iflag=direct 2>/dev/null");
        output(guest, "awk '/MemTotal/ {exit $2 > 960000}' /proc/meminfo");
    };
    exercise(&mut guest);
    let load = format!(
        "head -c {} /dev/vdb > /tmp/kernel && head -c {} /dev/vdc > /tmp/initrd && \
         kexec --load /tmp/kernel --initrd /tmp/initrd --command-line \"$(cat /proc/cmdline) second\"",
        bytes(&kernel),
        bytes(&initrd)
    );
    let loaded = guest.run_within(&load, BOOT_LIMIT).unwrap();
    assert_eq!(loaded.code, 0, "{loaded:?}");
    guest.begin("sync; kexec --exec", BOOT_LIMIT).unwrap();
    guest.wait_ready(BOOT_LIMIT).unwrap();
    assert!(output(&mut guest, "cat /proc/cmdline").ends_with(" second"));
    exercise(&mut guest);
    power_off(&mut guest);
}
