//! Landlock restricts a thread: the attacker of these tests is one, which restricts itself as the monitor's do.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread;

use io_uring::{IoUring, opcode, types};
use kindling_api::server::Limits;
use kindling_api::{SerialConfig, SerialMode, VsockConfig};
use kindling_virtio_blk::FileDisk;
use tempfile::TempDir;

use super::*;

/// A guest's files among others, and what restricts a monitor to them.
struct Host {
    folder: TempDir,
    config: VmConfig,
    disks: Vec<Arc<dyn Disk>>,
    landlock: Landlock,
}

impl Host {
    /// With a disk, a read-only `image` and a `secret` in the folder, and sockets of the API, a guest and a serial port in
    /// folders of these names.
    fn new(leave_sockets: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["disk", "image", "secret"] {
            fs::write(path(name), "content").unwrap();
        }
        for name in ["api", "vsock", "serial", "elsewhere"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("socket"), "").unwrap();
        }
        let config = VmConfig {
            vsock: Some(VsockConfig { guest_cid: 3, uds_path: path("vsock/socket"), vsock_id: None }),
            serial: Some(SerialConfig {
                mode: Some(SerialMode::Socket),
                serial_out_path: Some(path("serial/socket")),
                rate_limiter: None,
            }),
            ..VmConfig::default()
        };
        let launch = Launch {
            api: Some((path("api/socket"), Limits::default())),
            leave_sockets,
            landlock: Mode::On,
            ..Launch::new("test".to_owned(), config.clone())
        };
        let landlock = Landlock::new(&launch).unwrap();
        let disk = |name: &str, read_only| FileDisk::open(&path(name), read_only, false).unwrap();
        let disks: Vec<Arc<dyn Disk>> = vec![Arc::new(disk("disk", false)), Arc::new(disk("image", true))];
        Self { folder, config, disks, landlock }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `attack` on a thread that is restricted to what the guest has.
    fn attacked<T: Send>(&self, attack: impl FnOnce() -> T + Send) -> T {
        restricted(&self.landlock.allow(&self.config, &self.disks).unwrap(), attack)
    }
}

/// Runs `attack` on a thread with these rules.
fn restricted<T: Send>(ruleset: &Ruleset, attack: impl FnOnce() -> T + Send) -> T {
    let attacker = || {
        ruleset.restrict().unwrap();
        attack()
    };
    thread::scope(|scope| scope.spawn(attacker).join().unwrap())
}

/// The version of the kernel's Landlock, or nothing where there is no Landlock to be tested.
fn abi() -> Option<i64> {
    kernel_abi().inspect_err(|error| eprintln!("not tested: this kernel has no Landlock: {error}")).ok()
}

#[track_caller]
fn denied<T>(result: io::Result<T>) {
    let kind = result.err().map(|error| error.kind());
    // A link to another folder is refused as one to another file system.
    let kinds = [ErrorKind::PermissionDenied, ErrorKind::CrossesDevices];
    assert!(kind.is_some_and(|kind| kinds.contains(&kind)), "{kind:?}");
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn truncate(path: &Path) -> io::Result<()> {
    let path = c_string(path);
    // SAFETY: the path is a string that ends in NUL and lives across the call.
    check(unsafe { libc::truncate(path.as_ptr(), 0) })
}

fn make_node(path: &Path, kind: libc::mode_t) -> io::Result<()> {
    let path = c_string(path);
    // SAFETY: as above.
    check(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(1, 3)) })
}

#[test]
fn disks_of_the_guest_are_opened_again_as_they_may_be_and_nothing_else_is() {
    let Some(abi) = abi() else { return };
    let host = Host::new(false);
    let open = |name: &str, write| OpenOptions::new().read(true).write(write).open(host.path(name)).map(drop);
    host.attacked(|| {
        open("disk", true).unwrap();
        open("disk", false).unwrap();
        open("image", false).unwrap();
        denied(open("image", true));
        for name in ["secret", "", "vsock", "api/socket", "elsewhere/socket"] {
            denied(open(name, false));
        }
        for path in ["/", "/etc/passwd", "/proc/self/maps", "/proc/self/stat", "/dev/null"] {
            denied(File::open(path));
        }
        // By another name, a file is the same.
        denied(File::open(host.path("elsewhere/../secret")));
        denied(fs::read_dir(host.folder.path()));
        if abi >= 3 {
            denied(truncate(&host.path("secret")));
            denied(truncate(&host.path("disk")));
        }
    });
    assert_eq!(fs::read_to_string(host.path("secret")).unwrap(), "content");
}

#[test]
fn a_ring_opens_no_more_than_its_thread_does() {
    if abi().is_none() {
        return;
    }
    let host = Host::new(false);
    host.attacked(|| {
        // No filter of system calls sees what is asked of a ring.
        let mut ring = IoUring::new(1).unwrap();
        for (name, expected) in [("disk", 0), ("secret", -libc::EACCES)] {
            let path = c_string(&host.path(name));
            let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).flags(libc::O_RDONLY);
            // SAFETY: the path is a string that ends in NUL and lives until the request is done.
            unsafe { ring.submission().push(&entry.build()) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            let result = ring.completion().next().unwrap().result();
            assert_eq!(result.min(0), expected, "{name}");
        }
    });
}

#[test]
fn a_file_that_takes_the_place_of_a_disk_is_another_file() {
    if abi().is_none() {
        return;
    }
    let host = Host::new(false);
    fs::rename(host.path("disk"), host.path("moved")).unwrap();
    symlink(host.path("secret"), host.path("disk")).unwrap();
    fs::remove_file(host.path("image")).unwrap();
    symlink(host.path("elsewhere"), host.path("image")).unwrap();
    host.attacked(|| {
        for name in ["disk", "secret", "image/socket"] {
            denied(File::open(host.path(name)));
        }
        File::options().read(true).write(true).open(host.path("moved")).unwrap();
    });
}

#[test]
fn files_of_sockets_are_removed_from_their_folders_and_nothing_is_made_there() {
    if abi().is_none() {
        return;
    }
    let host = Host::new(false);
    host.attacked(|| {
        for folder in ["api", "vsock", "serial", "elsewhere", ""].map(|name| host.path(name)) {
            denied(File::create(folder.join("new")));
            denied(fs::create_dir(folder.join("new")));
            denied(symlink("/", folder.join("new")));
            denied(UnixListener::bind(folder.join("new")));
            denied(fs::hard_link(host.path("disk"), folder.join("new")));
            denied(fs::rename(host.path("disk"), folder.join("new")));
            for kind in [libc::S_IFIFO, libc::S_IFCHR, libc::S_IFBLK, libc::S_IFREG] {
                denied(make_node(&folder.join("new"), kind));
            }
        }
        denied(fs::remove_dir(host.path("elsewhere")));
        denied(fs::remove_file(host.path("elsewhere/socket")));
        denied(fs::remove_file(host.path("disk")));
        for folder in ["api", "vsock", "serial"] {
            fs::remove_file(host.path(folder).join("socket")).unwrap();
        }
    });
}

#[test]
fn sockets_that_stay_behind_cannot_be_removed() {
    if abi().is_none() {
        return;
    }
    let host = Host::new(true);
    host.attacked(|| {
        denied(fs::remove_file(host.path("api/socket")));
        denied(fs::remove_file(host.path("vsock/socket")));
        // That of the serial port never does.
        fs::remove_file(host.path("serial/socket")).unwrap();
    });
}

#[test]
fn guests_connect_to_sockets_beside_theirs() {
    let Some(abi) = abi() else { return };
    let host = Host::new(false);
    let [theirs, others] = ["vsock/socket_52", "elsewhere/socket_52"].map(|name| host.path(name));
    let ruleset = host.landlock.allow(&host.config, &host.disks).unwrap();
    // What listens may come later.
    let _listeners = [&theirs, &others].map(|path| UnixListener::bind(path).unwrap());
    restricted(&ruleset, || {
        UnixStream::connect(&theirs).unwrap();
        if abi >= 9 {
            denied(UnixStream::connect(&others));
        }
    });
}

#[test]
fn programs_networks_and_other_processes_are_out_of_reach() {
    let Some(abi) = abi() else { return };
    let host = Host::new(false);
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = tcp.local_addr().unwrap();
    let name = UnixAddress::from_abstract_name(host.folder.path().as_os_str().as_bytes()).unwrap();
    let _abstract = UnixListener::bind_addr(&name).unwrap();
    let program = host.path("disk");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let victim = other.id() as libc::pid_t;
    host.attacked(|| {
        denied(Command::new("/bin/true").spawn());
        denied(Command::new(&program).spawn());
        if abi >= 4 {
            denied(TcpStream::connect(address));
            denied(TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
        }
        if abi >= COMPLETE_ABI {
            denied(UnixStream::connect_addr(&name));
        }
        if Erratum::current().contains(Erratum::ScopedSignalHandling) {
            // SAFETY: kill takes numbers; signal 0 asks only.
            denied(check(unsafe { libc::kill(victim, 0) }));
            // SAFETY: as above.
            denied(check(unsafe { libc::kill(libc::getppid(), 0) }));
        }
        // SAFETY: with this request, only numbers are taken.
        denied(check(unsafe { libc::ptrace(libc::PTRACE_ATTACH, victim, 0, 0) } as libc::c_int));
    });
    assert!(other.try_wait().unwrap().is_none(), "the other process lives");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn threads_that_are_restricted_one_by_one_signal_each_other() {
    let host = Host::new(false);
    let ruleset = host.landlock.allow(&host.config, &host.disks).unwrap();
    let (tell, told) = channel();
    let (end, ended) = channel::<()>();
    thread::scope(|scope| {
        let ruleset = &ruleset;
        scope.spawn(move || {
            ruleset.restrict().unwrap();
            // SAFETY: gettid takes nothing.
            tell.send(unsafe { libc::gettid() }).unwrap();
            let _ = ended.recv();
        });
        let vcpu = told.recv().unwrap();
        restricted(ruleset, || {
            // SAFETY: the call takes numbers; signal 0 asks only.
            let answer = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), vcpu, 0) };
            check(answer as libc::c_int).unwrap();
        });
        drop(end);
    });
}

#[test]
fn a_thread_that_needs_nothing_gets_nothing() {
    if abi().is_none() {
        return;
    }
    let host = Host::new(false);
    restricted(&host.landlock.deny_all().unwrap(), || {
        denied(File::open(host.path("disk")));
        denied(fs::remove_file(host.path("api/socket")));
    });
}

#[test]
fn what_is_not_asked_for_restricts_nobody() {
    let host = Host::new(false);
    let landlock = Landlock::new(&Launch::new("test".to_owned(), VmConfig::default())).unwrap();
    assert!(!landlock.is_on());
    let ruleset = landlock.allow(&host.config, &host.disks).unwrap();
    restricted(&ruleset, || fs::remove_file(host.path("secret"))).unwrap();
}

#[test]
fn an_old_kernel_is_named_and_refused_where_more_is_required() {
    let launch = |landlock| Launch { landlock, ..Launch::new("test".to_owned(), VmConfig::default()) };
    let none = || Err(io::Error::from_raw_os_error(libc::ENOSYS));
    let old = Landlock::on_kernel(&launch(Mode::On), || Ok((5, false))).unwrap();
    assert!(old.is_on() && old.lacks.unwrap().contains("version 5, does not restrict signals"));
    let without = Landlock::on_kernel(&launch(Mode::On), none).unwrap();
    assert!(!without.is_on() && without.lacks.unwrap().starts_with("the kernel has no Landlock"));
    let unrepaired = Landlock::on_kernel(&launch(Mode::On), || Ok((6, false))).unwrap();
    assert!(
        unrepaired.is_on() && unrepaired.lacks.unwrap().ends_with("version 6, does not restrict signals")
    );
    for kernel in [none(), Ok((1, false)), Ok((5, false)), Ok((6, false))] {
        let error = Landlock::on_kernel(&launch(Mode::Require), || kernel).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().as_str()), (152, "--landlock"));
    }
    for version in [6, 7, 11] {
        assert_eq!(Landlock::on_kernel(&launch(Mode::Require), || Ok((version, true))).unwrap().lacks, None);
    }
}

#[test]
fn what_a_kernel_lacks_is_named() {
    assert_eq!(not_restricted(10), "");
    assert_eq!(not_restricted(9), "UDP");
    let first = "truncating files, TCP, ioctls of devices, signals and abstract sockets, connecting to Unix sockets, UDP";
    assert_eq!((not_restricted(1).as_str(), not_restricted(2).as_str()), (first, first));
}
