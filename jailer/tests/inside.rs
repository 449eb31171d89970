//! What a program finds in the jail, and what it cannot do there. These tests need root, as the jailer does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{GID, Jailed, Place, UID, give, mounts, own_mounts, run, wait};
use kindling_integration_tests::harness::Process;
use kindling_integration_tests::jail_baits::{KEY, MESSAGE_QUEUE, SHARED_MEMORY};
use serde_json::{Value, json};

const NONE: [&str; 0] = [];

#[test]
fn there_is_nothing_but_the_executable_its_devices_and_a_folder_for_its_socket() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    let expected = json!({
        "/dev": ["40755", 0, 0, "0:0"],
        "/dev/kvm": ["20600", UID, GID, "10:232"],
        "/dev/net": ["40755", 0, 0, "0:0"],
        "/dev/net/tun": ["20600", UID, GID, "10:200"],
        "/dev/urandom": ["20400", UID, GID, "1:9"],
        "/run": ["40700", UID, GID, "0:0"],
        "/vmm": ["100550", 0, GID, "0:0"],
        "/vmm.pid": ["100644", 0, 0, "0:0"],
    });
    assert_eq!(jailed.report["files"], expected);
    let copy = fs::metadata(place.root().join("vmm")).unwrap();
    let original = fs::metadata(place.executable()).unwrap();
    assert_eq!((copy.nlink(), copy.len()), (1, original.len()));
    assert_ne!(copy.ino(), original.ino());
    assert_eq!(fs::read(place.root().join("vmm")).unwrap(), fs::read(place.executable()).unwrap());
    jailed.end();
}

#[test]
fn only_root_and_dev_are_mounted_and_neither_is_seen_on_the_host() {
    let place = Place::new();
    own_mounts();
    let host = mounts();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    let found = jailed.proc("mountinfo");
    let found: Vec<Vec<&str>> = found.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(found.iter().map(|mount| mount[4]).collect::<Vec<_>>(), ["/", "/dev"]);
    assert!(found[0][3].ends_with("/jails/vmm/a/root"), "{found:?}");
    assert!(found[0][5].contains("nosuid") && found[1][5].starts_with("ro,nosuid,noexec"), "{found:?}");
    assert_eq!(mounts(), host);
    assert_eq!(fs::read_dir(place.root().join("dev")).unwrap().count(), 0);
    assert_ne!(jailed.namespace("mnt"), fs::read_link("/proc/thread-self/ns/mnt").unwrap());
    // What clients do in the end, here even before it.
    fs::remove_dir_all(place.base().join("vmm/a")).unwrap();
    jailed.end();
}

#[test]
fn above_the_root_is_an_empty_file_system_that_the_jail_cannot_see() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    assert_eq!(jailed.report["parent_of_root_is_root"], true);
    // The host's own way up is not stopped at the root of another process.
    let above = |path: &str| format!("/proc/{}/root/{path}", jailed.pid);
    for path in [above(".."), above("../../..")] {
        let names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["jail"], "{path}");
    }
    let path = CString::new(above("..")).unwrap();
    // SAFETY: all zeros is a valid `statvfs`.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a string that ends in NUL, and the call writes one `statvfs`.
    assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) }, 0);
    let closed = libc::ST_RDONLY | libc::ST_NOSUID | libc::ST_NODEV | libc::ST_NOEXEC;
    assert_eq!(stat.f_flag & closed, closed);
    jailed.end();
}

#[test]
fn the_user_has_no_capability_no_group_but_its_own_and_no_way_to_more() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    let all = |number: u32| vec![number.to_string(); 4];
    assert_eq!(jailed.status("Uid"), all(UID));
    assert_eq!(jailed.status("Gid"), all(GID));
    assert_eq!(jailed.status("Groups"), NONE);
    no_capability(&jailed);
    jailed.end();
}

fn no_capability(jailed: &Jailed) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(jailed.status(set), ["0000000000000000"], "{set}");
    }
    assert_eq!(jailed.status("NoNewPrivs"), ["1"]);
    let locked = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    assert_eq!(jailed.report["securebits"], locked);
}

#[test]
fn what_a_jailed_program_must_not_do_fails() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    let mut attempts = jailed.report["attempts"].as_object().unwrap().clone();
    // It is nowhere.
    assert_eq!(attempts.remove("leave by .."), Some(libc::ENOENT.into()));
    assert_eq!(attempts.len(), 9);
    for (what, errno) in attempts {
        assert!(
            [libc::EPERM, libc::EACCES, libc::EROFS].map(Value::from).contains(&errno),
            "{what}: {errno}"
        );
    }
    jailed.end();
}

#[test]
fn user_0_is_nobody_special_in_a_jail() {
    let place = Place::new();
    let mut jailer = place.jailer_as(0, &NONE, &["report"]);
    let jailed = Jailed::start(&mut jailer);
    assert_eq!(jailed.status("Uid"), ["0"; 4]);
    no_capability(&jailed);
    for what in [
        "change the root",
        "mount",
        "make a device",
        "write to /dev",
        "raise the limit",
        "make a user namespace",
    ] {
        assert_ne!(jailed.report["attempts"][what], 0, "{what}");
    }
    jailed.end();
}

#[test]
fn the_devices_that_the_host_has_open_for_the_user() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    for (device, write) in [("/dev/kvm", true), ("/dev/net/tun", true), ("/dev/urandom", false)] {
        let host = fs::File::options().read(true).write(write).open(device);
        let expected = match host.map_err(|error| error.raw_os_error().unwrap()) {
            Ok(_) => vec![0],
            // A host without one answers as for any device without a driver.
            Err(libc::ENOENT) => vec![libc::ENXIO, libc::ENODEV],
            Err(errno) => vec![errno],
        };
        let found = &jailed.report["devices"][device];
        assert!(expected.iter().any(|errno| found == errno), "{device}: {found} instead of {expected:?}");
    }
    jailed.end();
}

#[test]
fn the_command_that_starts_a_guest_from_options_stands_before_all_options() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer_for(&NONE, &["run", "--kernel", "run", "report"]));
    let arguments: Vec<_> = jailed.report["arguments"].as_array().unwrap().iter().collect();
    assert_eq!(arguments[..4], ["/vmm", "run", "--id", "a"]);
    assert_eq!(arguments[10..], ["--kernel", "run", "report"]);
    jailed.end();
}

#[test]
fn it_stands_in_its_root_with_an_empty_environment_and_its_arguments() {
    let place = Place::new();
    let options = ["--seccomp-level", "1"];
    let jailed = Jailed::start(&mut place.jailer_for(&options, &["--api-sock", "s", "--", "", "report"]));
    assert_eq!(jailed.report["folder"], "/");
    assert_eq!(jailed.report["environment"], json!([]));
    assert_eq!(jailed.proc("environ"), "");
    let arguments: Vec<_> = jailed.report["arguments"].as_array().unwrap().iter().collect();
    let arguments: Vec<&str> = arguments.iter().map(|argument| argument.as_str().unwrap()).collect();
    assert_eq!(arguments[..3], ["/vmm", "--id", "a"]);
    assert_eq!(arguments[9..], ["--seccomp-level", "1", "--api-sock", "s", "--", "", "report"]);
    assert_eq!(
        [arguments[3], arguments[5], arguments[7]],
        ["--start-time-us", "--start-time-cpu-us", "--parent-cpu-time-us"]
    );
    for time in [arguments[4], arguments[6], arguments[8]] {
        assert!(time.parse::<u64>().unwrap() > 0);
    }
    assert_eq!(jailed.proc("comm"), "vmm\n");
    jailed.end();
}

#[test]
fn descriptors_that_were_left_open_are_closed() {
    let place = Place::new();
    let secret = fs::File::open("/etc").unwrap();
    let mut command = place.jailer(&NONE);
    let leak = move || {
        for fd in 3..=1000 {
            // SAFETY: the call takes numbers. It leaves the standard library's own pipe alone, which is closed by exec.
            if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
                // SAFETY: as above.
                unsafe { libc::dup2(secret.as_raw_fd(), fd) };
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls.
    unsafe { command.pre_exec(leak) };
    let jailed = Jailed::start(&mut command);
    assert_eq!(jailed.report["descriptors"], json!([0, 1, 2]));
    jailed.end();
}

#[test]
fn keys_shared_memory_and_message_queues_of_the_host_are_not_there() {
    // This thread stands for the host.
    // SAFETY: the call takes a number.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWIPC) }, 0);
    // SAFETY: the call takes numbers.
    assert!(unsafe { libc::shmget(SHARED_MEMORY, 1, libc::IPC_CREAT | 0o666) } >= 0);
    let (flags, attributes) = (libc::O_CREAT | libc::O_RDWR, std::ptr::null::<libc::mq_attr>());
    // SAFETY: the name ends in NUL; a queue without attributes has those that are usual.
    assert!(unsafe { libc::mq_open(MESSAGE_QUEUE.as_ptr(), flags, 0o666, attributes) } >= 0);
    let add_key = || {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: strings end in NUL, a keyring without a name is new, and a byte of the key's content is read.
        let key = unsafe {
            libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, none);
            let (kind, content, length) = (c"user".as_ptr(), c"x".as_ptr(), 1_usize);
            let keyring = libc::KEY_SPEC_SESSION_KEYRING;
            libc::syscall(libc::SYS_add_key, kind, KEY.as_ptr(), content, length, keyring)
        };
        if key < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };

    let place = Place::new();
    let mut jailer = place.jailer(&NONE);
    // SAFETY: the closure only makes system calls.
    unsafe { jailer.pre_exec(add_key) };
    let jailed = Jailed::start(&mut jailer);
    let none = json!({"key": libc::ENOKEY, "shared memory": libc::ENOENT, "message queue": libc::ENOENT});
    assert_eq!(jailed.report["baits"], none);
    assert_ne!(jailed.namespace("ipc"), fs::read_link("/proc/thread-self/ns/ipc").unwrap());
    jailed.end();
}

#[test]
fn limits_are_those_given_or_2048_descriptors() {
    let limits = |options: &[&str]| {
        let place = Place::new();
        let jailed = Jailed::start(&mut place.jailer(options));
        let text = jailed.proc("limits");
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        let found = (of("Max open files"), of("Max file size"));
        jailed.end();
        found
    };
    let (descriptors, size) = limits(&[]);
    assert_eq!(descriptors, ["2048", "2048"]);
    assert_eq!(size, ["unlimited", "unlimited"]);
    let (descriptors, size) = limits(&["--resource-limit", "no-file=77", "--resource-limit", "fsize=4096"]);
    assert_eq!((descriptors, size), (vec!["77".to_owned(); 2], vec!["4096".to_owned(); 2]));
}

#[test]
fn a_daemon_has_its_own_session_and_null_streams_and_the_jailer_ends_with_0() {
    let place = Place::new();
    let jailed = Jailed::detached(&place, &["--daemonize"]);
    assert_eq!(jailed.report["pid"], jailed.pid, "the number on the host");
    for stream in 0..3 {
        assert_eq!(
            fs::read_link(format!("/proc/{}/fd/{stream}", jailed.pid)).unwrap().to_str(),
            Some("/dev/null")
        );
    }
    assert_eq!(jailed.report["descriptors"], json!([0, 1, 2]));
    let stat = jailed.proc("stat");
    // Behind the name: state, parent, group, session, terminal.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!((fields[3], fields[4]), (jailed.pid.to_string().as_str(), "0"));
    no_capability(&jailed);
}

#[test]
fn a_process_id_namespace_has_the_program_as_its_first_process() {
    for options in [&["--new-pid-ns"][..], &["--new-pid-ns", "--daemonize"]] {
        let place = Place::new();
        let jailed = Jailed::detached(&place, options);
        assert_eq!((&jailed.report["pid"], &jailed.report["parent"]), (&json!(1), &json!(0)));
        assert_eq!(jailed.status("NSpid"), [jailed.pid.to_string(), "1".to_owned()]);
        assert_ne!(jailed.namespace("pid"), fs::read_link("/proc/self/ns/pid").unwrap());
        no_capability(&jailed);
    }
}

#[test]
fn the_network_namespace_is_the_one_that_is_named_even_over_a_symbolic_link() {
    let place = Place::new();
    let holder = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
    let holder = Process::new(holder, "unshare");
    let namespace = format!("/proc/{}/ns/net", holder.id());
    let ours = fs::read_link("/proc/self/ns/net").unwrap();
    wait(|| fs::read_link(&namespace).is_ok_and(|link| link != ours));
    let link = place.path().join("netns");
    std::os::unix::fs::symlink(&namespace, &link).unwrap();
    let jailed = Jailed::start(&mut place.jailer(&["--netns", link.to_str().unwrap()]));
    assert_eq!(jailed.namespace("net"), fs::read_link(&namespace).unwrap());
    jailed.end();
    let line = place.jailer(&["--netns", "/proc/self/ns/uts"]).output().unwrap();
    let line = common::failed(&line);
    assert!(line.contains("cannot join network namespace /proc/self/ns/uts: Invalid argument"), "{line}");
}

#[test]
fn what_clients_put_there_before_is_there_unchanged() {
    let place = Place::new();
    let root = place.make_root();
    fs::write(root.join("kernel"), "kernel").unwrap();
    fs::create_dir_all(root.join("disks/a")).unwrap();
    fs::write(root.join("disks/a/disk"), "disk").unwrap();
    // Clients also link what they have elsewhere.
    fs::write(place.path().join("elsewhere"), "linked").unwrap();
    fs::hard_link(place.path().join("elsewhere"), root.join("linked")).unwrap();
    give(&root.join("disks/a/disk"), UID, GID);
    let before = common::listing(&root);
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    assert_eq!(jailed.report["files"]["/disks/a/disk"], json!(["100644", UID, GID, "0:0"]));
    assert_eq!(jailed.report["files"]["/linked"], json!(["100644", 0, 0, "0:0"]));
    let after = common::listing(&root);
    for (path, line) in before.iter().filter(|(path, _)| **path != root) {
        assert_eq!(after.get(path), Some(line), "{}", path.display());
    }
    let meta = fs::metadata(&root).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (UID, GID, 0o700));
    jailed.end();
}

#[test]
fn what_the_host_mounts_in_the_jail_is_seen_there_before_and_after_the_start() {
    let place = Place::new();
    own_mounts();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(place.base()).unwrap();
    run("mount", &["-t", "tmpfs", "none", &path("jails")]);
    let root = place.make_root();
    for name in ["early", "late"] {
        fs::create_dir_all(place.path().join(name)).unwrap();
        fs::write(place.path().join(name).join("disk"), name).unwrap();
        fs::create_dir(root.join(name)).unwrap();
    }
    let mount = |name: &str| {
        run("mount", &["--bind", &path(name), root.join(name).to_str().unwrap()]);
    };
    mount("early");
    let before = mounts();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    assert_eq!(mounts(), before, "nothing is mounted on the host");
    assert!(jailed.report["files"]["/early/disk"].is_array());
    assert!(jailed.report["files"]["/late/disk"].is_null());
    mount("late");
    let seen = fs::read_to_string(format!("/proc/{}/root/late/disk", jailed.pid)).unwrap();
    assert_eq!(seen, "late");
    jailed.end();
    run("umount", &["--lazy", &path("jails")]);
}

#[test]
fn the_standard_streams_are_those_of_the_jailer() {
    let place = Place::new();
    let output = place.jailer(&NONE).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"{") && output.stderr.is_empty());
}
