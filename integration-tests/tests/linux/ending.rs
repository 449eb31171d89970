//! Every way out of a Linux guest, and the exit code that tells them apart.

use kindling_integration_tests::harness::{Guest, Stdio, default_cmdline};

use super::{BOOT_LIMIT, END_LIMIT, ready};

/// Starts `command` in the guest, which is not expected to come back.
fn begin(guest: &mut Guest, command: &str) {
    guest.begin(command, END_LIMIT).unwrap();
}

#[test]
fn poweroff_ends_the_process_with_success() {
    let mut guest = ready(Guest::builder().cpus(2));
    begin(&mut guest, "poweroff");
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
}

/// Has a guest reboot in a way of Linux's parameter `reboot=`, and asserts that the monitor saw that way.
fn reboots_through(parameter: &str, way: &str) {
    let cmdline = default_cmdline().replace("reboot=k", &format!("reboot={parameter}"));
    let mut guest = ready(Guest::builder().cpus(2).cmdline(cmdline).arg("--level").arg("Debug"));
    begin(&mut guest, "reboot");
    guest.wait_for("reboot: Restarting system", END_LIMIT).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
    let console = guest.console();
    assert!(console.contains(&format!("reset through the {way}")), "{console}");
}

#[test]
fn reboot_through_the_keyboard_controller_ends_the_process_with_success() {
    reboots_through("k", "keyboard controller");
}

/// Linux would try the keyboard controller next.
#[test]
fn reboot_through_acpi_ends_the_process_with_success() {
    reboots_through("a", "ACPI reset register");
}

#[test]
fn triple_fault_has_its_own_code_and_leaves_the_registers_in_the_log() {
    // Linux resets by a triple fault when it is told to.
    let mut guest = ready(Guest::builder().cmdline(default_cmdline().replace("reboot=k", "reboot=t")));
    begin(&mut guest, "reboot -f");
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(160));
    let log = guest.console();
    assert!(
        log.contains("vCPU 0 triple-faulted") && log.contains("rip 0x") && log.contains("cr3 0x"),
        "{log}"
    );
}

#[test]
fn kernel_panic_ends_the_process() {
    let mut guest = ready(Guest::builder());
    begin(&mut guest, "echo c > /proc/sysrq-trigger");
    guest.wait_for("Kernel panic", END_LIMIT).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
}

#[test]
fn ctrl_alt_del_reboots() {
    let mut guest = ready(Guest::builder().stdio(Stdio::Pty));
    guest.send(b"\x01d").unwrap();
    guest.wait_for("reboot: Restarting system", END_LIMIT).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(0));
}

#[test]
fn sigterm_during_boot_stops_the_guest() {
    let mut guest = Guest::builder().cmdline_extra("ignore_loglevel").start().unwrap();
    guest.wait_for("PnP ACPI init", BOOT_LIMIT).unwrap();
    guest.signal(libc::SIGTERM).unwrap();
    assert_eq!(guest.wait_exit(END_LIMIT).unwrap().code(), Some(143));
}
