//! `/dev/kvm` missing, not permitted, or something else: `vmm` runs in a root folder of the test's own making.

use super::KVM_UNAVAILABLE;
use super::stranger::Stranger;

fn refused(stranger: &Stranger) -> String {
    stranger.refused_in_root(["run", "--kernel", "/kernel"], KVM_UNAVAILABLE, "")
}

#[test]
fn missing_kvm() {
    let line = refused(&Stranger::new());
    assert!(
        line.contains("/dev/kvm") && line.contains("No such file") && line.contains("vmm doctor"),
        "{line}"
    );
}

#[test]
fn kvm_that_is_not_permitted() {
    let stranger = Stranger::new();
    stranger.closed_file("dev/kvm", "");
    let line = refused(&stranger);
    assert!(line.contains("/dev/kvm") && line.contains("Permission denied"), "{line}");
}

#[test]
fn kvm_that_is_something_else() {
    let stranger = Stranger::new();
    stranger.file("dev/kvm", "");
    std::fs::set_permissions(
        stranger.path().join("dev/kvm"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    let line = refused(&stranger);
    assert!(line.contains("/dev/kvm") && !line.contains("Permission denied"), "{line}");
}
