//! `/dev/kvm` missing, not permitted, or something else: `vmm` runs in a root folder of the test's own making.

use super::KVM_UNAVAILABLE;
use super::stranger::Stranger;

fn refused(stranger: &Stranger) -> String {
    stranger.refused_in_root(&["run", "--kernel", "/kernel"], KVM_UNAVAILABLE, "")
}

/// Asserts that `vmm doctor` fails for `/dev/kvm` with this error, says what to do about it, and what follows.
fn doctor_says(stranger: &Stranger, error: &str, advice: &str) {
    let ended = stranger.run_in_root(&["doctor"]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (Some(1), ""), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().map(str::trim).collect();
    let failed = lines.iter().position(|line| line.starts_with("fail")).unwrap();
    assert!(lines[failed].contains("cannot open /dev/kvm: ") && lines[failed].contains(error), "{ended:?}");
    assert!(lines[failed + 1].contains(advice), "{ended:?}");
    assert!(lines.last().unwrap().starts_with("unusable: "), "{ended:?}");
    let json = stranger.run_in_root(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["verdict"], "unusable");
}

#[test]
fn missing_kvm() {
    let stranger = Stranger::new();
    let line = refused(&stranger);
    assert!(
        line.contains("/dev/kvm") && line.contains("No such file") && line.contains("vmm doctor"),
        "{line}"
    );
    doctor_says(&stranger, "No such file", "sudo modprobe kvm");
}

#[test]
fn kvm_that_is_not_permitted() {
    let stranger = Stranger::new();
    stranger.closed_file("dev/kvm", "");
    let line = refused(&stranger);
    assert!(line.contains("/dev/kvm") && line.contains("Permission denied"), "{line}");
    doctor_says(&stranger, "Permission denied", "sudo setfacl");
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
