//! A half-open range of guest-physical addresses whose end is known not to overflow.

/// `start..end`, with `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    /// `size` bytes from `start`, unless that passes the end of the address space.
    pub fn new(start: u64, size: u64) -> Option<Span> {
        Some(Span { start, end: start.checked_add(size)? })
    }

    pub fn size(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub fn contains(self, inner: Span) -> bool {
        self.start <= inner.start && inner.end <= self.end
    }

    /// What the two have in common; empty (of size 0) when that is nothing.
    pub fn intersection(self, other: Span) -> Span {
        let start = self.start.max(other.start);
        Span { start, end: self.end.min(other.end).max(start) }
    }

    /// The smallest span that holds both.
    pub fn hull(self, other: Span) -> Span {
        Span { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}
