//! Where the initial RAM disk goes: as high below 4 GiB as it fits, out of the way of whatever the kernel does next to
//! itself.

use crate::error::Error;
use crate::span::Span;
use crate::x86_64::ram::Ram;

const PAGE_SIZE: u64 = 4096;

/// The highest page-aligned place for `size` bytes that ends at or below `limit` and is not the `kernel`'s.
pub(crate) fn place(size: u64, limit: u64, kernel: Span, ram: &Ram) -> Result<Span, Error> {
    let mut room = 0;
    for area in ram.loadable(limit).rev() {
        let above = Span { start: area.start.max(kernel.end), end: area.end };
        let below = Span { start: area.start, end: area.end.min(kernel.start) };
        for free in [above, below] {
            let Some(lowest) = free.start.checked_next_multiple_of(PAGE_SIZE) else { continue };
            let fits = free.end.saturating_sub(lowest);
            if size <= fits {
                let start = free.end.saturating_sub(size) & !(PAGE_SIZE - 1);
                return Ok(Span { start, end: start.saturating_add(size) });
            }
            room = room.max(fits);
        }
    }
    Err(Error::InitrdTooLarge { size, room })
}
