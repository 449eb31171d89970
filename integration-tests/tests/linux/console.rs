//! The serial console of a Linux guest: bytes both ways, whole, and a terminal that is as it was afterwards.

use std::fmt::Write as _;
use std::time::Duration;

use kindling_integration_tests::harness::{BASE_CMDLINE, Guest, Stdio, jail};
use sha2::{Digest, Sha256};

use super::{BOOT_LIMIT, END_LIMIT, output, ready};

/// One byte at a time through an emulated UART in an emulated machine takes its time.
const TRANSFER_LIMIT: Duration = Duration::from_secs(600);

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// In a jail, where bytes take the same way, it is an eighth of that.
#[test]
fn one_mib_of_output_arrives_whole() {
    let mut guest = ready(Guest::builder());
    let bytes = if jail::is_used() { 128 << 10 } else { 1 << 20 };
    // Three random bytes are four of base64, line feeds aside.
    output(&mut guest, &format!("head -c {} /dev/urandom | base64 > /tmp/text", bytes / 4 * 3));
    let sum = output(&mut guest, "sha256sum < /tmp/text");
    let text = guest.run_within("cat /tmp/text", TRANSFER_LIMIT).unwrap().stdout;
    assert!(text.len() >= bytes, "{} bytes", text.len());
    assert_eq!(sum.split(' ').next().unwrap(), sha256(text.as_bytes()));
}

#[test]
fn input_reaches_the_guest_whole_though_it_comes_faster_than_the_guest_reads() {
    let mut guest = ready(Guest::builder());
    let text: String = (0..2048).fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line:07}");
        text
    });
    guest.begin(&format!("head -c {} | sha256sum", text.len()), END_LIMIT).unwrap();
    guest.send(text.as_bytes()).unwrap();
    let output = guest.finish(TRANSFER_LIMIT).unwrap();
    assert_eq!(output.stdout.split(' ').next().unwrap(), sha256(text.as_bytes()));
}

#[test]
fn guest_goes_on_when_its_input_is_closed() {
    let mut guest = ready(Guest::builder());
    guest.begin("sleep 1; poweroff", END_LIMIT).unwrap();
    guest.close_input();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
}

/// A guest on a terminal, which it has to itself.
fn guest_at_a_terminal() -> Guest {
    let guest = ready(Guest::builder().cpus(2).stdio(Stdio::Pty));
    let settings = guest.terminal().unwrap();
    assert!(!settings.echoes() && !settings.edits_lines(), "the terminal is raw while the guest runs");
    guest
}

/// Asserts that every setting of the terminal is what it was before the start.
#[track_caller]
fn terminal_is_restored(guest: &Guest) {
    assert_eq!(guest.terminal().unwrap(), guest.terminal_before().unwrap());
}

#[test]
fn a_shell_on_a_terminal_is_interactive_and_its_end_is_the_guests() {
    let cmdline = format!("{BASE_CMDLINE} cryptomgr.notests=1 kindling.init=shell loglevel=2");
    let mut guest = Guest::builder().cmdline(cmdline).stdio(Stdio::Pty).start().unwrap();
    guest.wait_for("Leave with `exit`", BOOT_LIMIT).unwrap();
    guest.send(b"sleep 1000\r").unwrap();
    guest.wait_for("sleep 1000", END_LIMIT).unwrap();
    // Job control: Ctrl-C ends what runs and not the shell.
    guest.send(b"\x03echo $((6 * 7))\r").unwrap();
    guest.wait_for("\n42", END_LIMIT).unwrap();
    guest.send(b"exit\r").unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0), "{}", guest.console());
    terminal_is_restored(&guest);
}

#[test]
fn terminal_is_restored_after_poweroff() {
    let mut guest = guest_at_a_terminal();
    guest.begin("poweroff", END_LIMIT).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
    terminal_is_restored(&guest);
}

#[test]
fn sigterm_ends_the_guest_with_a_code_of_its_own_and_restores_the_terminal() {
    let mut guest = guest_at_a_terminal();
    guest.signal(libc::SIGTERM).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(143));
    terminal_is_restored(&guest);
}

#[test]
fn terminal_is_restored_after_a_crash_of_the_monitor() {
    let mut guest = guest_at_a_terminal();
    guest.signal(libc::SIGSEGV).unwrap();
    let status = guest.wait_exit(END_LIMIT).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSEGV));
    terminal_is_restored(&guest);
}

#[test]
fn escape_key_ends_the_guest_and_restores_the_terminal() {
    let mut guest = guest_at_a_terminal();
    guest.send(b"\x01x").unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
    terminal_is_restored(&guest);
}
