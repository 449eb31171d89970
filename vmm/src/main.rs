//! The `vmm` program: reads its command line, runs one guest, and ends with the code that says how the guest ended.
//!
//! It starts without the standard library's runtime. That reads `/proc/self/maps` and gives every thread a stack for
//! signals, to name a stack overflow when there is one, which costs a tenth of the time to a guest's first instruction.
//! What else it does, [`prepare`] does.
#![no_main]

use std::ffi::{c_char, c_int};
use std::io::{self, Write};

use kindling_vmm::cli::{self, ParseEnd, Task};
use kindling_vmm::error::one_line;
use kindling_vmm::outcome::{EXIT_BAD_ARGUMENTS, EXIT_HOST_ERROR, EXIT_OK};
use kindling_vmm::{doctor, start};

/// Where the C library starts the program. The arguments reach `std::env` by themselves.
#[unsafe(no_mangle)]
pub extern "C" fn main(_: c_int, _: *const *const c_char) -> c_int {
    match prepare() {
        Ok(()) => vmm(),
        // There may be no standard error to complain to.
        Err(_) => EXIT_HOST_ERROR,
    }
    .into()
}

/// Makes sure of what the rest relies on: descriptors 0 to 2 are open, so that no file of ours becomes standard output, a
/// panic says what it has to say and no more, and a write that nobody reads is an error and not the end of the process.
fn prepare() -> io::Result<()> {
    for fd in 0..=2 {
        // SAFETY: F_GETFD takes no argument and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            // The lowest free number is the one that was asked about, since those below it are open.
            // SAFETY: the path is a string that ends in NUL and lives for ever.
            if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } != fd {
                return Err(io::Error::last_os_error());
            }
        }
    }
    for variable in [c"RUST_BACKTRACE", c"RUST_LIB_BACKTRACE"] {
        // A panic that looked for its callers would make system calls that no thread may; and names there are none here.
        // SAFETY: there is no other thread yet, and the name is a string that ends in NUL.
        unsafe { libc::unsetenv(variable.as_ptr()) };
    }
    // SAFETY: ignoring a signal involves no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes a setting of the allocator, before there is a second thread. One arena for all threads:
    // they allocate too little to be worth one each, with its mappings.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    Ok(())
}

/// Does what the command line says and returns the exit code.
fn vmm() -> u8 {
    let task = match cli::parse(std::env::args_os()) {
        Ok(task) => task,
        Err(ParseEnd::Print(text)) => {
            let _ = io::stdout().write_all(text.as_bytes());
            return EXIT_OK;
        }
        Err(ParseEnd::Error(line)) => {
            complain(&line);
            return EXIT_BAD_ARGUMENTS;
        }
    };
    let result = match task {
        Task::Doctor { json } => return doctor::main(json),
        Task::Seccomp(command) => start::seccomp(&command).map(|()| EXIT_OK),
        Task::Run(options) => start::run(&options).map(|outcome| outcome.exit_code()),
        Task::Serve(options) => start::serve(&options).map(|outcome| outcome.exit_code()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            complain(&one_line(&error));
            error.exit_code()
        }
    }
}

fn complain(line: &str) {
    // Nobody may be reading; the exit code says the rest.
    let _ = writeln!(io::stderr(), "vmm: {line}");
}
