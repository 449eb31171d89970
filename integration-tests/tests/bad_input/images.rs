//! Kernels and initial RAM disks.

use super::stranger::Stranger;
use super::{BAD_CONFIGURATION, file, kernel, refused, run, run_with};

const EHDR_SIZE: u16 = 64;
const PHDR_SIZE: u16 = 56;
const SEGMENT_AT: usize = 0x1000;

/// An ELF kernel of one segment with `file_size` bytes in the file and `memory_size` in memory, entered at its start.
pub fn elf(address: u64, file_size: u64, memory_size: u64) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend(2u16.to_le_bytes()); // ET_EXEC
    image.extend(62u16.to_le_bytes()); // EM_X86_64
    image.extend(1u32.to_le_bytes());
    for word in [address, EHDR_SIZE.into(), 0] {
        image.extend(word.to_le_bytes()); // e_entry, e_phoff, e_shoff
    }
    image.extend(0u32.to_le_bytes());
    for half in [EHDR_SIZE, PHDR_SIZE, 1, 0, 0, 0] {
        image.extend(half.to_le_bytes()); // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    }
    image.extend(1u32.to_le_bytes()); // PT_LOAD
    image.extend(5u32.to_le_bytes()); // readable, executable
    for word in [SEGMENT_AT as u64, address, address, file_size, memory_size, 0x1000] {
        image.extend(word.to_le_bytes());
    }
    image.resize(SEGMENT_AT, 0);
    // HLT, so that even a test gone wrong has a harmless guest.
    image.resize(SEGMENT_AT + usize::try_from(file_size).unwrap(), 0xf4);
    image
}

fn kernel_refused(content: impl AsRef<[u8]>) -> String {
    let (_folder, path) = file("kernel", content);
    refused(run(&path), BAD_CONFIGURATION, "--kernel: ")
}

#[test]
fn missing_kernel() {
    let line = refused(run("/nonexistent/vmlinux".as_ref()), BAD_CONFIGURATION, "--kernel: ");
    assert!(line.contains("/nonexistent/vmlinux") && line.contains("No such file"), "{line}");
}

#[test]
fn kernel_that_is_a_directory() {
    assert!(refused(run("/tmp".as_ref()), BAD_CONFIGURATION, "--kernel: ").contains("is a directory"));
}

#[test]
fn kernel_that_is_a_device() {
    assert!(
        refused(run("/dev/urandom".as_ref()), BAD_CONFIGURATION, "--kernel: ").contains("not a regular file")
    );
}

#[test]
fn empty_kernel() {
    assert!(kernel_refused("").contains("the file is empty"));
}

#[test]
fn kernel_that_is_text() {
    assert!(
        kernel_refused("#!/bin/sh\necho not a kernel\n".repeat(50))
            .contains("neither an ELF file nor a bzImage")
    );
}

#[test]
fn kernel_that_is_compressed() {
    let mut gzip = b"\x1f\x8b\x08\0".to_vec();
    gzip.resize(4096, 0);
    assert!(kernel_refused(gzip).contains("gzip"));
}

#[test]
fn elf_kernel_truncated_in_its_header() {
    for length in [5, 16, 57] {
        let line = kernel_refused(&kernel()[..length]);
        assert!(line.contains("ELF header"), "{length} bytes: {line}");
    }
}

#[test]
fn elf_kernel_truncated_in_its_program_headers() {
    for length in [64, 65, 64 + 55] {
        let line = kernel_refused(&kernel()[..length]);
        assert!(line.contains("program header table"), "{length} bytes: {line}");
    }
}

#[test]
fn elf_kernel_truncated_in_its_segment() {
    let whole = elf(0x20_0000, 0x2000, 0x2000);
    for length in [120, SEGMENT_AT, SEGMENT_AT + 1, SEGMENT_AT + 0x1fff] {
        let line = kernel_refused(&whole[..length]);
        assert!(line.contains("program header 1 of 1"), "{length} bytes: {line}");
    }
}

/// The smallest kernel, with a second program header for the last `length` bytes of the file: a note with the PVH entry
/// point, of which they may hold less than all.
fn elf_with_pvh_note(length: usize) -> Vec<u8> {
    const NOTE_AT: usize = 0x800;
    let mut note = Vec::new();
    for word in [4u32, 8, 18] {
        note.extend(word.to_le_bytes()); // sizes of name and description, XEN_ELFNOTE_PHYS32_ENTRY
    }
    note.extend(b"Xen\0");
    note.extend(0x20_0000u64.to_le_bytes());
    let mut header = Vec::new();
    header.extend(4u32.to_le_bytes()); // PT_NOTE
    header.extend(4u32.to_le_bytes()); // readable
    for word in [NOTE_AT as u64, 0, 0, length as u64, length as u64, 4] {
        header.extend(word.to_le_bytes());
    }
    let mut image = kernel();
    image[56] = 2; // e_phnum
    image[120..176].copy_from_slice(&header);
    image[NOTE_AT..NOTE_AT + note.len()].copy_from_slice(&note);
    image
}

#[test]
fn elf_kernel_with_a_pvh_note_that_is_cut_short() {
    for length in [4, 12, 16, 23] {
        let line = kernel_refused(elf_with_pvh_note(length));
        assert!(line.contains("runs past their end"), "{length} bytes: {line}");
    }
}

#[test]
fn elf_kernel_beyond_the_end_of_ram() {
    let line = kernel_refused(elf(127 << 20, 1, 2 << 20));
    assert!(line.contains("beyond the end of RAM"), "{line}");
}

#[test]
fn elf_kernel_over_the_first_mib() {
    assert!(kernel_refused(elf(0x1000, 1, 1)).contains("below the first MiB"));
}

#[test]
fn elf_kernel_of_another_machine() {
    let mut image = kernel();
    image[18] = 183; // EM_AARCH64
    assert!(kernel_refused(image).contains("e_machine"));
}

/// The setup sectors of a bzImage (kernel documentation, "The Linux/x86 Boot Protocol"), with all that is asked of its
/// header, and the length of the protected-mode part that it announces.
fn bzimage() -> (Vec<u8>, usize) {
    const PARAGRAPHS: u32 = 0x100;
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &PARAGRAPHS.to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x6a]); // jump, over a header that ends at 0x26c
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x236, &[1, 0]); // xloadflags: XLF_KERNEL_64
    (image, PARAGRAPHS as usize * 16)
}

#[test]
fn bzimage_truncated_in_its_setup_header() {
    for length in [0x206, 0x240, 0x268] {
        let line = kernel_refused(&bzimage().0[..length]);
        assert!(line.contains("setup header"), "{length} bytes: {line}");
    }
}

#[test]
fn bzimage_without_its_protected_mode_part() {
    let line = kernel_refused(bzimage().0);
    assert!(line.contains("protected-mode part"), "{line}");
}

#[test]
fn bzimage_truncated_in_its_protected_mode_part() {
    let (setup, size) = bzimage();
    for length in [1, 0x200, size - 1] {
        let mut image = setup.clone();
        image.resize(setup.len() + length, 0xf4);
        let line = kernel_refused(image);
        assert!(line.contains("protected-mode part is at bytes"), "{length} bytes of it: {line}");
    }
}

#[test]
fn kernel_that_is_not_permitted() {
    let stranger = Stranger::new();
    stranger.closed_file("closed", kernel());
    let line = stranger.refused(["run", "--kernel", "closed"], BAD_CONFIGURATION, "--kernel: ");
    assert!(line.contains("closed") && line.contains("Permission denied"), "{line}");
}

#[test]
fn initrd_that_is_not_permitted() {
    let stranger = Stranger::new();
    stranger.closed_file("closed", "an archive");
    let arguments = ["run", "--kernel", "kernel", "--initrd", "closed"];
    let line = stranger.refused(arguments, BAD_CONFIGURATION, "--initrd: ");
    assert!(line.contains("closed") && line.contains("Permission denied"), "{line}");
}

#[test]
fn initrd_that_is_a_directory() {
    let (_folder, path) = file("kernel", kernel());
    let line = refused(run_with(&path, &["--initrd", "/tmp"]), BAD_CONFIGURATION, "--initrd: ");
    assert!(line.contains("/tmp") && line.contains("is a directory"), "{line}");
}

#[test]
fn missing_and_empty_initrd() {
    let (_folder, path) = file("kernel", kernel());
    let line =
        refused(run_with(&path, &["--initrd", "/nonexistent/initrd"]), BAD_CONFIGURATION, "--initrd: ");
    assert!(line.contains("No such file"), "{line}");
    let (_other, empty) = file("initrd", "");
    let line =
        refused(run_with(&path, &["--initrd", empty.to_str().unwrap()]), BAD_CONFIGURATION, "--initrd: ");
    assert!(line.contains("the file is empty"), "{line}");
}

#[test]
fn initrd_larger_than_ram() {
    let (_folder, path) = file("kernel", kernel());
    let (_other, initrd) = file("initrd", "");
    // A hole: it takes no room on the disk.
    std::fs::File::options().write(true).open(&initrd).unwrap().set_len(200 << 20).unwrap();
    let arguments = run_with(&path, &["--memory", "128M", "--initrd", initrd.to_str().unwrap()]);
    let line = refused(arguments, BAD_CONFIGURATION, "--initrd: ");
    assert!(line.contains("209715200 bytes, more than the"), "{line}");
}

#[test]
fn pvh_of_a_kernel_that_has_no_such_entry() {
    let (_folder, path) = file("kernel", kernel());
    let line = refused(run_with(&path, &["--boot-protocol", "pvh"]), BAD_CONFIGURATION, "--kernel: ");
    assert!(line.contains("PVH"), "{line}");
}
