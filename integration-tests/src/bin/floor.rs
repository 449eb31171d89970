//! The least a monitor can do: the KVM calls of `vmm` for one vCPU and no configured device, and nothing else. It is
//! the reference of the start benchmarks.
//!
//! `floor IMAGE MEBIBYTES` runs an `exit` or `mark` image of the bare-metal guest with so much memory: the image is
//! entered as the Linux 64-bit boot protocol asks, but without boot parameters, which these images do not read. Bytes
//! that the guest writes to the serial port go to standard output. The process ends with status 0 when the guest asks
//! the keyboard controller for a reset.
#![no_main]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_DISABLE_QUIRKS, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES,
    KVM_PMU_CAP_DISABLE, KVM_X86_QUIRK_LINT0_REENABLED, Msrs, kvm_dtable, kvm_enable_cap, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// The TSS and the identity map, three pages and one, below the firmware hole.
const TSS: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;

/// Where the page tables go; they map the first 2 MiB.
const PML4: usize = 0x9000;
const PAGE_DIRECTORY_POINTERS: usize = 0xa000;
const PAGE_DIRECTORY: usize = 0xb000;

const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_GSI: u32 = 4;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_GSI: u32 = 1;
const EVENT_GSI: u32 = 3;
const RESET: u8 = 0xfe;

/// The C library's entry: without the start-up code of Rust's runtime.
#[unsafe(no_mangle)]
extern "C" fn main() -> libc::c_int {
    match run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("floor: {error}");
            1
        }
    }
}

fn run() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(image), Some(mebibytes)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: floor IMAGE MEBIBYTES"));
    };
    let mebibytes: usize =
        mebibytes.to_str().and_then(|text| text.parse().ok()).ok_or(io::Error::other("no number of MiB"))?;

    let kvm = Kvm::new()?;
    if kvm.get_api_version() != KVM_API_VERSION.cast_signed() || !kvm.check_extension(Cap::TscDeadlineTimer) {
        return Err(io::Error::other("KVM lacks what is needed"));
    }
    if kvm.get_max_vcpus() == 0 {
        return Err(io::Error::other("KVM has no vCPU"));
    }
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let memory = map(mebibytes << 20)?;
    // Closed after the virtual machine: the other way round, KVM has to wait for each line.
    let lines = [
        (EventFd::new(libc::EFD_CLOEXEC)?, SERIAL_GSI),
        (EventFd::new(libc::EFD_CLOEXEC)?, KEYBOARD_GSI),
        (EventFd::new(libc::EFD_CLOEXEC)?, EVENT_GSI),
    ];

    let vm = kvm.create_vm()?;
    vm.set_identity_map_address(IDENTITY_MAP)?;
    vm.set_tss_address(TSS)?;
    vm.create_irq_chip()?;
    enable(&vm, KVM_CAP_DISABLE_QUIRKS, KVM_X86_QUIRK_LINT0_REENABLED)?;
    if kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()).cast_unsigned() & KVM_PMU_CAP_DISABLE != 0 {
        enable(&vm, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE)?;
    }
    let region = kvm_userspace_memory_region {
        memory_size: memory.len() as u64,
        userspace_addr: memory.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the mapping lives as long as the process.
    unsafe { vm.set_user_memory_region(region)? };
    for (event, gsi) in &lines {
        vm.register_irqfd(event, *gsi)?;
    }
    let entry = load(&File::open(image)?, memory)?;

    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.get_tsc_khz()?;
    vcpu.set_cpuid2(&cpuid)?;
    set_registers(&vcpu, memory, entry)?;

    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(KEYBOARD_COMMAND, [RESET]) => return Ok(()),
            VcpuExit::IoOut(SERIAL_DATA, byte) => {
                // SAFETY: one valid byte.
                unsafe { libc::write(1, byte.as_ptr().cast(), 1) };
            }
            exit => return Err(io::Error::other(format!("unexpected exit {exit:?}"))),
        }
    }
}

fn enable(vm: &VmFd, cap: u32, argument: u32) -> io::Result<()> {
    let mut cap = kvm_enable_cap { cap, ..Default::default() };
    cap.args[0] = argument.into();
    Ok(vm.enable_cap(&cap)?)
}

/// Anonymous memory for the guest, never unmapped.
fn map(size: usize) -> io::Result<&'static mut [u8]> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is `size` bytes long, zeroed and nobody else's but the guest's, which does not run yet.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast(), size) })
}

/// Reads the loadable segments of the 64-bit ELF `image` to their physical addresses; returns the entry address.
fn load(image: &File, memory: &mut [u8]) -> io::Result<u64> {
    const PT_LOAD: u64 = 1;
    const PROGRAM_HEADER_SIZE: usize = 56;
    let mut head = [0; 512];
    let length = image.read_at(&mut head, 0)?;
    let number = |offset: usize, size: usize| {
        let bytes = head[..length].get(offset..offset + size).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok::<u64, io::Error>(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    let headers = number(32, 8)? as usize;
    for index in 0..number(56, 2)? as usize {
        let header = headers + index * PROGRAM_HEADER_SIZE;
        if number(header, 4)? == PT_LOAD {
            let address = number(header + 24, 8)? as usize;
            let size = number(header + 32, 8)? as usize;
            let segment = memory.get_mut(address..address + size).ok_or(io::ErrorKind::OutOfMemory)?;
            image.read_exact_at(segment, number(header + 8, 8)?)?;
        }
    }
    number(24, 8)
}

/// Long mode, identity mapped, flat segments, interrupts off.
fn set_registers(vcpu: &VcpuFd, memory: &mut [u8], entry: u64) -> io::Result<()> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const PAGE_OF_2_MIB: u64 = 0x80;
    const CR0_PE_PG: u64 = 0x8000_0001;
    const CR4_PAE: u64 = 0x20;
    const EFER_LME_LMA: u64 = 0x500;
    const MISC_ENABLE: (u32, u64) = (0x1a0, 0x1801);
    const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 0x806);
    let mut set = |table: usize, entry: u64| memory[table..table + 8].copy_from_slice(&entry.to_le_bytes());
    set(PML4, PAGE_DIRECTORY_POINTERS as u64 | PRESENT_WRITABLE);
    set(PAGE_DIRECTORY_POINTERS, PAGE_DIRECTORY as u64 | PRESENT_WRITABLE);
    set(PAGE_DIRECTORY, PRESENT_WRITABLE | PAGE_OF_2_MIB);

    let msrs = [MISC_ENABLE, MTRR_DEF_TYPE];
    let msrs = msrs.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    vcpu.set_msrs(&Msrs::from_entries(&msrs).map_err(|_| io::ErrorKind::OutOfMemory)?)?;

    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x18,
        type_: 0x3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment { selector: 0x10, type_: 0xb, l: 1, db: 0, ..data };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.gdt = kvm_dtable::default();
    sregs.cr3 = PML4 as u64;
    sregs.cr0 |= CR0_PE_PG;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: entry, rflags: 0x2, ..Default::default() })?;
    Ok(())
}
