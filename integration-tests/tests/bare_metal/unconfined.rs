//! Guests of which a thread cannot be bound to its filter: none of their code may run, not even on another thread.
//!
//! Threads bind themselves by seccomp(2). An outer filter has the kernel ask the test about each such call
//! (seccomp_unotify(2)), and the thread waits for the answer.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use kindling_integration_tests::harness::scaled;
use kindling_integration_tests::landlock::is_complete;
use libc::{seccomp_notif, seccomp_notif_resp};

use crate::process::{LIMIT, Vmm, filter, run, until};

/// What the test calls the first thread, which is named after its program.
const MAIN: &str = "main";

/// Where the kernel asks about threads that bind themselves.
struct Supervisor(OwnedFd);

impl Supervisor {
    /// Has it ask about all that the calling thread starts from now on.
    fn new() -> Self {
        let mut filter = filter(libc::SYS_seccomp, libc::SECCOMP_RET_USER_NOTIF);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        // SAFETY: the first call takes numbers, the second reads the program, which lives across it.
        let fd = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
        };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel has just made the descriptor, and nobody else knows of it.
        Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Waits for the next thread that binds itself.
    fn next(&self) -> seccomp_notif {
        let mut ready = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = scaled(LIMIT).as_millis() as i32;
        // SAFETY: the call gets one `pollfd` and says so.
        assert_eq!(unsafe { libc::poll(&raw mut ready, 1, limit) }, 1, "no thread binds itself in time");
        // SAFETY: all zeroes is a valid `seccomp_notif`, and the one that the kernel wants.
        let mut call: seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request writes a `seccomp_notif`.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        call
    }

    /// Lets a thread bind itself, or has its call fail.
    fn answer(&self, call: &seccomp_notif, is_let: bool) {
        let flags = if is_let { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
        let error = if is_let { 0 } else { -libc::EPERM };
        let mut answer = seccomp_notif_resp { id: call.id, val: 0, error, flags };
        // SAFETY: the request reads a `seccomp_notif_resp`.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// Whether a thread waits for another one: it runs no guest.
fn waits(task: &Path) -> bool {
    let call = std::fs::read_to_string(task.join("syscall")).unwrap();
    call.split(' ').next() == Some(&libc::SYS_futex.to_string())
}

/// Has the thread with this name not be bound, and no thread run a guest until that is certain. Returns what `vmm` says.
fn refuse(refused: &'static str, cpus: usize) -> String {
    let test = move || {
        let supervisor = Supervisor::new();
        let mut command = run("spin", &["--cpus", &cpus.to_string()]);
        if !is_complete() {
            command.arg("--landlock=off");
        }
        let vmm = Vmm::start(&mut command);
        let mut held = None;
        let mut bound = Vec::new();
        // The vCPUs, and the first thread.
        for _ in 0..=cpus {
            let call = supervisor.next();
            let task = Path::new("/proc").join(vmm.id().to_string()).join("task").join(call.pid.to_string());
            let name = std::fs::read_to_string(task.join("comm")).unwrap();
            if refused == if call.pid == vmm.id() { MAIN } else { name.trim_end() } {
                held = Some(call);
            } else {
                supervisor.answer(&call, true);
                bound.push(task);
            }
        }
        until("the other threads wait", || bound.iter().all(|task| waits(task)));
        supervisor.answer(&held.unwrap(), false);
        let ended = vmm.end(1);
        assert_eq!(ended.output, "", "{refused} of {cpus}");
        ended.errors
    };
    // A thread of its own: it keeps the outer filter.
    std::thread::spawn(test).join().unwrap()
}

const CAUSE: &str = "the kernel refuses the filter of system calls: Operation not permitted (os error 1)\n";

#[test]
fn no_guest_runs_before_the_main_thread_is_bound() {
    for cpus in [1, 2] {
        assert_eq!(refuse(MAIN, cpus), format!("vmm: cannot confine the main thread: {CAUSE}"));
    }
}

#[test]
fn no_vcpu_runs_before_the_others_are_bound() {
    for (index, name) in [(0, "vcpu 0"), (1, "vcpu 1")] {
        let errors = refuse(name, 2);
        let end = format!(" vmm: cannot confine the thread of vCPU {index}: {CAUSE}");
        assert!(errors.ends_with(&end) && errors.lines().count() == 1, "{errors}");
    }
}
