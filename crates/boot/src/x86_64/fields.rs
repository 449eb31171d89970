//! Little-endian fields of a header, taken one after the other.

/// What is left of the header.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `N` bytes; `None` when there are fewer.
    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// The next `size` bytes; `None` when there are fewer.
    pub fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(field)
    }

    /// Leaves out `size` bytes, or what is left.
    pub fn skip(&mut self, size: usize) {
        self.0 = self.0.get(size..).unwrap_or_default();
    }
}
