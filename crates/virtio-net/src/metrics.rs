//! What is counted. Frames and bytes are without the header of 12 bytes before each frame.

kindling_metrics::metrics! {
    /// What a network device did, all of its queues together. "Received" and "sent" are the guest's view.
    pub struct NetMetrics {
        /// Frames that the guest received.
        rx_frames: Counter,
        /// Bytes that the guest received.
        rx_bytes: Counter,
        /// Frames from the host that were dropped because the link is down.
        rx_dropped_link_down: Counter,
        /// Frames from the host that were dropped because they are too short or larger than the guest takes.
        rx_dropped_size: Counter,
        /// Frames from the host that were dropped because the guest's buffers are smaller.
        rx_dropped_no_room: Counter,
        /// Buffers of the guest that went back unused because they are too small.
        rx_unusable_buffers: Counter,
        /// Frames that the guest received from the detour, and not from the host.
        rx_detoured: Counter,
        /// Times that receiving waited for the rate limiter.
        rx_throttled: Counter,
        /// Times that receiving waited for buffers of the guest.
        rx_starved: Counter,
        /// Times that the tap failed to give a frame.
        rx_errors: Counter,
        /// Frames that the guest sent.
        tx_frames: Counter,
        /// Bytes that the guest sent.
        tx_bytes: Counter,
        /// Frames of the guest that took the detour, and did not go to the host.
        tx_detoured: Counter,
        /// Frames of the guest that were dropped because the link is down or the tap is lost.
        tx_dropped_link_down: Counter,
        /// Frames of the guest that were dropped because they are too short or too long.
        tx_dropped_size: Counter,
        /// Frames of the guest that were dropped because the tap refused them: it is down, or their header is wrong.
        tx_refused: Counter,
        /// Times that sending waited for the rate limiter.
        tx_throttled: Counter,
        /// Times that sending waited for the tap.
        tx_waits: Counter,
        /// Queues of the tap that were lost, because somebody deleted it for example.
        tap_lost: Counter,
        /// Commands that the guest gave.
        commands: Counter,
        /// Commands of the guest that failed.
        commands_failed: Counter,
    }
}
