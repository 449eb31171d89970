//! What is counted. Frames and bytes are without the header of 12 bytes before each frame.

kindling_metrics::counters! {
    /// What a network device did, all of its queues together. "Received" and "sent" are the guest's view.
    pub struct NetMetrics {
        /// Frames that the guest received.
        rx_frames,
        /// Bytes that the guest received.
        rx_bytes,
        /// Frames from the host that were dropped because the link is down.
        rx_dropped_link_down,
        /// Frames from the host that were dropped because they are too short or larger than the guest takes.
        rx_dropped_size,
        /// Frames from the host that were dropped because the guest's buffers are smaller.
        rx_dropped_no_room,
        /// Buffers of the guest that went back unused because they are too small.
        rx_unusable_buffers,
        /// Times that receiving waited for the rate limiter.
        rx_throttled,
        /// Times that receiving waited for buffers of the guest.
        rx_starved,
        /// Times that the tap failed to give a frame.
        rx_errors,
        /// Frames that the guest sent.
        tx_frames,
        /// Bytes that the guest sent.
        tx_bytes,
        /// Frames of the guest that were dropped because the link is down or the tap is lost.
        tx_dropped_link_down,
        /// Frames of the guest that were dropped because they are too short or too long.
        tx_dropped_size,
        /// Frames of the guest that were dropped because the tap refused them: it is down, or their header is wrong.
        tx_refused,
        /// Times that sending waited for the rate limiter.
        tx_throttled,
        /// Times that sending waited for the tap.
        tx_waits,
        /// Queues of the tap that were lost, because somebody deleted it for example.
        tap_lost,
        /// Commands that the guest gave.
        commands,
        /// Commands of the guest that failed.
        commands_failed,
    }
}
