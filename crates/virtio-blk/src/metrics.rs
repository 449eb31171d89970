//! What a block device counts.

kindling_metrics::counters! {
    /// What one block device did.
    pub struct BlkMetrics {
        /// Read requests that were done.
        reads,
        /// Bytes read by them.
        read_bytes,
        /// Nanoseconds that they took together, from being taken to being done.
        read_time_ns,
        /// Read requests that the host failed.
        read_errors,
        /// Write requests that were done.
        writes,
        /// Bytes written by them.
        write_bytes,
        /// Nanoseconds that they took together, from being taken to being done.
        write_time_ns,
        /// Write requests that the host failed.
        write_errors,
        /// Flush requests that were done.
        flushes,
        /// Nanoseconds that they took together, from being taken to being done.
        flush_time_ns,
        /// Flush requests that the host failed.
        flush_errors,
        /// Discard requests that were done.
        discards,
        /// Bytes discarded by them.
        discarded_bytes,
        /// Discard requests that the host failed.
        discard_errors,
        /// Requests to write zeroes that were done.
        write_zeroes,
        /// Bytes zeroed by them.
        zeroed_bytes,
        /// Requests to write zeroes that the host failed.
        write_zeroes_errors,
        /// Requests that were malformed, out of range or not allowed, and did not reach the host.
        invalid_requests,
        /// Requests of a kind that the device does not know or the driver did not negotiate.
        unsupported_requests,
        /// Requests that had to wait for the rate limiter.
        throttled,
        /// Changes of file, size or limits while the device existed.
        updates,
    }
}
