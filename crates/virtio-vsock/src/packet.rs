//! Packets: what both directions carry (VIRTIO 1.2, 5.10.6).

use std::mem;

use kindling_virtio_device::Writable;
use libc::iovec;
use vm_memory::VolatileSlice;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;

/// The host's CID (VIRTIO 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;

/// The type of a packet for a stream socket.
pub const STREAM: u16 = 1;

/// What a packet is for (VIRTIO 1.2, 5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of `op::SHUTDOWN` (VIRTIO 1.2, 5.10.6.5).
pub mod shutdown {
    /// The sender will receive no more.
    pub const RCV: u32 = 1 << 0;
    /// The sender will send no more.
    pub const SEND: u32 = 1 << 1;
    pub const BOTH: u32 = RCV | SEND;
}

/// The header of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of payload that follow.
    pub len: u32,
    /// The field that the specification calls `type`.
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Bytes that the sender can buffer for the connection.
    pub buf_alloc: u32,
    /// Bytes that the sender's user has taken, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// The header in these bytes.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut rest = &mut bytes[..];
        for field in fields {
            let (to, after) = mem::take(&mut rest).split_at_mut(field.len());
            to.copy_from_slice(field);
            rest = after;
        }
        bytes
    }

    /// The packet that refuses this one: the same way back, and of the same type.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// The fields of a header that have not been taken.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        // There are as many bytes as the fields of a header have.
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

/// The place of a packet's header in a buffer of the guest, kept while what follows it is read straight from a socket.
///
/// It borrows nothing, so that the rest of the buffer can be used meanwhile.
pub struct HeaderPlace {
    /// Where the header goes: often one piece, at most one for each byte.
    pieces: [iovec; HEADER_BYTES],
    count: usize,
}

impl HeaderPlace {
    /// Takes the place off the front of `buffers`. There is none when they have no room for a payload behind it.
    pub fn take(buffers: &mut Writable) -> Option<Self> {
        if buffers.len() as usize <= HEADER_BYTES {
            return None;
        }
        let mut pieces = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; HEADER_BYTES];
        let (mut count, mut missing) = (0_usize, HEADER_BYTES);
        for (piece, buffer) in pieces.iter_mut().zip(buffers.iovecs()) {
            *piece = iovec { iov_len: buffer.iov_len.min(missing), ..*buffer };
            missing = missing.saturating_sub(piece.iov_len);
            count = count.saturating_add(1);
            if missing == 0 {
                break;
            }
        }
        buffers.skip(HEADER_BYTES as u32);
        Some(Self { pieces, count })
    }

    /// Writes the header to its place.
    ///
    /// # Safety
    ///
    /// The chain that the place was taken from must not have been given back or filled anew.
    pub unsafe fn fill(&self, header: Header) {
        let bytes = header.to_bytes();
        let mut rest = &bytes[..];
        for piece in self.pieces.iter().take(self.count) {
            let (now, later) = rest.split_at(piece.iov_len);
            // SAFETY: the piece lies in guest memory, which the chain keeps mapped (the caller vouches for it). Volatile
            // accesses allow for a guest that changes it meanwhile.
            unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }.copy_from(now);
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_its_fields_where_the_specification_puts_them() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let expected: [u8; HEADER_BYTES] = std::array::from_fn(|at| at as u8 + 1);
        assert_eq!(header.to_bytes(), expected);
        assert_eq!(Header::from_bytes(&expected), header);
    }
}
