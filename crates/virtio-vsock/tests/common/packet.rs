//! Packets as the specification has them (VIRTIO 1.2, 5.10.6), written down here once more: the device's own idea of them is
//! what is tested.

pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

pub const RCV: u32 = 1;
pub const SEND: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
    pub payload: Vec<u8>,
}

impl Packet {
    /// A packet of the guest to the host.
    pub fn new(op: u16, host_port: u32, guest_port: u32, payload: &[u8]) -> Self {
        Self {
            src_cid: super::CID.into(),
            dst_cid: 2,
            src_port: guest_port,
            dst_port: host_port,
            len: payload.len() as u32,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 256 << 10,
            fwd_cnt: 0,
            payload: payload.to_vec(),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let packet = Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
            payload: bytes[44..].to_vec(),
        };
        assert_eq!(packet.len as usize, packet.payload.len(), "a packet is as long as it says");
        packet
    }
}
