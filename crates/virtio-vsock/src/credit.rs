//! Credit: how much each side of a connection may send without overrunning the other (VIRTIO 1.2, 5.10.6.3).

use crate::packet::Header;

/// Bytes that the device buffers for a connection whose host program is slow to read: the `buf_alloc` that the guest is
/// told.
///
/// Several of Linux's packets of at most 64 KiB fit, so that one can be on its way while another is being taken.
pub const BUFFER_BYTES: u32 = 256 << 10;

/// How much of its credit the guest may be unaware of.
const UPDATE_AFTER: u32 = BUFFER_BYTES / 4;

/// The credit of one connection, both ways. All counts are modulo 2^32.
#[derive(Debug, Default)]
pub struct Credit {
    /// Bytes sent to the guest.
    sent: u32,
    /// Of those, the bytes that the guest's program has taken, as the guest says.
    taken: u32,
    /// Bytes that the guest can buffer, as it says.
    room: u32,
    /// Bytes of the guest that need no room here any more.
    forwarded: u32,
    /// The value of `forwarded` that the guest was told last.
    told: u32,
}

impl Credit {
    /// Learns from a packet of the guest.
    pub fn learn(&mut self, header: &Header) {
        self.room = header.buf_alloc;
        self.taken = header.fwd_cnt;
    }

    /// Bytes that the guest can take. None, when what it says makes no sense.
    pub fn available(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.taken))
    }

    /// So many bytes were sent to the guest.
    pub fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// So many bytes of the guest need no room any more.
    pub fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest should hear soon how much it may send. It has three quarters of all credit when it does not,
    /// less what is buffered; so it is never stuck for lack of news.
    pub fn is_update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= UPDATE_AFTER
    }

    /// Puts what the guest may send into the header of a packet to it.
    pub fn tell(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        header.buf_alloc = BUFFER_BYTES;
        header.fwd_cnt = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header { buf_alloc, fwd_cnt, ..Header::default() }
    }

    #[test]
    fn credit_is_what_the_guest_has_room_for_less_what_is_on_its_way() {
        let mut credit = Credit::default();
        assert_eq!(credit.available(), 0);
        credit.learn(&news(1000, 0));
        credit.send(600);
        assert_eq!(credit.available(), 400);
        credit.learn(&news(1000, 500));
        assert_eq!(credit.available(), 900);
        // The guest may make its buffer smaller than what is in it.
        credit.learn(&news(50, 500));
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn counts_go_round_at_4_gib() {
        let mut credit = Credit::default();
        credit.learn(&news(1000, 0));
        credit.send(u32::MAX - 10);
        credit.learn(&news(1000, u32::MAX - 10));
        credit.send(100);
        assert_eq!(credit.available(), 900);
        credit.learn(&news(1000, 89));
        assert_eq!(credit.available(), 1000);
    }

    #[test]
    fn a_guest_that_took_more_than_it_was_sent_gets_nothing() {
        let mut credit = Credit::default();
        credit.learn(&news(1 << 20, 1));
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn the_guest_is_told_once_for_each_quarter_of_the_buffer() {
        let mut credit = Credit::default();
        credit.forward(UPDATE_AFTER - 1);
        assert!(!credit.is_update_due());
        credit.forward(1);
        assert!(credit.is_update_due());
        let mut header = Header::default();
        credit.tell(&mut header);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER_BYTES, UPDATE_AFTER));
        assert!(!credit.is_update_due());
    }
}
