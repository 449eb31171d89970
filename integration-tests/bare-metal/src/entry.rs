//! From the boot protocol's entry to Rust code in ring 3.
//!
//! `start` is the entry of the Linux 64-bit boot protocol (long mode, identity mapped, RSI = `boot_params`; Linux
//! `Documentation/arch/x86/boot.rst`), `pvh_start` that of PVH (32-bit protected mode, EBX = `hvm_start_info`; Xen
//! `docs/misc/pvh.pandoc`).
//!
//! Both load page tables that open the first [`MAPPED_GIB`] GiB to ring 3 and a task state segment that opens every
//! port to it (not every KVM keeps an I/O privilege level), enable SSE, and leave by SYSEXIT (Intel SDM volume 2B; in
//! long mode the selectors follow from IA32_SYSENTER_CS). AMD processors refuse it in long mode: there the handler of
//! the invalid opcode leaves by IRETQ. The interrupt table has no other gate, so any other fault is a triple fault.

use crate::boot_info::BootInfo;
use crate::scenario;

/// `protocol` of [`enter_ring_3`] for the Linux 64-bit boot protocol.
pub const LINUX_64: u64 = 0;
/// `protocol` of [`enter_ring_3`] for PVH.
pub const PVH: u64 = 1;
/// How much of the physical address space is mapped, identically.
pub const MAPPED_GIB: u64 = 8;

core::arch::global_asm!(
    // XEN_ELFNOTE_PHYS32_ENTRY: offers the PVH entry to loaders that know it.
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad pvh_start",
    ".section .text.start, \"ax\"",
    ".global start",
    "start:",
    "mov edi, {linux_64}",
    // From here on: EDI = protocol, RSI = its parameters.
    "long_mode:",
    "mov eax, offset pml4",
    "mov cr3, rax",
    "lgdt [gdt_pointer]",
    "lidt [idt_pointer]",
    // CR0: MP on, EM and TS off. CR4: OSFXSR and OSXMMEXCPT.
    "mov rax, cr0",
    "or eax, 0x2",
    "and eax, 0xfffffff3",
    "mov cr0, rax",
    "mov rax, cr4",
    "or eax, 0x600",
    "mov cr4, rax",
    "mov esp, offset stack_end",
    "mov eax, 0x38",
    "ltr ax",
    "mov ecx, 0x174", // IA32_SYSENTER_CS
    "mov eax, 0x08",
    "xor edx, edx",
    "wrmsr",
    // A call would leave RSP 8 below a multiple of 16.
    "mov ecx, offset stack_end - 8",
    "mov edx, offset {enter_ring_3}",
    "sysexitq",
    "invalid_opcode:",
    "lidt [no_idt_pointer]",
    "push 0x33",
    "push rcx",
    "push 2",
    "push 0x2b",
    "push rdx",
    "iretq",
    ".code32",
    "pvh_start:",
    "mov edi, {pvh}",
    "mov esi, ebx",
    "mov eax, 0x20", // CR4.PAE
    "mov cr4, eax",
    "mov eax, offset pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080", // IA32_EFER: LME
    "mov eax, 0x100",
    "xor edx, edx",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000", // CR0.PG
    "mov cr0, eax",
    "lgdt [gdt_pointer]",
    // A jump to 0x08:long_mode.
    ".byte 0xea",
    ".long long_mode",
    ".word 0x08",
    ".code64",
    ".section .data.tables, \"aw\"",
    // SYSEXIT takes 0x08 + 32 for the code segment and 0x08 + 40 for the stack segment of a 64-bit program.
    ".balign 8",
    "gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff", // 0x08: ring 0 code
    ".quad 0x00cf93000000ffff", // 0x10: ring 0 data
    ".quad 0",
    ".quad 0",
    ".quad 0x00affb000000ffff", // 0x28: ring 3 code
    ".quad 0x00cff3000000ffff", // 0x30: ring 3 data
    // 0x38: the task state segment, whose I/O permission bitmap follows it.
    ".word tss_end - tss - 1",
    ".word tss_low",
    ".byte tss_middle",
    ".byte 0x89",
    ".word 0",
    ".quad 0",
    "gdt_pointer:",
    ".word gdt_pointer - gdt - 1",
    ".quad gdt",
    // All zeros: ring 3 may use every port. The bitmap starts 104 bytes into the segment.
    ".global tss",
    "tss:",
    ".skip 102",
    ".word 104",
    ".skip 0x2000 + 1",
    "tss_end:",
    ".balign 8",
    "idt:",
    ".fill 12, 8, 0",
    // Vector 6: an interrupt gate. The image starts at 0x100000, see link.ld.
    ".word invalid_opcode - start",
    ".word 0x08",
    ".word 0x8e00",
    ".word 0x10",
    ".quad 0",
    "idt_pointer:",
    ".word idt_pointer - idt - 1",
    ".quad idt",
    "no_idt_pointer:",
    ".word 0",
    ".quad 0",
    // 0x7: present, writable, open to ring 3; 0x87: the same for a page of 2 MiB. Pages of 1 GiB are not for every KVM.
    ".balign 4096",
    "pml4:",
    ".quad pdpt + 0x7",
    ".fill 511, 8, 0",
    "pdpt:",
    ".set directory, page_directories + 0x7",
    ".rept {mapped_gib}",
    ".quad directory",
    ".set directory, directory + 0x1000",
    ".endr",
    ".fill 512 - {mapped_gib}, 8, 0",
    "page_directories:",
    ".set page, 0x87",
    ".rept {mapped_gib} * 512",
    ".quad page",
    ".set page, page + 0x200000",
    ".endr",
    ".section .bss.stack, \"aw\", @nobits",
    ".balign 16",
    ".skip 0x4000",
    "stack_end:",
    mapped_gib = const MAPPED_GIB,
    linux_64 = const LINUX_64,
    pvh = const PVH,
    enter_ring_3 = sym enter_ring_3,
);

/// Where the guest goes on in ring 3; `parameters` is the address the boot protocol gave.
extern "sysv64" fn enter_ring_3(protocol: u64, parameters: u64) -> ! {
    let boot_info =
        if protocol == PVH { BootInfo::from_pvh(parameters) } else { BootInfo::from_linux(parameters) };
    scenario::run(&boot_info)
}
