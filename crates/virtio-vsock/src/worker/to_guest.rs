//! From the host to the guest: what goes into the receive queue.

use kindling_virtio_device::WorkerError;

use super::{RX, VsockWorker};
use crate::packet::{HEADER_BYTES, HOST_CID, Header, HeaderPlace, STREAM};

impl VsockWorker {
    /// Whether there is, or may be, a packet for the guest.
    pub(super) fn has_output(&self) -> bool {
        !self.resets.is_empty() || self.table.is_ready()
    }

    /// Sends packets to the guest, as long as there are packets and buffers, but at most as many as the queue has
    /// entries. Connections take turns of one packet.
    pub(super) fn send_packets(&mut self) -> Result<(), WorkerError> {
        let starved = std::mem::take(&mut self.starving);
        if !self.has_output() {
            return Ok(());
        }
        self.rx.begin_batch();
        for _ in 0..self.rx.size() {
            if !self.has_output() {
                break;
            }
            if !self.rx.pop(&mut self.chain).map_err(WorkerError::queue(RX))? {
                self.starving = true;
                break;
            }
            let Some(place) = HeaderPlace::take(&mut self.chain.writable) else {
                self.backend.metrics.bad_buffers.increment();
                self.rx.push(self.chain.head(), 0);
                continue;
            };
            if let Some(header) = self.next_packet() {
                // SAFETY: the chain is still the one that the place was taken from, and is given back below.
                unsafe { place.fill(header) };
                self.rx.push(self.chain.head(), header.len.saturating_add(HEADER_BYTES as u32));
                self.backend.metrics.packets_to_guest.increment();
            } else {
                self.rx.unpop(&self.chain);
            }
        }
        if !self.starving {
            // Nobody waits for buffers, so no kick is wanted for them.
            self.rx.publish();
            return Ok(());
        }
        if !starved {
            self.backend.metrics.rx_starved.increment();
        }
        self.rx.end_batch();
        Ok(())
    }

    /// The next packet for the guest, its payload in `self.chain` already. None does not mean that there are no more.
    fn next_packet(&mut self) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        let index = self.table.next_ready()?;
        let connection = self.table.connection(index)?;
        let (src_port, dst_port) = (connection.host_port, connection.guest_port);
        let packet = connection.next_packet(&mut self.chain.writable, &self.backend.metrics);
        self.changed(index);
        let dst_cid = self.backend.guest_cid.into();
        packet.map(|packet| Header { src_cid: HOST_CID, dst_cid, src_port, dst_port, kind: STREAM, ..packet })
    }
}
