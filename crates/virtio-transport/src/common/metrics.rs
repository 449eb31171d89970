//! What a transport counts.

kindling_metrics::metrics! {
    /// Counters of one device's transport.
    pub struct TransportMetrics {
        /// Accesses of the guest that were refused: of a wrong width, to no register, out of order, or to no avail.
        refused_accesses: Counter,
        /// Times the device asked to be reset, because the driver broke the protocol or the host failed it.
        protocol_errors: Counter,
        /// Times the device's workers did not come back in time, so that it was broken until they had.
        hangs: Counter,
        /// Times the device began to work for a driver, or went on after a reset of one of its queues.
        activations: Counter,
        /// Resets that were completed.
        resets: Counter,
        /// Notifications that came as an exit of the guest, not through an ioeventfd.
        exit_notifications: Counter,
    }
}
