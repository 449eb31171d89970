//! A virtual machine monitor made of parts: guest memory laid out by `kindling-memory-layout`, a kernel put into it by
//! `kindling-boot`, a processor described by `kindling-cpu`, a serial port from `vm-superio`, and KVM.
//!
//!     cargo run -p kindling-boot --example serial_console -- KERNEL [COMMAND LINE]
//!
//! The guest's serial output goes to standard output. The monitor ends when the guest resets the machine through the
//! keyboard controller (for Linux: `reboot=k`) or by a triple fault.

use std::error::Error;
use std::fs::File;
use std::io;
use std::iter::successors;
use std::process::ExitCode;

use kindling_boot::{DescriptorTable, InitialState, Request};
use kindling_cpu::{CpuidOptions, CpuidTemplate, Topology};
use kindling_memory_layout::{Backing, Layout, build, x86_64::KVM_IDENTITY_MAP, x86_64::KVM_TSS};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_pit_config, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

const RAM: u64 = 256 << 20;
const COM1: u16 = 0x3f8;
const COM1_END: u16 = COM1 + 7;
const COM1_GSI: u32 = 4;
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
const EINTR: i32 = 4;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(kernel) = arguments.next() else {
        eprintln!("usage: serial_console KERNEL [COMMAND LINE]");
        return ExitCode::FAILURE;
    };
    let cmdline = arguments.next().unwrap_or("console=ttyS0 reboot=k panic=1".into());
    let Err(error) = run(&kernel, &cmdline) else { return ExitCode::SUCCESS };
    let causes = successors(Some(error.as_ref()), |error| (*error).source());
    eprintln!("{}", causes.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    ExitCode::FAILURE
}

fn run(kernel: &str, cmdline: &str) -> Result<(), Box<dyn Error>> {
    // 1. Memory, with a kernel in it. No ACPI tables: this guest has nothing they would describe.
    let layout = Layout::new(RAM, 46)?;
    let memory = build(&layout, Backing::Anonymous { transparent_huge: true })?;
    let kernel = &File::open(kernel)?;
    let request = Request { kernel, initrd: None, cmdline, rsdp: None, protocol: Default::default() };
    let loaded = kindling_boot::load(&memory, layout.ram(), request)?;
    eprintln!("entering the kernel at {:#x} by {:?}", loaded.entry.0, loaded.protocol);

    // 2. A machine with that memory, interrupt controllers and a timer.
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.set_tss_address(KVM_TSS.start as usize)?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP.start)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config::default())?;
    map_memory(&vm, &memory)?;

    // 3. A serial port whose interrupts KVM takes from an eventfd.
    let interrupt = EventFd::new(0)?;
    vm.register_irqfd(&interrupt, COM1_GSI)?;
    let mut serial = Serial::new(Interrupt(interrupt), io::stdout());

    // 4. A processor that is about to execute the kernel's first instruction.
    let mut vcpu = vm.create_vcpu(0)?;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let cpuid = CpuidTemplate::new(&supported, &Topology::new(1, 1)?, &CpuidOptions::default())?;
    vcpu.set_cpuid2(&cpuid.for_vcpu(0))?;
    set_registers(&vcpu, &kindling_boot::registers(&loaded))?;

    // 5. Its exits.
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(I8042_COMMAND, [I8042_RESET])) | Ok(VcpuExit::Shutdown) => return Ok(()),
            Ok(VcpuExit::IoOut(port @ COM1..=COM1_END, data)) => {
                for value in data {
                    serial.write((port - COM1) as u8, *value).map_err(|error| format!("serial: {error}"))?;
                }
            }
            Ok(VcpuExit::IoIn(port @ COM1..=COM1_END, [value])) => *value = serial.read((port - COM1) as u8),
            // Where there is nothing, writes are lost and all bits read as one.
            Ok(VcpuExit::IoIn(_, data)) | Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(other) => return Err(format!("the processor stopped: {other:?}").into()),
            Err(error) if error.errno() == EINTR => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The serial port's interrupt.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

fn map_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region is mapped for as long as `memory` lives, which is longer than `vm`.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(())
}

/// Gives the processor the registers that `kindling-boot` came up with, in KVM's terms.
fn set_registers(vcpu: &VcpuFd, state: &InitialState) -> Result<(), kvm_ioctls::Error> {
    let &InitialState { rip, rsp, rsi, rbx, rflags, .. } = state;
    vcpu.set_regs(&kvm_regs { rip, rsp, rsi, rbx, rflags, ..Default::default() })?;
    let segments = [state.cs, state.ds, state.es, state.fs, state.gs, state.ss, state.tr];
    let [cs, ds, es, fs, gs, ss, tr] = segments.map(|segment| kvm_segment {
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
        ..Default::default()
    });
    let [gdt, idt] = [state.gdt, state.idt].map(|DescriptorTable { base, limit }| kvm_dtable {
        base,
        limit,
        ..Default::default()
    });
    let &InitialState { cr0, cr3, cr4, efer, .. } = state;
    let sregs = vcpu.get_sregs()?;
    vcpu.set_sregs(&kvm_sregs { cs, ds, es, fs, gs, ss, tr, gdt, idt, cr0, cr3, cr4, efer, ..sregs })
}
