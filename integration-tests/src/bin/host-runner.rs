//! Runs a test binary where guests run.

use std::ffi::OsString;
use std::process::ExitCode;

use kindling_integration_tests::error::chain;
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::runner;

const HELP: &str = "\
Runs a program where guests run: directly if this machine's KVM runs guest kernels, else in a nested host, an emulated
machine with a KVM of its own. The program has to be linked statically for that.

    host-runner PROGRAM [ARGUMENT...]

`cargo verify` links the test binaries that need guests statically and runs each under this program. A test binary of a
broken host gets another host for the tests that have not passed yet.

The program finds what it needs through KINDLING_GUEST_DIR (vmlinux, vmlinuz, initramfs.cpio), KINDLING_VMM (the
monitor) and KINDLING_ROOT_IMAGE (a root file system for a guest's disk). They are prepared if they are not set.
KINDLING_SCRATCH names a folder for large files; host-runner always sets it.

Variables:
    KINDLING_HOST            native or nested: do not look at the machine
    KINDLING_HOST_FILES      more files for the nested host, separated by colons; they keep their paths
    KINDLING_JAILED_VMM      stands in for the monitor, and becomes it in a jail; with it
    KINDLING_JAILER          the jailer
    KINDLING_KERNEL_PACKAGE  the package with the guests' kernel
    KINDLING_TIMEOUT_SCALE   multiplies every time limit
    RUST_TEST_THREADS        tests at a time (1 in the nested host)

Exit codes: the program's own; 3 if the nested host broke, which says nothing about the program; 1 if something could
not be prepared.";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.split_first() {
        None => {
            eprintln!("{HELP}");
            ExitCode::FAILURE
        }
        Some((option, _)) if option == "--help" || option == "-h" => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Some((program, arguments)) => match runner::run(program, arguments, &Progress::new()) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("host-runner: {}", chain(&error));
                ExitCode::FAILURE
            }
        },
    }
}
