//! The first register values of the boot processor, from the form of `kindling-boot` into KVM's.

use kindling_boot::{DescriptorTable, InitialState, Segment};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use crate::error::Error;

/// Gives the boot processor the register values with which its kernel is entered.
pub fn set(vcpu: &VcpuFd, state: &InitialState) -> Result<(), Error> {
    // The local APIC's base is among these registers, so they are changed and not made up.
    let mut sregs = vcpu.get_sregs().map_err(Error::host("read the boot processor's system registers"))?;
    sregs.cs = segment(&state.cs);
    sregs.ds = segment(&state.ds);
    sregs.es = segment(&state.es);
    sregs.fs = segment(&state.fs);
    sregs.gs = segment(&state.gs);
    sregs.ss = segment(&state.ss);
    sregs.tr = segment(&state.tr);
    sregs.gdt = table(state.gdt);
    sregs.idt = table(state.idt);
    sregs.cr0 = state.cr0;
    sregs.cr3 = state.cr3;
    sregs.cr4 = state.cr4;
    sregs.efer = state.efer;
    vcpu.set_sregs(&sregs).map_err(Error::host("set the boot processor's system registers"))?;

    let regs = kvm_regs {
        rip: state.rip,
        rsp: state.rsp,
        rsi: state.rsi,
        rbx: state.rbx,
        rflags: state.rflags,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs).map_err(Error::host("set the boot processor's registers"))
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: segment.s.into(),
        l: segment.l.into(),
        g: segment.g.into(),
        ..kvm_segment::default()
    }
}

fn table(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..kvm_dtable::default() }
}
