//! What the server counts.

kindling_metrics::metrics! {
    /// What the API's server did.
    pub struct ServerMetrics {
        /// Connections that were accepted and served.
        connections: Counter,
        /// Connections that were refused because as many as allowed were open.
        connections_refused: Counter,
        /// Times when the system could not accept a connection, for want of descriptors or memory.
        accept_failures: Counter,
        /// Requests whose head was read.
        requests: Counter,
        /// Requests among them that were answered with a fault.
        request_failures: Counter,
        /// Connections that were closed because what came was not HTTP, or had too large a head.
        malformed_requests: Counter,
        /// Streams of events that were opened.
        event_streams: Counter,
        /// Events that streams lost because their clients did not read them in time.
        events_lost: Counter,
    }
}
