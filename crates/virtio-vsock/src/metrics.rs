//! What the device counts.

kindling_metrics::counters! {
    /// What a socket device counts.
    pub struct VsockMetrics {
        /// Times that the worker was woken.
        events,
        /// Packets sent to the guest.
        packets_to_guest,
        /// Bytes of payload sent to the guest.
        bytes_to_guest,
        /// Packets received from the guest.
        packets_from_guest,
        /// Bytes of payload received from the guest.
        bytes_from_guest,
        /// Connections that both sides accepted.
        connections_added,
        /// Connections of these that have ended.
        connections_closed,
        /// Connections that one side asked for and that the other, or a limit, refused.
        connections_refused,
        /// Host programs that connected and did not say in time, or not rightly, where they want to go.
        handshakes_failed,
        /// Packets from the guest that broke the protocol.
        bad_packets,
        /// Buffers of the guest that are too small for a packet with a payload, or for an event.
        bad_buffers,
        /// Resets for unknown connections that were not sent since the guest left too many unread.
        resets_dropped,
        /// Times that packets began to wait for receive buffers of the guest.
        rx_starved,
        /// Times that a connection used up the guest's credit.
        credit_stalls,
    }
}
