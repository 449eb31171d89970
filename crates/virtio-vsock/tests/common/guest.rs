//! The guest's side: raw packets, and sockets with credit on top of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kindling_virtio_device::test_utils::{Buffer, MockDriver};

use super::packet::{Packet, RCV, SEND, op};

/// A stream socket of the guest.
#[derive(Debug, Default)]
pub struct Socket {
    pub open: bool,
    /// The device has reset it, or the guest has.
    pub reset: bool,
    /// What the host has shut down.
    pub shutdown: u32,
    /// What was received, in order.
    pub received: Vec<u8>,
    /// What has still to be sent, when credit allows it.
    pub unsent: VecDeque<u8>,
    /// Whether the program takes what is received.
    pub stalled: bool,
    /// `CREDIT_UPDATE`s of the device.
    pub credit_updates: usize,
    /// `CREDIT_REQUEST`s of the device.
    pub credit_requests: usize,
    /// Bytes that it says it can buffer.
    pub buf_alloc: u32,
    sent: u32,
    taken: u32,
    told: u32,
    host_buf_alloc: u32,
    host_fwd_cnt: u32,
}

impl Socket {
    /// Bytes that the device can take.
    pub fn credit(&self) -> u32 {
        self.host_buf_alloc.checked_sub(self.sent.wrapping_sub(self.host_fwd_cnt)).unwrap()
    }

    /// Bytes that were sent.
    pub fn sent(&self) -> u32 {
        self.sent
    }
}

/// The guest.
pub struct Guest {
    pub driver: MockDriver,
    /// Sockets by host port and guest port.
    pub sockets: BTreeMap<(u32, u32), Socket>,
    /// All packets that were received.
    pub log: Vec<Packet>,
    /// Whether it gives the device buffers.
    pub receives: bool,
    /// Number and size of the buffers that it gives.
    pub buffers: (usize, u32),
    /// What sockets say they can buffer.
    pub buf_alloc: u32,
    /// Most bytes of payload in a packet.
    pub max_payload: usize,
    /// How packets are cut into descriptors: the sizes of the first ones.
    pub cut: Vec<usize>,
    listening: BTreeSet<u32>,
    outbox: VecDeque<Vec<u8>>,
}

impl Guest {
    pub fn new(driver: MockDriver) -> Self {
        Self {
            driver,
            sockets: BTreeMap::new(),
            log: Vec::new(),
            receives: true,
            buffers: (64, 4096),
            buf_alloc: 256 << 10,
            max_payload: 64 << 10,
            cut: vec![44],
            listening: BTreeSet::new(),
            outbox: VecDeque::new(),
        }
    }

    /// Accepts connections to `port`.
    pub fn listen(&mut self, port: u32) {
        self.listening.insert(port);
    }

    pub fn socket(&mut self, host_port: u32, guest_port: u32) -> &mut Socket {
        self.sockets.get_mut(&(host_port, guest_port)).expect("a socket")
    }

    /// Asks for a connection to the host's `host_port`.
    pub fn connect(&mut self, host_port: u32, guest_port: u32) {
        let socket = Socket { buf_alloc: self.buf_alloc, ..Socket::default() };
        self.sockets.insert((host_port, guest_port), socket);
        self.post(op::REQUEST, host_port, guest_port, 0, &[]);
    }

    /// Sends bytes as credit allows.
    pub fn write(&mut self, host_port: u32, guest_port: u32, bytes: &[u8]) {
        self.socket(host_port, guest_port).unsent.extend(bytes);
        self.pump((host_port, guest_port));
    }

    /// Shuts directions of a socket down.
    pub fn shut_down(&mut self, host_port: u32, guest_port: u32, flags: u32) {
        assert!(self.socket(host_port, guest_port).unsent.is_empty(), "all was sent");
        self.post(op::SHUTDOWN, host_port, guest_port, flags, &[]);
    }

    /// A stalled socket takes what it has, and goes on taking.
    pub fn resume(&mut self, host_port: u32, guest_port: u32) {
        self.socket(host_port, guest_port).stalled = false;
        self.take((host_port, guest_port));
    }

    /// Queues a packet of a socket.
    pub fn post(&mut self, op: u16, host_port: u32, guest_port: u32, flags: u32, payload: &[u8]) {
        let mut packet = Packet::new(op, host_port, guest_port, payload);
        packet.flags = flags;
        packet.buf_alloc = self.buf_alloc;
        if let Some(socket) = self.sockets.get_mut(&(host_port, guest_port)) {
            packet.buf_alloc = socket.buf_alloc;
            packet.fwd_cnt = socket.taken;
            socket.told = socket.taken;
        }
        self.send(&packet);
    }

    /// Queues any packet.
    pub fn send(&mut self, packet: &Packet) {
        self.send_bytes(packet.to_bytes());
    }

    /// Queues any bytes.
    pub fn send_bytes(&mut self, bytes: Vec<u8>) {
        self.outbox.push_back(bytes);
    }

    /// Handles what the device sent, gives it buffers, and sends what is queued. Returns whether anything happened.
    pub fn poll(&mut self) -> bool {
        let mut busy = false;
        while let Some(used) = self.driver.queues[0].take_used() {
            busy = true;
            if used.written == 0 {
                continue;
            }
            let packet = Packet::from_bytes(&used.data[..used.written as usize]);
            self.log.push(packet.clone());
            self.handle(&packet);
        }
        // All at once, and only when all are used: the mock driver then starts over with its memory.
        if self.receives && self.driver.queues[0].outstanding() == 0 {
            busy = true;
            for _ in 0..self.buffers.0 {
                self.driver.queues[0].add(&[Buffer::Writable(self.buffers.1)]);
            }
        }
        busy | self.transmit()
    }

    /// Sends what is queued, without looking at what was received.
    pub fn transmit(&mut self) -> bool {
        let queue = &mut self.driver.queues[1];
        let mut busy = false;
        while queue.take_used().is_some() {
            busy = true;
        }
        if queue.outstanding() > 0 || self.outbox.is_empty() {
            return busy;
        }
        for _ in 0..64 {
            let Some(bytes) = self.outbox.pop_front() else { break };
            let mut rest = &bytes[..];
            let mut buffers = Vec::new();
            for len in &self.cut {
                let (now, later) = rest.split_at((*len).min(rest.len()));
                buffers.push(Buffer::Readable(now));
                rest = later;
            }
            if !rest.is_empty() {
                buffers.push(Buffer::Readable(rest));
            }
            let head = queue.prepare(&buffers, false);
            queue.offer(head);
        }
        queue.kick();
        true
    }

    /// Packets of the log that bear these ports.
    pub fn packets(&self, host_port: u32, guest_port: u32) -> Vec<&Packet> {
        let ours = |packet: &&Packet| (packet.src_port, packet.dst_port) == (host_port, guest_port);
        self.log.iter().filter(ours).collect()
    }

    /// The operations of those.
    pub fn ops(&self, host_port: u32, guest_port: u32) -> Vec<u16> {
        self.packets(host_port, guest_port).iter().map(|packet| packet.op).collect()
    }

    fn handle(&mut self, packet: &Packet) {
        let ports = (packet.src_port, packet.dst_port);
        if packet.op == op::REQUEST {
            assert!(!self.sockets.contains_key(&ports), "host ports are not used twice");
            if !self.listening.contains(&ports.1) {
                return self.post(op::RST, ports.0, ports.1, 0, &[]);
            }
            let socket = Socket { open: true, buf_alloc: self.buf_alloc, ..Socket::default() };
            self.sockets.insert(ports, socket);
            self.post(op::RESPONSE, ports.0, ports.1, 0, &[]);
        }
        let Some(socket) = self.sockets.get_mut(&ports) else { return };
        if packet.op != op::RST {
            (socket.host_buf_alloc, socket.host_fwd_cnt) = (packet.buf_alloc, packet.fwd_cnt);
        }
        match packet.op {
            op::RESPONSE => socket.open = true,
            op::RST => (socket.reset, socket.open) = (true, false),
            op::SHUTDOWN => {
                socket.shutdown |= packet.flags;
                if socket.shutdown == RCV | SEND {
                    (socket.reset, socket.open) = (true, false);
                    self.post(op::RST, ports.0, ports.1, 0, &[]);
                }
            }
            op::RW => {
                assert!(socket.shutdown & SEND == 0, "nothing is sent after the end");
                socket.received.extend(&packet.payload);
                let waiting = (socket.received.len() as u32).wrapping_sub(socket.taken);
                assert!(waiting <= socket.buf_alloc, "credit is kept");
                self.take(ports);
            }
            op::CREDIT_REQUEST => {
                socket.credit_requests += 1;
                self.post(op::CREDIT_UPDATE, ports.0, ports.1, 0, &[]);
            }
            op::CREDIT_UPDATE => socket.credit_updates += 1,
            _ => (),
        }
        self.pump(ports);
    }

    /// The program takes what was received, and the device hears of it now and then.
    fn take(&mut self, (host_port, guest_port): (u32, u32)) {
        let socket = self.socket(host_port, guest_port);
        if socket.stalled {
            return;
        }
        socket.taken = socket.received.len() as u32;
        if socket.taken.wrapping_sub(socket.told) >= socket.buf_alloc / 2 {
            self.post(op::CREDIT_UPDATE, host_port, guest_port, 0, &[]);
        }
    }

    /// Sends as much as credit allows.
    fn pump(&mut self, (host_port, guest_port): (u32, u32)) {
        loop {
            let max_payload = self.max_payload;
            let socket = self.socket(host_port, guest_port);
            if !socket.open || socket.unsent.is_empty() || socket.credit() == 0 {
                return;
            }
            let len = socket.unsent.len().min(socket.credit() as usize).min(max_payload);
            let payload: Vec<u8> = socket.unsent.drain(..len).collect();
            socket.sent = socket.sent.wrapping_add(len as u32);
            self.post(op::RW, host_port, guest_port, 0, &payload);
        }
    }
}
