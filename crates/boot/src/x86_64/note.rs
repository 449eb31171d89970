//! The ELF note by which a kernel says where it is to be entered by PVH: name "Xen", type XEN_ELFNOTE_PHYS32_ENTRY
//! (xen/include/public/elfnote.h), layout as in the System V ABI's "Note Section".

use super::fields::Fields;
use crate::error::{Error, Part};

const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// The most bytes of notes that are looked through; kernels have less than one KiB of them.
pub(super) const NOTES_MAX: u64 = 64 << 10;

/// Looks for the PVH entry point in `notes`, the contents of the segment `part`, whose `p_align` is `align`.
pub(super) fn pvh_entry(part: Part, notes: &[u8], align: u64) -> Result<Option<u64>, Error> {
    // Alignments other than 8 stand for 4 in practice, whatever they are.
    let align: usize = if align == 8 { 8 } else { 4 };
    let mut rest = Fields(notes);
    while !rest.0.is_empty() {
        let offset = notes.len().saturating_sub(rest.0.len());
        let (kind, name, description) =
            note(&mut rest, align).ok_or(Error::NoteTruncated { part, offset, size: notes.len() })?;
        if name == b"Xen\0" && kind == XEN_ELFNOTE_PHYS32_ENTRY {
            // The specification has 4 bytes; Linux for x86_64 writes 8.
            let mut fields = Fields(description);
            let entry = match description.len() {
                4 => fields.u32().map(u64::from),
                8 => fields.u64(),
                _ => None,
            };
            return match entry {
                Some(entry) => Ok(Some(entry)),
                None => Err(Error::PvhNoteSize { part, size: description.len() }),
            };
        }
    }
    Ok(None)
}

/// Type, name and description of the next note.
fn note<'a>(rest: &mut Fields<'a>, align: usize) -> Option<(u32, &'a [u8], &'a [u8])> {
    let name_size = usize::try_from(rest.u32()?).ok()?;
    let description_size = usize::try_from(rest.u32()?).ok()?;
    let kind = rest.u32()?;
    // The description is aligned within the note, in which the name starts at byte 12.
    let name = rest.take(name_size)?;
    rest.skip(padding(name_size.checked_add(12)?, align));
    let description = rest.take(description_size)?;
    rest.skip(padding(description_size, align));
    Some((kind, name, description))
}

/// What `size` lacks to be a multiple of `align`, 4 or 8.
fn padding(size: usize, align: usize) -> usize {
    size.wrapping_neg() & align.saturating_sub(1)
}
