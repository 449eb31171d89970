//! The register behind the Generic Event Device (ACPI 6.5, 5.6.9): the causes of events that the guest does not know of
//! yet. One interrupt stands for all of them; the method that the guest runs then, `_EVT`, reads the register and
//! notifies the devices concerned. [`GenericEventDevice`](crate::GenericEventDevice) describes both to the guest.
//!
//! It is a port and not memory, as the power registers beside it are: the guest needs no mapping to reach it, and the
//! hypervisor no instruction decoding.

/// The register's I/O port, 8 bits wide.
pub const EVENT_REGISTER_PORT: u64 = 0x604;

/// Why there is an event. The values are the register's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EventCause {
    /// The power button was pressed.
    PowerButton = 1 << 0,
}

/// The register's state: the pending causes. One that comes again before the guest has read it counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventRegister {
    pending: u8,
}

impl EventRegister {
    /// The register after reset.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `cause` pending. The interrupt must be raised after this, each time: a guest that was not listening has
    /// lost the edges before, and the next one tells it of everything.
    pub fn raise(&mut self, cause: EventCause) {
        self.pending |= cause as u8;
    }

    /// The guest reads the register, which clears it.
    pub fn read(&mut self) -> u8 {
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_is_pending_until_it_is_read() {
        let mut register = EventRegister::new();
        assert_eq!(register.read(), 0);
        register.raise(EventCause::PowerButton);
        assert_eq!(register.read(), 1);
        assert_eq!(register.read(), 0);
    }

    #[test]
    fn cause_that_comes_again_before_it_is_read_counts_once() {
        let mut register = EventRegister::new();
        register.raise(EventCause::PowerButton);
        register.raise(EventCause::PowerButton);
        assert_eq!((register.read(), register.read()), (1, 0));
    }
}
