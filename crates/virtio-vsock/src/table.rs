//! All connections of a device: by token, by ports, and in the order in which they may send to the guest.

use std::collections::{HashMap, VecDeque};

use crate::connection::Connection;
use crate::host::Handshake;

/// The first host port that is given to a connection that a host program asks for.
const FIRST_PORT: u32 = 1 << 30;
/// The last: the one behind it stands for any port.
const LAST_PORT: u32 = u32::MAX - 1;

/// What a slot holds.
pub enum Entry {
    Handshake(Handshake),
    Connection(Connection),
}

/// A place for an entry.
struct Slot {
    /// Rises each time that an entry leaves, so that an event for it does not reach its successor. Never 0.
    generation: u16,
    /// Whether it is in `Table::ready`.
    ready: bool,
    /// Whether it is in `Table::touched`.
    touched: bool,
    entry: Option<Entry>,
}

/// A bounded table of entries.
///
/// Its lists hold every slot at most once, and keep it when the entry leaves: so they are bounded too, whatever the
/// guest does.
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Most slots.
    limit: u16,
    /// The connections that the guest knows, by host port and guest port.
    by_ports: HashMap<(u32, u32), u16>,
    /// Slots that may have output for the guest.
    ready: VecDeque<u16>,
    /// Slots of which something changed since they were last looked at.
    touched: Vec<u16>,
    next_port: u32,
}

impl Table {
    /// An empty table for at most `limit` entries.
    pub fn new(limit: u16) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            limit,
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            touched: Vec::new(),
            next_port: FIRST_PORT,
        }
    }

    /// Whether there is no room for another entry.
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= usize::from(self.limit)
    }

    /// Puts an entry in, unless the table is full.
    pub fn insert(&mut self, entry: Entry) -> Option<u16> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            // Below the limit.
            let index = self.slots.len() as u16;
            self.slots.push(Slot { generation: 1, ready: false, touched: false, entry: None });
            index
        });
        if let Entry::Connection(connection) = &entry {
            self.by_ports.insert((connection.host_port, connection.guest_port), index);
        }
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            slot.entry = Some(entry);
        }
        Some(index)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, index: u16) -> Option<Entry> {
        self.forget_ports(index);
        let slot = self.slots.get_mut(usize::from(index))?;
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        self.free.push(index);
        Some(entry)
    }

    /// Has packets that bear the connection's ports not find it any more.
    pub fn forget_ports(&mut self, index: u16) {
        if let Some(connection) = self.connection(index) {
            let ports = (connection.host_port, connection.guest_port);
            // They may be another's by now.
            if self.by_ports.get(&ports) == Some(&index) {
                self.by_ports.remove(&ports);
            }
        }
    }

    /// The token of the entry at `index`: at least 2^16.
    pub fn token(&self, index: u16) -> u32 {
        let generation = self.slots.get(usize::from(index)).map_or(0, |slot| slot.generation);
        u32::from(generation) << 16 | u32::from(index)
    }

    /// The index of the entry that had this token, if it is still there.
    pub fn find_token(&self, token: u32) -> Option<u16> {
        let index = token as u16;
        (self.token(index) == token && self.slots.get(usize::from(index))?.entry.is_some()).then_some(index)
    }

    /// The connection between these ports.
    pub fn find_ports(&self, host_port: u32, guest_port: u32) -> Option<u16> {
        self.by_ports.get(&(host_port, guest_port)).copied()
    }

    /// The entry at `index`.
    pub fn entry(&mut self, index: u16) -> Option<&mut Entry> {
        self.slots.get_mut(usize::from(index))?.entry.as_mut()
    }

    /// The connection at `index`, if one is there.
    pub fn connection(&mut self, index: u16) -> Option<&mut Connection> {
        match self.entry(index)? {
            Entry::Connection(connection) => Some(connection),
            Entry::Handshake(_) => None,
        }
    }

    /// All indices that have or had an entry.
    pub fn indices(&self) -> std::ops::Range<u16> {
        // At most the limit.
        0..self.slots.len() as u16
    }

    /// A host port for a new connection to `guest_port`: one that none has had for long, and none has now.
    pub fn new_port(&mut self, guest_port: u32) -> u32 {
        // There are many more ports than connections.
        loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port.wrapping_add(1) };
            if !self.by_ports.contains_key(&(port, guest_port)) {
                return port;
            }
        }
    }

    /// Remembers that something about the connection at `index` has changed, and that it wants to send if it does.
    pub fn touch(&mut self, index: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        if !slot.touched {
            slot.touched = true;
            self.touched.push(index);
        }
        let Some(Entry::Connection(connection)) = &slot.entry else { return };
        if !slot.ready && connection.has_output() {
            slot.ready = true;
            self.ready.push_back(index);
        }
    }

    /// Takes one of the slots that were touched.
    pub fn next_touched(&mut self) -> Option<u16> {
        let index = self.touched.pop()?;
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            slot.touched = false;
        }
        Some(index)
    }

    /// Takes the slot whose turn it is to send.
    pub fn next_ready(&mut self) -> Option<u16> {
        let index = self.ready.pop_front()?;
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            slot.ready = false;
        }
        Some(index)
    }

    /// Whether a slot may have something to send.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    fn connection(host_port: u32, guest_port: u32) -> Entry {
        let (stream, _) = UnixStream::pair().unwrap();
        Entry::Connection(Connection::requested(stream, host_port, guest_port, Instant::now()))
    }

    #[test]
    fn a_token_does_not_find_the_successor_of_its_entry() {
        let mut table = Table::new(1);
        let first = table.insert(connection(1, 2)).unwrap();
        let token = table.token(first);
        assert_eq!(table.find_token(token), Some(first));
        table.remove(first).unwrap();
        assert_eq!(table.find_token(token), None);
        // There are 65,535 generations, and then the first comes again.
        for _ in 0..70_000 {
            let index = table.insert(connection(1, 2)).unwrap();
            assert!(table.token(index) >= 1 << 16);
            table.remove(index).unwrap();
        }
        let second = table.insert(connection(1, 2)).unwrap();
        assert_ne!(table.token(second), token);
    }

    #[test]
    fn a_full_table_takes_nothing() {
        let mut table = Table::new(2);
        assert!(table.insert(connection(1, 1)).is_some());
        let second = table.insert(connection(1, 2)).unwrap();
        assert!(table.is_full());
        assert!(table.insert(connection(1, 3)).is_none());
        assert_eq!(table.find_ports(1, 3), None);
        table.remove(second);
        assert!(table.insert(connection(1, 3)).is_some());
    }

    #[test]
    fn ports_are_given_again_only_when_none_is_left_and_never_while_in_use() {
        let mut table = Table::new(8);
        assert_eq!(table.new_port(5), 1 << 30);
        table.insert(connection((1 << 30) + 1, 5));
        table.insert(connection((1 << 30) + 2, 5));
        assert_eq!(table.new_port(5), (1 << 30) + 3);
        table.next_port = LAST_PORT;
        assert_eq!(table.new_port(5), LAST_PORT);
        assert_eq!(table.new_port(5), 1 << 30);
        assert_eq!(table.new_port(5), (1 << 30) + 3);
        // With another guest port they are other connections.
        table.next_port = FIRST_PORT + 1;
        assert_eq!(table.new_port(6), (1 << 30) + 1);
    }

    #[test]
    fn one_that_leaves_does_not_take_the_ports_of_its_successor_along() {
        let mut table = Table::new(2);
        let old = table.insert(connection(1, 2)).unwrap();
        table.forget_ports(old);
        let new = table.insert(connection(1, 2)).unwrap();
        table.remove(old);
        assert_eq!(table.find_ports(1, 2), Some(new));
    }

    #[test]
    fn lists_do_not_grow_when_entries_come_and_go() {
        let mut table = Table::new(1);
        for _ in 0..100 {
            let index = table.insert(connection(1, 2)).unwrap();
            table.touch(index);
            table.touch(index);
            table.remove(index);
        }
        assert_eq!((table.ready.len(), table.touched.len()), (1, 1));
    }
}
