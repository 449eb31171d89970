//! Every way into a stock kernel, with and without an initial RAM disk, and its modules.

use kindling_integration_tests::harness::{Guest, Kernel};

use super::{BOOT_LIMIT, MODULES, output, ready};

/// What the kernel notes of its loader: `type_of_loader` of the boot protocol, with the version in its low digit.
/// Through PVH Linux fills in 0xb0 by itself, else it is 0xff, "no assigned id", from us.
const LOADER_PVH: &str = "176\n";
const LOADER_LINUX64: &str = "255\n";

fn loader(guest: &mut Guest) -> String {
    let output = guest.run("cat /proc/sys/kernel/bootloader_type").unwrap();
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout
}

#[test]
fn elf_kernel_is_entered_through_pvh_with_its_whole_command_line() {
    let long = format!("kindling.test={}", "x".repeat(1000));
    let mut guest = ready(Guest::builder().kernel(Kernel::Elf).cmdline_extra(&long));
    assert_eq!(loader(&mut guest), LOADER_PVH);
    let output = guest.run("cat /proc/cmdline").unwrap();
    assert!(output.stdout.trim_end().ends_with(&long), "{output:?}");
}

#[test]
fn elf_kernel_is_entered_by_the_64_bit_protocol_when_asked_to() {
    let mut guest = ready(Guest::builder().kernel(Kernel::Elf).arg("--boot-protocol").arg("linux64"));
    // The kernel makes version 0xff of type 0xff out of it.
    assert_eq!(loader(&mut guest), LOADER_LINUX64);
}

#[test]
fn bzimage_boots() {
    let mut guest = ready(Guest::builder().kernel(Kernel::BzImage));
    assert_eq!(loader(&mut guest), LOADER_LINUX64);
    let output = guest.run("uname -sm").unwrap();
    assert_eq!((output.stdout.as_str(), output.code), ("Linux x86_64\n", 0));
}

#[test]
fn without_initrd_the_kernel_gets_to_its_root_device_and_its_panic_ends_the_process() {
    let mut guest = Guest::builder().initrd(false).start().unwrap();
    guest.wait_for("Unable to mount root fs", BOOT_LIMIT).unwrap();
    assert_eq!(guest.wait_exit(BOOT_LIMIT).unwrap().code(), Some(0));
}

#[test]
fn config_file_boots_the_same_guest() {
    let image = kindling_integration_tests::harness::image().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.json");
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": image.vmlinuz(),
            "initrd_path": image.initramfs(),
            "boot_args": kindling_integration_tests::harness::default_cmdline(),
        },
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 256 },
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let mut guest = ready(Guest::builder().config_file(&path));
    assert_eq!(guest.run("nproc").unwrap().stdout, "2\n");
}

#[test]
fn guest_loads_the_modules_its_command_line_names() {
    let mut guest = ready(Guest::builder().modules(&MODULES));
    let loaded = output(&mut guest, "cut -d ' ' -f 1 /proc/modules");
    for name in MODULES.iter().chain(&["virtio", "virtio_ring", "net_failover", "vsock"]) {
        assert!(loaded.lines().any(|line| line == *name), "{name}: {loaded}");
    }
    assert!(output(&mut guest, "cat /proc/filesystems").contains("\text4"));
}

#[test]
fn guest_loads_a_module_when_a_command_asks_for_it() {
    let mut guest = ready(Guest::builder());
    assert_eq!(output(&mut guest, "cat /proc/modules"), "");
    output(&mut guest, "modprobe virtio_blk && modprobe ext4");
    let loaded = output(&mut guest, "cut -d ' ' -f 1 /proc/modules | sort");
    assert_eq!(loaded.lines().collect::<Vec<_>>(), ["virtio", "virtio_blk", "virtio_ring"]);
}
