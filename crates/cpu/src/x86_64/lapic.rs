//! The local APIC's two interrupt pins (Intel SDM volume 3A, 12.5.1 "Local Vector Table").

use kvm_bindings::kvm_lapic_state;

/// Offset of the LVT LINT0 register in the APIC page.
const LVT_LINT0: usize = 0x350;
/// Offset of the LVT LINT1 register in the APIC page.
const LVT_LINT1: usize = 0x360;

/// Delivery mode NMI, bits 8 to 10 of an LVT entry.
const DELIVERY_MODE_NMI: u32 = 0b100 << 8;
/// Delivery mode ExtINT, bits 8 to 10 of an LVT entry.
const DELIVERY_MODE_EXTINT: u32 = 0b111 << 8;
/// The entry's mask bit.
const MASKED: u32 = 1 << 16;

/// Sets LINT0 to ExtINT, masked, and LINT1 to NMI.
///
/// LINT0 is where an 8259 would be wired. KVM resets the boot processor's to ExtINT *unmasked*, and KVM's own 8259
/// powers up with nothing masked and its vectors at the exceptions' numbers. A guest under hardware-reduced ACPI never
/// initialises that chip, so a kernel that leaves LINT0 as it finds it would take every legacy interrupt a second time,
/// as an exception. A guest that does want the 8259 unmasks LINT0 itself. LINT1 is masked after reset; the MADT declares
/// it the NMI pin.
pub fn set_lint(lapic: &mut kvm_lapic_state) {
    set_register(lapic, LVT_LINT0, DELIVERY_MODE_EXTINT | MASKED);
    set_register(lapic, LVT_LINT1, DELIVERY_MODE_NMI);
}

fn set_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (byte, new) in lapic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *byte = new.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lint0_is_a_masked_extint_lint1_an_nmi_and_nothing_else_changes() {
        let mut lapic = kvm_lapic_state { regs: [0x55; 1024] };
        set_lint(&mut lapic);
        let bytes: Vec<u8> = lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect();
        assert_eq!(bytes[0x350..0x354], 0x0001_0700_u32.to_le_bytes());
        assert_eq!(bytes[0x360..0x364], 0x0000_0400_u32.to_le_bytes());
        let others = (0..1024).filter(|at| !(0x350..0x354).contains(at) && !(0x360..0x364).contains(at));
        assert!(others.into_iter().all(|at| bytes[at] == 0x55));
    }
}
