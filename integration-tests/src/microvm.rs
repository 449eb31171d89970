//! QEMU's machine `microvm` with virtio-mmio: what benchmarks compare with.

use std::path::{Path, PathBuf};

/// `isa-serial` is the only device of the PC that guests have a use for.
const MACHINE: &str =
    "microvm,accel=kvm,rtc=off,pit=off,pic=off,x-option-roms=off,isa-serial=on,auto-kernel-cmdline=off";

/// Virtio devices without the registers of drafts. Not every KVM can set IA32_ARCH_CAPABILITIES.
const FIXED: &str = "-nodefaults -no-user-config -no-reboot -display none -serial stdio -smp 1 \
    -cpu host,-arch-capabilities -global virtio-mmio.force-legacy=false -bios /usr/share/qemu/qboot.rom";

/// Firmware that it needs: its BIOS and, as it looks for it in any case, the loader for PVH kernels.
pub fn firmware() -> [PathBuf; 2] {
    ["/usr/share/qemu/qboot.rom", "/usr/share/qemu/pvh.bin"].map(PathBuf::from)
}

/// The arguments for a guest with one processor and its console on standard input and output; devices go behind them.
pub fn arguments(memory: &str, kernel: &Path, cmdline: &str) -> Vec<String> {
    let kernel = kernel.to_string_lossy();
    let variable = ["-machine", MACHINE, "-m", memory, "-kernel", &kernel, "-append", cmdline];
    FIXED.split_whitespace().chain(variable).map(str::to_owned).collect()
}
