//! How a guest ends and what the process makes of it. The exit codes are those of `vmm --help`.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::scaled;

use crate::faults::spinning_at_a_terminal;
use crate::process::{LIMIT, Vmm, command, finish, finish_run, images, run};

/// Long before the test's own time limit; a stop should take milliseconds.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn power_off_through_acpi_is_success() {
    let ended = finish_run("hello", &[], 0);
    assert!(ended.output.contains("hello by the "), "{ended:?}");
    assert_eq!(ended.errors, "");
}

#[test]
fn reset_through_the_keyboard_controller_is_success() {
    let ended = finish_run("reset-i8042", &[], 0);
    assert_eq!(ended.errors, "");
}

#[test]
fn reset_through_acpi_is_success() {
    let ended = finish_run("reset-acpi", &[], 0);
    assert_eq!(ended.errors, "");
}

#[test]
fn reset_by_the_first_instruction_is_success() {
    let mut command = command(&["run", "--kernel"]);
    finish(command.arg(&images().exit), 0);
}

#[test]
fn triple_fault_has_its_own_code_and_is_reported() {
    let ended = finish_run("triple-fault", &[], 160);
    assert!(ended.errors.contains("triple"), "{ended:?}");
}

#[test]
fn a_guest_that_kvm_cannot_run_on_has_its_own_code_and_leaves_the_registers_in_the_log() {
    let ended = finish(command(&["run", "--memory", "64M", "--kernel"]).arg(&images().lost), 161);
    let errors = &ended.errors;
    assert!(errors.contains("KVM cannot run vCPU 0: internal error 1 (instruction emulation)"), "{ended:?}");
    assert!(errors.contains("rip 0x30000000") && errors.contains("cr3 0x"), "{ended:?}");
}

#[test]
fn sigterm_ends_a_guest_that_spins() {
    ends_by_signal(&mut run("spin", &[]), "spinning", libc::SIGTERM, 143);
}

#[test]
fn sigint_ends_a_guest_that_spins() {
    ends_by_signal(&mut run("spin", &[]), "spinning", libc::SIGINT, 130);
}

#[test]
fn sighup_ends_a_guest_that_spins() {
    ends_by_signal(&mut run("spin", &[]), "spinning", libc::SIGHUP, 129);
}

#[test]
fn every_signal_that_asks_for_the_end_is_followed_and_leaves_the_terminal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let asking = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
    let others = [
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
    ];
    for signal in asking.into_iter().chain(others) {
        let mut guest = spinning_at_a_terminal(folder.path());
        guest.signal(signal).unwrap();
        let status = guest.wait_exit(LIMIT).unwrap();
        assert_eq!(status.code(), Some(128 + signal), "{status}: {}", guest.console());
        assert_eq!(guest.terminal().unwrap(), guest.terminal_before().unwrap());
    }
}

#[test]
fn a_hangup_that_is_ignored_as_under_nohup_does_not_end_the_guest() {
    let mut command = run("echo", &[]);
    let mut vmm = Vmm::start(started_with(&mut command, libc::SIGHUP, libc::SIG_IGN));
    vmm.wait_for("ready\n");
    vmm.signal(libc::SIGHUP);
    // The thread that serves the console serves signals, too: had it taken this one, it would not get so far.
    for word in ["one\n", "two\n", "three\n"] {
        vmm.write(word);
        vmm.wait_for(word);
    }
    vmm.signal(libc::SIGTERM);
    vmm.end(143);
}

#[test]
fn sigterm_ends_all_of_many_processors() {
    ends_by_signal(&mut run("spin", &["--cpus", "16"]), "spinning", libc::SIGTERM, 143);
}

#[test]
fn sigterm_ends_a_guest_that_halts() {
    let mut command = command(&["run", "--kernel"]);
    ends_by_signal(command.arg(&images().mark), "!", libc::SIGTERM, 143);
}

#[test]
fn sigterm_ends_a_guest_that_waits_for_input() {
    ends_by_signal(&mut run("echo", &[]), "ready", libc::SIGTERM, 143);
}

/// Has `command` start with this disposition of `signal`.
pub fn started_with(
    command: &mut Command,
    signal: libc::c_int,
    disposition: libc::sighandler_t,
) -> &mut Command {
    let set = move || {
        // SAFETY: the call changes what this process, which has no handlers yet, does with a signal.
        match unsafe { libc::signal(signal, disposition) } {
            libc::SIG_ERR => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) }
}

fn ends_by_signal(command: &mut Command, ready: &str, signal: libc::c_int, code: i32) {
    // A shell has its background jobs ignore SIGINT, the tests maybe among them.
    let mut vmm = Vmm::start(started_with(command, signal, libc::SIG_DFL));
    vmm.wait_for(ready);
    let start = Instant::now();
    vmm.signal(signal);
    vmm.end(code);
    assert!(start.elapsed() < scaled(SOON), "the end took {:?}", start.elapsed());
}
