//! What is counted, for all interfaces together.

kindling_metrics::metrics! {
    /// What the metadata service did.
    pub struct MetadataMetrics {
        /// Frames that guests sent to the service.
        rx_frames: Counter,
        /// Frames to the service that were dropped because they are malformed or of no protocol that it knows.
        rx_dropped_malformed: Counter,
        /// Connections that were asked for and dropped because none of the others could give way.
        rx_dropped_busy: Counter,
        /// Frames that the service sent to guests.
        tx_frames: Counter,
        /// Replies that were dropped because a guest took none.
        tx_dropped: Counter,
        /// Connections that were begun.
        connections: Counter,
        /// Connections that had to give way to new ones.
        connections_evicted: Counter,
        /// Connections that ended because nothing came, or nothing was taken, in time.
        connections_timed_out: Counter,
        /// Requests that were answered, in whatever way.
        requests: Counter,
        /// Requests that were malformed or too long.
        requests_malformed: Counter,
        /// Requests that were turned away because connections held too many answers.
        requests_busy: Counter,
        /// Tokens that were issued.
        tokens_issued: Counter,
        /// Reads without a token, whether they needed one or not.
        tokens_missing: Counter,
        /// Reads with a token that is not valid, whether they needed one or not.
        tokens_invalid: Counter,
    }
}
