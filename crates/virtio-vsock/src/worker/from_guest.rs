//! From the guest to the host: what is in the transmit queue.

use kindling_virtio_device::WorkerError;

use super::{MAX_RESETS, TX, VsockWorker};
use crate::connection::Connection;
use crate::packet::{HOST_CID, Header, STREAM, op};
use crate::table::Entry;

impl VsockWorker {
    /// Takes the packets that the guest sent: at most as many as its queue has entries.
    pub(super) fn receive_packets(&mut self) -> Result<(), WorkerError> {
        self.tx.begin_batch();
        for _ in 0..self.tx.size() {
            if !self.tx.pop(&mut self.chain).map_err(WorkerError::queue(TX))? {
                break;
            }
            self.receive_packet();
            self.tx.push(self.chain.head(), 0);
        }
        self.tx.end_batch();
        Ok(())
    }

    /// Takes the packet in `self.chain`.
    fn receive_packet(&mut self) {
        let metrics = self.backend.metrics.as_ref();
        let payload = &mut self.chain.readable;
        let header = payload.take().map(|bytes| Header::from_bytes(&bytes));
        let Some(header) = header.filter(|header| header.len <= payload.len()) else {
            metrics.bad_packets.increment();
            return;
        };
        payload.truncate(header.len);
        metrics.packets_from_guest.increment();
        let ours = header.src_cid == u64::from(self.backend.guest_cid) && header.dst_cid == HOST_CID;
        if !ours || header.kind != STREAM {
            metrics.bad_packets.increment();
            return self.refuse(&header);
        }
        let index = self.table.find_ports(header.dst_port, header.src_port);
        if let Some(index) = index
            && let Some(connection) = self.table.connection(index)
        {
            connection.on_packet(&header, payload, metrics);
            self.changed(index);
        } else if header.op == op::REQUEST {
            self.open(&header);
        } else {
            self.refuse(&header);
        }
    }

    /// The guest asks for a connection.
    fn open(&mut self, request: &Header) {
        let index = match self.table.is_full() {
            true => None,
            false => self.backend.host.connect(request.dst_port).ok().and_then(|stream| {
                self.table.insert(Entry::Connection(Connection::accepted(stream, request)))
            }),
        };
        if let Some(index) = index {
            self.backend.metrics.connections_added.increment();
            self.table.touch(index);
        } else {
            self.backend.metrics.connections_refused.increment();
            self.refuse(request);
        }
    }

    /// Answers a packet with a reset, except one that is a reset itself.
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(header.reset());
        } else {
            self.backend.metrics.resets_dropped.increment();
        }
    }
}
