//! What the jailer's tests and benchmark execute in the place of `vmm`: says what it finds in the jail.
//!
//! The last argument decides. `report` prints one line of JSON and waits for the end of standard input. A path gets that
//! line as a file, which then appears whole under its name, and the process waits for a signal. `mark` prints the process's
//! processor time so far in nanoseconds and ends. `headless` is `report` by a second thread, while the first one ends.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kindling_integration_tests::jail_baits::{KEY, MESSAGE_QUEUE, SHARED_MEMORY};
use serde_json::{Value, json};

/// Descriptors that are looked for.
const DESCRIPTORS: i32 = 4096;

fn main() -> io::Result<()> {
    let last = std::env::args().next_back().unwrap_or_default();
    match last.as_str() {
        "mark" => writeln!(io::stdout(), "{}", processor_time()),
        "report" => report_and_wait(),
        "headless" => {
            std::thread::spawn(|| std::process::exit(i32::from(report_and_wait().is_err())));
            // SAFETY: only this thread ends. It owns nothing that the other one uses.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            Err(io::Error::other("the first thread has not ended"))
        }
        path if path.starts_with('/') => {
            let draft = format!("{path}.draft");
            std::fs::write(&draft, report().to_string())?;
            std::fs::rename(draft, path)?;
            loop {
                std::thread::park();
            }
        }
        _ => Err(io::Error::other("the last argument must be mark, report, headless or a path")),
    }
}

fn report_and_wait() -> io::Result<()> {
    writeln!(io::stdout(), "{}", report())?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn processor_time() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn report() -> Value {
    // SAFETY: the call takes a number and touches no memory.
    let open = |fd: &i32| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0;
    let descriptors: Vec<i32> = (0..DESCRIPTORS).filter(open).collect();
    let mut files = BTreeMap::new();
    list(Path::new("/"), &mut files);
    // SAFETY: the call takes numbers and touches no memory.
    let securebits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    json!({
        "pid": std::process::id(),
        "parent": std::os::unix::process::parent_id(),
        "folder": std::env::current_dir().ok(),
        "arguments": std::env::args().collect::<Vec<_>>(),
        "environment": std::env::vars().collect::<Vec<_>>(),
        "descriptors": descriptors,
        "securebits": securebits,
        "files": files,
        "parent_of_root_is_root": place(Path::new("/..")) == place(Path::new("/")),
        "baits": baits(),
        "attempts": attempts(),
        "devices": devices(),
    })
}

/// Which file a path leads to.
fn place(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// All files below a folder: kind, mode, owner, device number.
fn list(folder: &Path, files: &mut BTreeMap<String, Value>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let mode = format!("{:o}", meta.mode());
        let device = format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
        files.insert(path.display().to_string(), json!([mode, meta.uid(), meta.gid(), device]));
        if meta.is_dir() {
            list(&path, files);
        }
    }
}

/// What nobody in a jail may do, and the error number that each gave; 0 for what succeeded.
fn attempts() -> BTreeMap<&'static str, i32> {
    let none = std::ptr::null::<libc::c_char>();
    // Each of the calls is meant to fail; none of them touches memory of this process.
    // SAFETY: strings end in NUL; pointers that are null are allowed to be.
    let calls: [(&'static str, &dyn Fn() -> i32); 10] = unsafe {
        [
            ("become user 0", &|| libc::setresuid(0, 0, 0)),
            ("become group 0", &|| libc::setresgid(0, 0, 0)),
            ("drop groups", &|| libc::setgroups(0, std::ptr::null())),
            ("change the root", &|| libc::chroot(c"/dev".as_ptr())),
            ("mount", &|| libc::mount(c"proc".as_ptr(), c"/run".as_ptr(), c"proc".as_ptr(), 0, none.cast())),
            ("make a device", &|| {
                libc::mknod(c"/run/null".as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3))
            }),
            ("write to /dev", &|| create(c"/dev/file")),
            ("leave by ..", &|| libc::access(c"/../../../../proc/1/stat".as_ptr(), libc::F_OK)),
            ("raise the limit", &|| {
                let limit = libc::rlimit { rlim_cur: 1 << 19, rlim_max: 1 << 19 };
                libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
            }),
            // The last one: should it succeed, all others would, too.
            ("make a user namespace", &|| libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)),
        ]
    };
    calls.iter().map(|(name, call)| (*name, errno(call()))).collect()
}

/// How the search for what the host has without a path went; 0 for what was found.
fn baits() -> BTreeMap<&'static str, i32> {
    let (kind, none) = (c"user".as_ptr(), std::ptr::null::<libc::c_char>());
    // SAFETY: strings end in NUL; pointers that are null are allowed to be. What is opened is left to the end of the process.
    let calls: [(&'static str, &dyn Fn() -> i32); 3] = unsafe {
        [
            ("key", &|| libc::syscall(libc::SYS_request_key, kind, KEY.as_ptr(), none, 0) as i32),
            ("shared memory", &|| libc::shmget(SHARED_MEMORY, 0, 0)),
            ("message queue", &|| libc::mq_open(MESSAGE_QUEUE.as_ptr(), libc::O_RDONLY)),
        ]
    };
    calls.iter().map(|(name, call)| (*name, errno(call()))).collect()
}

/// The number of the error that a call had; 0 if it succeeded.
fn errno(result: i32) -> i32 {
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn create(path: &CStr) -> i32 {
    // SAFETY: the path is a string that ends in NUL.
    unsafe { libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC, 0o600) }
}

/// How the opening of each device node went, for reading and, where that is meant to be, writing.
fn devices() -> BTreeMap<&'static str, i32> {
    let open = |path: &'static str, flags| {
        let name = CString::new(Path::new(path).as_os_str().as_bytes()).unwrap_or_default();
        // SAFETY: the name is a string that ends in NUL.
        match unsafe { libc::open(name.as_ptr(), flags | libc::O_CLOEXEC) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(-1),
            fd => {
                // SAFETY: the descriptor was opened above and is used nowhere else.
                unsafe { libc::close(fd) };
                0
            }
        }
    };
    [("/dev/kvm", libc::O_RDWR), ("/dev/net/tun", libc::O_RDWR), ("/dev/urandom", libc::O_RDONLY)]
        .into_iter()
        .map(|(path, flags)| (path, open(path, flags)))
        .collect()
}
