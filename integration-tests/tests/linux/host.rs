//! What tests of devices stand on: programs, disks and networks at the guest's host.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use kindling_integration_tests::harness::{Tap, files, on_host};

/// For a program at the host.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn programs_run_at_the_host() {
    let says = [
        ("ip", "-V", "iproute2"),
        ("iperf3", "-v", "iperf 3"),
        ("socat", "-V", "socat version"),
        ("fio", "--version", "fio-"),
        ("ethtool", "--version", "ethtool version"),
        ("curl", "--version", "libcurl"),
        ("fstrim", "--version", "util-linux"),
    ];
    for (program, argument, expected) in says {
        let said = on_host(program, &[argument], SOON).unwrap();
        assert!(said.contains(expected), "{program}: {said}");
    }
}

#[test]
fn tap_carries_the_hosts_address_and_is_gone_with_its_owner() {
    let taps = [Tap::new("10.0.0.1/24", &[]).unwrap(), Tap::new("10.0.0.1/24", &["multi_queue"]).unwrap()];
    for tap in &taps {
        let addresses = tap.run("ip", &["-o", "address", "show", "dev", Tap::NAME], SOON).unwrap();
        assert!(addresses.contains("inet 10.0.0.1/24"), "{addresses}");
    }
    let details = taps[1].run("ip", &["-d", "link", "show", Tap::NAME], SOON).unwrap();
    assert!(details.contains("multi_queue numqueues"), "{details}");
    let mut server = taps[0].start("iperf3", &["--server", "--one-off", "--bind", "10.0.0.1"]).unwrap();
    let connect = "until iperf3 --client 10.0.0.1 --bytes 1M --json; do sleep 0.1; done";
    let report = taps[0].run("sh", &["-c", connect], SOON).unwrap();
    assert!(report.contains("\"bytes\":\t1048576"), "{report}");
    assert!(server.wait(SOON).unwrap().success());
    let namespaces = [taps[0].path(), taps[1].path()];
    assert!(namespaces.iter().all(|path| path.exists()), "{namespaces:?}");
    drop(taps);
    assert!(namespaces.iter().all(|path| !path.exists()), "{namespaces:?}");
}

#[test]
fn scratch_files_can_have_holes_and_be_read_directly() {
    let folder = files::scratch().unwrap();
    let path = folder.path().join("disk");
    let mut file = File::create(&path).unwrap();
    file.set_len(4 << 30).unwrap();
    file.write_all(&[0x5a; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    let blocks = fs::metadata(&path).unwrap().blocks();
    assert!((2048..3000).contains(&blocks), "{blocks}");

    let name = format!("--filename={}", path.display());
    let options =
        ["--name=direct", &name, "--readonly", "--rw=read", "--size=1M", "--ioengine=libaio", "--direct=1"];
    let report = on_host("fio", &options, SOON).unwrap();
    assert!(report.contains("issued rwts: total=256,0,0,0 short=0,0,0,0"), "{report}");

    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes plain numbers; the file is open.
    assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, 1 << 19) }, 0);
    assert!(fs::metadata(&path).unwrap().blocks() < 2048);
    drop(folder);
    assert!(!path.exists());
}

#[test]
fn root_image_is_a_file_system_that_tests_share_or_copy() {
    let shared = files::root_image().unwrap();
    assert_eq!(files::root_image().unwrap(), shared);
    let folder = files::scratch().unwrap();
    let own = files::writable_root_image(folder.path()).unwrap();
    assert_ne!(own, shared);
    for image in [&shared, &own] {
        let mut magic = [0; 2];
        let mut file = File::open(image).unwrap();
        file.seek(SeekFrom::Start(1024 + 56)).unwrap();
        file.read_exact(&mut magic).unwrap();
        assert_eq!(magic, [0x53, 0xef], "{}", image.display());
    }
    assert_eq!(fs::metadata(&own).unwrap().len(), fs::metadata(&shared).unwrap().len());
}
