//! What `vmm` takes for itself, beside the memory of its guest.

use kindling_integration_tests::measure::Resident;

use crate::process::{Vmm, command, images};

/// What a monitor may take, in bytes.
const AIM: u64 = 2 << 20;

#[test]
fn a_monitor_takes_no_more_than_two_mebibytes_for_itself() {
    let mut command = command(&["run", "--memory", "128M", "--kernel"]);
    let mut vmm = Vmm::start(command.arg(&images().mark));
    vmm.wait_for("!");
    let resident = Resident::of(vmm.id(), 128).unwrap();
    assert!(resident.own <= AIM, "{} KiB are resident", resident.own >> 10);
    // The guest has touched its first pages only: nothing of the rest is there ahead of time.
    assert!(
        resident.all - resident.own < 1 << 20,
        "{} KiB of the guest's",
        (resident.all - resident.own) >> 10
    );
    vmm.signal(libc::SIGTERM);
    vmm.end(128 + libc::SIGTERM);
}
