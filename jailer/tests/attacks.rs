//! What others may have prepared, and what goes wrong: refused with a line that says why, or harmless, and nothing outside
//! the jail is changed. These tests need root, as the jailer does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Jailed, Place, STRANGER, UID, command, copy, failed, listing, mounts, own_mounts, run};

const NONE: [&str; 0] = [];

const JAILER: &str = env!("CARGO_BIN_EXE_jailer");

/// Whose planted links may be: root's, the jail's own user's and somebody else's.
const OWNERS: [u32; 3] = [0, UID, STRANGER];

/// Puts something in the place of a path.
type Plant = fn(&Path, &Path);

#[test]
fn a_symbolic_link_at_any_component_is_refused() {
    for component in [
        "jails",
        "jails/vmm",
        "jails/vmm/a",
        "jails/vmm/a/root",
        "jails/vmm/a/root/dev",
        "jails/vmm/a/root/run",
    ] {
        let place = Place::new();
        let target = place.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("file"), "precious").unwrap();
        let link = place.path().join(component);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&target, &link).unwrap();
        for owner in OWNERS {
            lchown(&link, Some(owner), Some(owner)).unwrap();
            let line = place.refused(&NONE);
            assert!(line.contains(&format!("{} is not a folder", link.display())), "{line}");
        }
    }
}

#[test]
fn a_base_may_be_relative_and_may_not_lead_over_a_symbolic_link() {
    let place = Place::new();
    let mut relative = command("a", &place.executable(), Path::new("./jails"));
    let output = relative.args(["--", "mark"]).current_dir(place.path()).output().unwrap();
    assert!(output.status.success() && place.root().join("vmm").exists(), "{output:?}");
    symlink(place.path(), place.path().join("link")).unwrap();
    let before = place.listing();
    let line = failed(&command("b", &place.executable(), &place.path().join("link/jails")).output().unwrap());
    assert!(line.contains("link is not a folder"), "{line}");
    assert_eq!(place.listing(), before);
}

#[test]
fn a_link_in_the_place_of_a_file_that_the_jailer_writes_is_refused() {
    let plants: [(Plant, &str); 4] = [
        (|target, path| symlink(target, path).unwrap(), "is a symbolic link"),
        (|_, path| symlink("nowhere", path).unwrap(), "is a symbolic link"),
        (|target, path| fs::hard_link(target, path).unwrap(), "is a hard link"),
        (|_, path| fs::create_dir(path).unwrap(), "is in the way"),
    ];
    for (plant, fault) in plants {
        for file in ["root/vmm", "root/vmm.pid", "pid", "lock"] {
            let place = Place::new();
            let target = place.path().join("target");
            fs::write(&target, "precious").unwrap();
            let path = place.make_root().parent().unwrap().join(file);
            plant(&target, &path);
            for owner in OWNERS {
                lchown(&path, Some(owner), Some(owner)).unwrap();
                let line = place.refused(&NONE);
                assert!(line.contains(&format!("{} {fault}", path.display())), "{line}");
            }
        }
    }
}

#[test]
fn the_executable_may_not_be_a_link_to_the_original_in_the_jail() {
    let place = Place::new();
    fs::hard_link(place.executable(), place.make_root().join("vmm")).unwrap();
    assert!(place.refused(&NONE).contains("is a hard link"));
}

#[test]
fn ids_that_lead_elsewhere_are_bad_command_lines() {
    let place = Place::new();
    let before = place.listing();
    let long = "a".repeat(65);
    for id in ["..", ".", "", "a/../b", "/etc", "a/b", "a\n", "ä", long.as_str()] {
        let output = command(id, &place.executable(), &place.base()).output().unwrap();
        assert_eq!(output.status.code(), Some(153), "{id:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--id"), "{id:?}: {output:?}");
    }
    assert_eq!(place.listing(), before);
}

#[test]
fn a_full_disk_is_named_and_left_as_it_was() {
    let place = Place::new();
    own_mounts();
    fs::create_dir(place.base()).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "none", place.base().to_str().unwrap()]);
    for options in [&[][..], &["--daemonize"]] {
        let line = place.refused(options);
        assert!(line.contains("cannot copy the executable to") && line.contains("No space left"), "{line}");
    }
    run("umount", &[place.base().to_str().unwrap()]);
}

#[test]
fn a_folder_among_the_standard_streams_is_refused() {
    let place = Place::new();
    let output = place.jailer(&NONE).stdin(fs::File::open("/etc").unwrap()).output().unwrap();
    assert!(failed(&output).contains("standard input is a folder"));
}

#[test]
fn what_a_dead_one_left_is_replaced_and_what_clients_left_is_not() {
    let place = Place::new();
    let root = place.make_root();
    fs::write(root.join("disk"), "disk").unwrap();
    Jailed::start(&mut place.jailer(&NONE)).end();
    // A socket as the monitor leaves it, a copy that was not finished, and a record of a process that is another's now.
    drop(UnixListener::bind(root.join("run/firecracker.socket")).unwrap());
    fs::write(root.join("vmm"), vec![0xff; 4 << 20]).unwrap();
    fs::write(root.parent().unwrap().join("pid"), std::process::id().to_string()).unwrap();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    assert_eq!(fs::read(root.join("vmm")).unwrap(), fs::read(place.executable()).unwrap(), "no stale tail");
    assert!(!root.join("run/firecracker.socket").exists());
    assert_eq!(fs::read_to_string(root.join("vmm.pid")).unwrap(), jailed.pid.to_string());
    assert_eq!(fs::read_to_string(root.join("disk")).unwrap(), "disk");
    jailed.end();
    for record in ["", "0", "-1", "99999999999999999999999", "self", "../..", "\0"] {
        fs::write(root.parent().unwrap().join("pid"), record).unwrap();
        Jailed::start(&mut place.jailer(&NONE)).end();
    }
    // A client's file where the monitor would have its socket is the client's.
    fs::write(root.join("run/firecracker.socket"), "file").unwrap();
    Jailed::start(&mut place.jailer(&NONE)).end();
    assert!(fs::metadata(root.join("run/firecracker.socket")).unwrap().file_type().is_file());
}

/// Runs `disturb` over and over beside so many starts, and more until it has met some and missed some: each either runs the
/// probe or is refused with a line. Calls `look` after each that ran.
fn disturbed(place: &Place, rounds: usize, disturb: impl Fn() + Sync, look: impl Fn()) {
    /// Ends the disturbance also when the test fails.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                disturb();
            }
        });
        let (mut ran, mut refused) = (0, 0);
        while ran + refused < rounds || ran == 0 || refused == 0 {
            assert!(ran + refused < 2000, "{ran} ran, and {refused} were refused");
            let output = place.jailer_for(&NONE, &["mark"]).output().unwrap();
            if output.status.success() {
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(text.trim().parse::<u64>().is_ok(), "only the probe prints a number: {output:?}");
                look();
                ran += 1;
            } else {
                failed(&output);
                refused += 1;
            }
        }
    });
}

#[test]
fn an_executable_that_is_swapped_meanwhile_is_copied_whole_or_not_at_all() {
    let place = Place::new();
    let path = |name: &str| place.path().join(name);
    let (good, link, secret) = (path("good"), path("link"), path("secret"));
    fs::copy(place.executable(), &good).unwrap();
    let program = fs::read(&good).unwrap();
    // It would run, too, but for its mode.
    let precious = [&program[..], b"precious"].concat();
    fs::write(&secret, &precious).unwrap();
    let disturb = || {
        // A link to a file that must not be run, then the good one again.
        let _ = fs::remove_file(&link);
        symlink(&secret, &link).unwrap();
        fs::rename(&link, place.executable()).unwrap();
        let _ = fs::hard_link(&good, &link);
        fs::rename(&link, place.executable()).unwrap();
    };
    let look = || assert!(fs::read(place.root().join("vmm")).unwrap() == program, "another file was run");
    disturbed(&place, 150, disturb, look);
    assert!(fs::read(secret).unwrap() == precious);
}

#[test]
fn folders_and_files_of_the_jail_that_are_swapped_meanwhile_lead_nowhere_else() {
    // The jail's user swaps them, who may change them all.
    let place = Place::new();
    let precious = place.path().join("precious");
    fs::create_dir(&precious).unwrap();
    for folder in ["dev", "run", "root"] {
        fs::create_dir(precious.join(folder)).unwrap();
    }
    fs::write(precious.join("vmm"), "precious").unwrap();
    fs::write(precious.join("pid"), "precious").unwrap();
    let before = listing(&precious);
    let folder = place.make_root().parent().unwrap().to_owned();
    let aside = place.path().join("aside");
    for (name, target) in [
        ("root", "root"),
        ("root/dev", "dev"),
        ("root/run", "run"),
        ("root/vmm", "vmm"),
        ("pid", "pid"),
        ("lock", "pid"),
    ] {
        let path = folder.join(name);
        let planted = AtomicUsize::new(0);
        let remove_aside = || {
            let _ = fs::remove_dir_all(&aside);
            let _ = fs::remove_file(&aside);
        };
        let swap = || -> io::Result<()> {
            // Also where nothing is yet.
            let _ = fs::rename(&path, &aside);
            symlink(precious.join(target), &path)?;
            planted.fetch_add(1, Ordering::Relaxed);
            lchown(&path, Some(UID), Some(UID))?;
            std::thread::yield_now();
            fs::remove_file(&path)?;
            fs::rename(&aside, &path)
        };
        let disturb = || {
            if swap().is_err() {
                // The jailer has removed it, or made it anew just now: that one is next.
                remove_aside();
            }
        };
        disturbed(&place, 60, disturb, || ());
        remove_aside();
        assert!(planted.into_inner() > 0, "{name} was never swapped");
        assert_eq!(listing(&precious), before, "{name}");
        fs::create_dir_all(place.root()).unwrap();
    }
}

#[test]
fn a_killed_jailer_leaves_no_mount_and_the_next_start_works() {
    let place = Place::new();
    own_mounts();
    let before = mounts();
    let lock = place.make_root().with_file_name("lock");
    let (mut round, mut killed) = (0, 0);
    // At any step from its lock on; for some it comes too late, and those do not count.
    while round < 30 || killed < 10 {
        assert!(round < 2000, "only {killed} were killed in time");
        let mut child = place.jailer_for(&NONE, &["mark"]).stdout(Stdio::null()).spawn().unwrap();
        while !lock.exists() && child.try_wait().unwrap().is_none() {}
        std::thread::sleep(std::time::Duration::from_micros(round % 30 * 100));
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().signal() == Some(libc::SIGKILL));
        let next = place.jailer_for(&NONE, &["mark"]).output().unwrap();
        assert!(next.status.success(), "{next:?}");
        fs::remove_file(&lock).unwrap();
        round += 1;
    }
    assert_eq!(mounts(), before);
    fs::remove_dir_all(place.base()).unwrap();
}

#[test]
fn any_user_but_root_is_told_so() {
    let place = Place::new();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    let jailer = place.path().join("jailer");
    copy(Path::new(JAILER), &jailer);
    let mut command = Command::new(jailer);
    command.args(["--id", "a", "--uid", "1", "--gid", "1", "--exec-file"]).arg(place.executable());
    let output = command.uid(STRANGER).gid(STRANGER).output().unwrap();
    assert!(failed(&output).contains("cannot build a jail as any user but root"));
}

#[test]
fn a_device_node_is_nowhere_on_the_host() {
    let place = Place::new();
    let jailed = Jailed::start(&mut place.jailer(&NONE));
    for path in listing(&place.base()).keys() {
        let kind = fs::symlink_metadata(path).unwrap().file_type();
        assert!(!kind.is_char_device() && !kind.is_block_device(), "{}", path.display());
    }
    jailed.end();
}
