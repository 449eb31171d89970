//! What the device counts.

kindling_metrics::metrics! {
    /// What a socket device counts.
    pub struct VsockMetrics {
        /// Times that the worker was woken.
        events: Counter,
        /// Packets sent to the guest.
        packets_to_guest: Counter,
        /// Bytes of payload sent to the guest.
        bytes_to_guest: Counter,
        /// Packets received from the guest.
        packets_from_guest: Counter,
        /// Bytes of payload received from the guest.
        bytes_from_guest: Counter,
        /// Connections that both sides accepted.
        connections_added: Counter,
        /// Connections that both sides had accepted and that have ended.
        connections_closed: Counter,
        /// Connections that one side asked for and that the other, or a limit, refused.
        connections_refused: Counter,
        /// Host programs that connected and did not say in time, or not rightly, where they want to go.
        handshakes_failed: Counter,
        /// Packets from the guest that broke the protocol.
        bad_packets: Counter,
        /// Buffers of the guest that are too small for a packet with a payload, or for an event.
        bad_buffers: Counter,
        /// Resets for unknown connections that were not sent since the guest left too many unread.
        resets_dropped: Counter,
        /// Times that packets began to wait for receive buffers of the guest.
        rx_starved: Counter,
        /// Times that a connection used up the guest's credit.
        credit_stalls: Counter,
    }
}
