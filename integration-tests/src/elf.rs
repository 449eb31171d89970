//! The little of 64-bit little-endian ELF files that is read here: sections by name, and the libraries a program needs.

/// The contents of a section (ELF specification, "Section Header Table").
pub fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    const E_SHOFF: usize = 0x28;
    const E_SHNUM: usize = 0x3c;
    const E_SHSTRNDX: usize = 0x3e;
    const HEADER: usize = 64;
    const SH_OFFSET: usize = 0x18;
    const SH_SIZE: usize = 0x20;

    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?)));
    let header = |index: usize| quad(elf, E_SHOFF)?.checked_add(index * HEADER);
    let contents = |header: usize| {
        let start = quad(elf, header.checked_add(SH_OFFSET)?)?;
        elf.get(start..start.checked_add(quad(elf, header.checked_add(SH_SIZE)?)?)?)
    };
    let names = contents(header(half(E_SHSTRNDX)?)?)?;
    (0..half(E_SHNUM)?).filter_map(header).find_map(|header| {
        let name_at = u32::from_le_bytes(*elf.get(header..)?.first_chunk()?) as usize;
        let name = names.get(name_at..)?.split(|byte| *byte == 0).next()?;
        (name == wanted).then(|| contents(header))?
    })
}

/// The file names of the libraries that a program or library is linked to (ELF specification, "Dynamic Section"); none
/// for a static program, and none for what is no ELF file.
pub fn needed(elf: &[u8]) -> Vec<String> {
    const DT_NEEDED: usize = 1;
    let (Some(dynamic), Some(strings)) = (section(elf, b".dynamic"), section(elf, b".dynstr")) else {
        return Vec::new();
    };
    let name = |entry: &[u8]| {
        let (tag, at) = (quad(entry, 0)?, quad(entry, 8)?);
        let name = strings.get(at..)?.split(|byte| *byte == 0).next()?;
        (tag == DT_NEEDED).then(|| String::from_utf8(name.to_vec()).ok())?
    };
    dynamic.chunks_exact(16).filter_map(name).collect()
}

fn quad(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with these sections.
    pub(crate) fn file(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0];
        let mut elf = vec![0; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        let mut table = Vec::new();
        let mut header = |name: usize, start: usize, len: usize| {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&(name as u32).to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(start as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            table.extend_from_slice(&header);
        };
        for (name, contents) in sections {
            header(names.len(), elf.len(), contents.len());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            elf.extend_from_slice(contents);
        }
        header(0, elf.len(), names.len());
        elf.extend_from_slice(&names);
        let start = elf.len() as u64;
        elf[0x28..0x30].copy_from_slice(&start.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&(sections.len() as u16 + 1).to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&(sections.len() as u16).to_le_bytes());
        elf.extend_from_slice(&table);
        elf
    }

    /// A program that is linked to `liba.so.1` and `b.so`.
    fn program() -> Vec<u8> {
        let entries = [(5, 0_u64), (1, 1), (1, 11), (14, 1), (0, 0)];
        let dynamic: Vec<u8> = entries
            .iter()
            .flat_map(|(tag, value): &(u64, u64)| [tag, value])
            .flat_map(|n| n.to_le_bytes())
            .collect();
        file(&[(".dynstr", b"\0liba.so.1\0b.so\0"), (".dynamic", &dynamic)])
    }

    #[test]
    fn sections_are_found_by_name() {
        let elf = file(&[(".one", b"1"), (".two", b"22")]);
        assert_eq!(section(&elf, b".one"), Some(&b"1"[..]));
        assert_eq!(section(&elf, b".two"), Some(&b"22"[..]));
        assert_eq!(section(&elf, b".three"), None);
    }

    #[test]
    fn needed_libraries_are_told_from_other_entries() {
        assert_eq!(needed(&program()), ["liba.so.1", "b.so"]);
        assert!(needed(&file(&[(".text", b"")])).is_empty());
        assert!(needed(b"#!/bin/sh\n").is_empty());
    }

    #[test]
    fn no_file_however_damaged_makes_the_reader_panic() {
        let good = program();
        for len in 0..good.len() {
            needed(&good[..len]);
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] = 0xff;
            needed(&bad);
        }
    }
}
