//! Someone who has taken over a thread of another process: has it make system calls by ptrace(2).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use kindling_integration_tests::ptrace;

/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Below the stack pointer, what may be in use: the red zone of the x86_64 ABI.
const RED_ZONE: u64 = 128;

/// A thread that was taken over while it waited in a system call. It goes on when this is dropped.
pub struct Intruder {
    thread: libc::pid_t,
    memory: File,
    /// Its registers when it was taken over.
    before: libc::user_regs_struct,
}

impl Intruder {
    /// Takes over the thread with this number.
    pub fn new(thread: libc::pid_t) -> Self {
        let memory = File::options().read(true).write(true).open(format!("/proc/{thread}/mem")).unwrap();
        ptrace::request(libc::PTRACE_SEIZE, thread, 0).unwrap();
        loop {
            ptrace::request(libc::PTRACE_INTERRUPT, thread, 0).unwrap();
            stopped(thread);
            let before = ptrace::registers(thread).unwrap();
            let mut instruction = [0; SYSCALL.len()];
            memory.read_exact_at(&mut instruction, before.rip - SYSCALL.len() as u64).unwrap();
            if instruction == SYSCALL {
                return Self { thread, memory, before };
            }
            // It was on its way.
            ptrace::request(libc::PTRACE_CONT, thread, 0).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Opens a file with these flags.
    pub fn open(&self, path: &Path, flags: libc::c_int) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let bytes = path.as_bytes_with_nul();
        let place = self.before.rsp - RED_ZONE - bytes.len() as u64;
        self.memory.write_all_at(bytes, place).unwrap();
        self.call(libc::SYS_openat, [libc::AT_FDCWD as u64, place, flags as u64])
    }

    /// Sends a signal to a process.
    pub fn kill(&self, process: libc::pid_t, signal: libc::c_int) -> io::Result<()> {
        self.call(libc::SYS_kill, [process as u64, signal as u64, 0])
    }

    fn call(&self, number: libc::c_long, arguments: [u64; 3]) -> io::Result<()> {
        let mut registers = self.before;
        registers.rip -= SYSCALL.len() as u64;
        registers.rax = number as u64;
        // What the thread waited in is not to be tried again now.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx] = arguments;
        ptrace::set_registers(self.thread, &registers).unwrap();
        ptrace::request(libc::PTRACE_SINGLESTEP, self.thread, 0).unwrap();
        stopped(self.thread);
        let result = ptrace::registers(self.thread).unwrap().rax as i64;
        if result < 0 { Err(io::Error::from_raw_os_error(-result as i32)) } else { Ok(()) }
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        ptrace::set_registers(self.thread, &self.before).unwrap();
        ptrace::request(libc::PTRACE_DETACH, self.thread, 0).unwrap();
    }
}

/// Waits until the thread has stopped.
fn stopped(thread: libc::pid_t) {
    let (_, status) = ptrace::wait(thread).unwrap();
    assert!(libc::WIFSTOPPED(status), "{status:#x}");
}
