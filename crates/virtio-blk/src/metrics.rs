//! What a block device counts.

kindling_metrics::metrics! {
    /// What one block device did.
    pub struct BlkMetrics {
        /// Read requests that were done.
        reads: Counter,
        /// Bytes that read requests read.
        read_bytes: Counter,
        /// How long read requests took, from being taken to being done.
        read_latency: Latency,
        /// Read requests that the host failed.
        read_errors: Counter,
        /// Write requests that were done.
        writes: Counter,
        /// Bytes that write requests wrote.
        write_bytes: Counter,
        /// How long write requests took, from being taken to being done.
        write_latency: Latency,
        /// Write requests that the host failed.
        write_errors: Counter,
        /// Flush requests that were done.
        flushes: Counter,
        /// How long flush requests took, from being taken to being done.
        flush_latency: Latency,
        /// Flush requests that the host failed.
        flush_errors: Counter,
        /// Discard requests that were done.
        discards: Counter,
        /// Bytes that discard requests discarded.
        discarded_bytes: Counter,
        /// Discard requests that the host failed.
        discard_errors: Counter,
        /// Requests to write zeroes that were done.
        write_zeroes: Counter,
        /// Bytes that requests to write zeroes zeroed.
        zeroed_bytes: Counter,
        /// Requests to write zeroes that the host failed.
        write_zeroes_errors: Counter,
        /// Requests that were malformed, out of range or not allowed, and did not reach the host.
        invalid_requests: Counter,
        /// Requests of a kind that the device does not know or the driver did not negotiate.
        unsupported_requests: Counter,
        /// Requests that had to wait for the rate limiter.
        throttled: Counter,
        /// Changes of file, size or limits while the device existed.
        updates: Counter,
    }
}
