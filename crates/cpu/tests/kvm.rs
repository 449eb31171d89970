//! KVM itself takes what the crate makes. These tests need `/dev/kvm`; where there is none, set `KINDLING_NO_KVM` to
//! leave them out, or they fail.

#![cfg(target_arch = "x86_64")]
// Helpers outside test functions unwrap as well.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use kindling_cpu::{CpuidOptions, CpuidTemplate, Topology, boot_msrs};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// Linux's error number for an interrupted system call.
const EINTR: i32 = 4;

fn kvm() -> Option<Kvm> {
    if std::env::var_os("KINDLING_NO_KVM").is_some() {
        return None;
    }
    Some(Kvm::new().expect("/dev/kvm cannot be used; set KINDLING_NO_KVM to skip the tests that need it"))
}

/// A machine with KVM's interrupt controllers. Its creation may be interrupted, and is then repeated.
fn vm(kvm: &Kvm) -> VmFd {
    let vm = loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == EINTR => {}
            result => break result.unwrap(),
        }
    };
    vm.create_irq_chip().unwrap();
    vm
}

fn options(kvm: &Kvm) -> CpuidOptions {
    CpuidOptions {
        tsc_khz: Some(2_596_146),
        tsc_deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
        ..Default::default()
    }
}

#[test]
fn kvm_accepts_every_vcpus_cpuid_and_msrs_in_small_and_large_guests() {
    let Some(kvm) = kvm() else { return };
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let msrs = Msrs::from_entries(&boot_msrs()).unwrap();
    for (vcpus, threads_per_core) in [(1, 1), (1, 2), (2, 1), (2, 2), (8, 1), (8, 2), (254, 1), (254, 2)] {
        let topology = Topology::new(vcpus, threads_per_core).unwrap();
        let template = CpuidTemplate::new(&supported, &topology, &options(&kvm)).unwrap();
        let vm = vm(&kvm);
        for index in 0..vcpus {
            let vcpu = vm.create_vcpu(index.into()).unwrap();
            vcpu.set_cpuid2(&template.for_vcpu(index)).unwrap();
            assert_eq!(vcpu.set_msrs(&msrs).unwrap(), msrs.as_slice().len(), "vCPU {index} of {vcpus}");
        }
    }
}

#[test]
fn msrs_left_out_of_the_boot_list_are_zero_after_reset() {
    let Some(kvm) = kvm() else { return };
    let vm = vm(&kvm);
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
    // SYSENTER_CS, _ESP, _EIP; STAR, LSTAR, CSTAR, FMASK; KERNEL_GS_BASE.
    let indices = [0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102];
    let entries = indices.map(|index| kvm_bindings::kvm_msr_entry { index, data: !0, ..Default::default() });
    let mut msrs = Msrs::from_entries(&entries).unwrap();
    assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), indices.len());
    for msr in msrs.as_slice() {
        assert_eq!(msr.data, 0, "MSR {:#x}", msr.index);
    }
}
