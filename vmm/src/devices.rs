//! The devices that every machine has, on the port bus: serial port, keyboard controller, ACPI power registers and event
//! device.
//!
//! The component crates model registers and know no bus, no eventfd and no lock; the adapters here give them all three.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use kindling_acpi::{
    EVENT_REGISTER_PORT, EventCause, EventRegister, POWER_REGISTERS_BASE, POWER_REGISTERS_SIZE, PowerEvent,
    PowerRegisters,
};
use kindling_device_bus::{Bus, BusDevice};
use kindling_i8042::I8042;
use kindling_serial::{Backend, Console, SerialPort};
use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, one_line};
use crate::outcome::{Outcome, OutcomeSlot};

/// First port of the 16550A that Linux calls ttyS0.
pub const SERIAL_BASE: u64 = 0x3f8;
/// Its ports.
const SERIAL_SIZE: u64 = 8;
/// Its interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// First port of the keyboard controller: data at offset 0, command and status at offset 4.
pub const I8042_BASE: u64 = 0x60;
/// Its ports.
const I8042_SIZE: u64 = 5;
/// Its interrupt line.
pub const I8042_GSI: u32 = 1;
/// The interrupt line of ACPI events: that of a PC's second serial port, which is not here.
pub const EVENT_GSI: u32 = 3;

/// An interrupt line that KVM raises when the eventfd is written.
#[derive(Debug)]
pub struct IrqTrigger(EventFd);

impl IrqTrigger {
    /// A trigger of its own eventfd, still to be connected to a line.
    pub fn new() -> io::Result<Self> {
        EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(IrqTrigger)
    }

    /// The eventfd to register with KVM.
    pub fn event(&self) -> &EventFd {
        &self.0
    }
}

impl Trigger for IrqTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A lock that outlives a panic: nothing here leaves the state behind it half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The serial port as the bus sees it.
struct SerialDevice {
    port: Arc<Mutex<SerialPort<IrqTrigger>>>,
    /// Wakes the event loop when the port has something for it.
    kick: EventFd,
}

/// The keyboard controller as the bus sees it.
pub struct KeyboardDevice {
    controller: Mutex<I8042<IrqTrigger>>,
    outcome: Arc<OutcomeSlot>,
}

/// The ACPI power registers as the bus sees them.
struct PowerDevice {
    registers: Mutex<PowerRegisters>,
    outcome: Arc<OutcomeSlot>,
}

/// The ACPI event device as the bus sees it.
pub struct EventDevice {
    register: Mutex<EventRegister>,
    interrupt: IrqTrigger,
}

/// Makes the serial port, connects it to its console, and puts it on the port bus.
pub fn add_serial(
    ports: &Bus,
    interrupt: IrqTrigger,
    backend: Backend,
) -> Result<Console<IrqTrigger>, Error> {
    let port = Arc::new(Mutex::new(SerialPort::new(interrupt)));
    let connect = Error::host("connect the serial port to its console");
    let console = Console::new(Arc::clone(&port), backend).map_err(connect)?;
    let kick = console.kick().map_err(Error::host("duplicate an eventfd"))?;
    insert(ports, SERIAL_BASE, SERIAL_SIZE, SerialDevice { port, kick })?;
    Ok(console)
}

/// Makes the keyboard controller and puts it on the port bus.
pub fn add_keyboard(
    ports: &Bus,
    interrupt: IrqTrigger,
    outcome: &Arc<OutcomeSlot>,
) -> Result<Arc<KeyboardDevice>, Error> {
    let controller = Mutex::new(I8042::new(interrupt));
    let keyboard = Arc::new(KeyboardDevice { controller, outcome: Arc::clone(outcome) });
    insert(ports, I8042_BASE, I8042_SIZE, Arc::clone(&keyboard))?;
    Ok(keyboard)
}

/// Makes the ACPI power registers and puts them on the port bus.
pub fn add_power_registers(ports: &Bus, outcome: &Arc<OutcomeSlot>) -> Result<(), Error> {
    let registers = Mutex::new(PowerRegisters::new());
    let device = PowerDevice { registers, outcome: Arc::clone(outcome) };
    insert(ports, POWER_REGISTERS_BASE, POWER_REGISTERS_SIZE, device)
}

/// Makes the ACPI event device and puts it on the port bus.
pub fn add_event_device(ports: &Bus, interrupt: IrqTrigger) -> Result<Arc<EventDevice>, Error> {
    let device = Arc::new(EventDevice { register: Mutex::new(EventRegister::new()), interrupt });
    insert(ports, EVENT_REGISTER_PORT, 1, Arc::clone(&device))?;
    Ok(device)
}

fn insert(ports: &Bus, base: u64, size: u64, device: impl ByteRegisters + 'static) -> Result<(), Error> {
    ports.insert(base, size, Arc::new(Ports(device))).map_err(Error::host("put a device on the port bus"))
}

/// A device of 8-bit registers. A wider access to it is one access to each register that it covers, in their order, as
/// an 8-bit card on a wider bus sees it.
trait ByteRegisters: Send + Sync {
    fn read(&self, offset: u8) -> u8;
    fn write(&self, offset: u8, value: u8);
}

struct Ports<T>(T);

impl<T: ByteRegisters> BusDevice for Ports<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = u8::try_from(offset).map_or(0xff, |offset| self.0.read(offset));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (offset, byte) in (offset..).zip(data) {
            if let Ok(offset) = u8::try_from(offset) {
                self.0.write(offset, *byte);
            }
        }
    }
}

impl ByteRegisters for SerialDevice {
    fn read(&self, offset: u8) -> u8 {
        let read = lock(&self.port).read(offset);
        if read.wake {
            self.wake();
        }
        read.value
    }

    fn write(&self, offset: u8, value: u8) {
        let wake = lock(&self.port).write(offset, value);
        if wake {
            self.wake();
        }
    }
}

impl SerialDevice {
    fn wake(&self) {
        // Fails only when the counter is full, and then the loop is about to wake anyway.
        let _ = self.kick.write(1);
    }
}

impl ByteRegisters for Arc<KeyboardDevice> {
    fn read(&self, offset: u8) -> u8 {
        lock(&self.controller).read(offset)
    }

    fn write(&self, offset: u8, value: u8) {
        let event = lock(&self.controller).write(offset, value);
        match event {
            Ok(None) => {}
            Ok(Some(kindling_i8042::Event::Reset)) => {
                log::debug!("reset through the keyboard controller");
                self.outcome.report(Outcome::Reset);
            }
            Err(error) => log::warn!("keyboard controller: {}", one_line(&error)),
        }
    }
}

impl KeyboardDevice {
    /// Presses and releases Ctrl+Alt+Del on the guest's keyboard.
    pub fn press_ctrl_alt_del(&self) -> Result<(), kindling_i8042::Error> {
        lock(&self.controller).press_ctrl_alt_del()
    }
}

impl ByteRegisters for PowerDevice {
    fn read(&self, offset: u8) -> u8 {
        lock(&self.registers).read(offset)
    }

    fn write(&self, offset: u8, value: u8) {
        let event = lock(&self.registers).write(offset, value);
        match event {
            None => {}
            Some(PowerEvent::PowerOff) => self.outcome.report(Outcome::PowerOff),
            Some(PowerEvent::Reset) => {
                log::debug!("reset through the ACPI reset register");
                self.outcome.report(Outcome::Reset);
            }
        }
    }
}

impl ByteRegisters for Arc<EventDevice> {
    fn read(&self, _: u8) -> u8 {
        lock(&self.register).read()
    }

    fn write(&self, _: u8, _: u8) {}
}

impl EventDevice {
    /// Presses the guest's power button. Whether the guest does anything about it is its own affair.
    pub fn press_power_button(&self) -> io::Result<()> {
        lock(&self.register).raise(EventCause::PowerButton);
        self.interrupt.trigger()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers that remember their accesses and read as their offset.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u8, u8)>>);

    impl ByteRegisters for Arc<Recorder> {
        fn read(&self, offset: u8) -> u8 {
            offset
        }

        fn write(&self, offset: u8, value: u8) {
            lock(&self.0).push((offset, value));
        }
    }

    #[test]
    fn wide_access_is_one_access_to_each_register() {
        let (bus, recorder) = (Bus::new(), Arc::new(Recorder::default()));
        insert(&bus, 0x10, 8, Arc::clone(&recorder)).unwrap();
        assert!(bus.write(0x12, &[7, 8]));
        assert_eq!(*lock(&recorder.0), [(2, 7), (3, 8)]);
        let mut data = [0; 4];
        assert!(bus.read(0x14, &mut data));
        assert_eq!(data, [4, 5, 6, 7]);
    }

    #[test]
    fn reset_and_power_off_are_reported_as_such() {
        let (bus, outcome) = (Bus::new(), Arc::new(OutcomeSlot::new().unwrap()));
        add_power_registers(&bus, &outcome).unwrap();
        // SLP_EN and the sleep type of S5.
        assert!(bus.write(POWER_REGISTERS_BASE, &[1 << 5 | 5 << 2]));
        assert_eq!(outcome.get(), Some(&Outcome::PowerOff));

        let outcome = Arc::new(OutcomeSlot::new().unwrap());
        add_keyboard(&bus, IrqTrigger::new().unwrap(), &outcome).unwrap();
        assert!(bus.write(I8042_BASE + 4, &[0xfe]));
        assert_eq!(outcome.get(), Some(&Outcome::Reset));
    }

    #[test]
    fn pressed_power_button_interrupts_the_guest_which_finds_it_once() {
        let bus = Bus::new();
        let interrupt = IrqTrigger::new().unwrap();
        let edges = interrupt.event().try_clone().unwrap();
        let device = add_event_device(&bus, interrupt).unwrap();
        let read = || {
            let mut data = [0xff];
            assert!(bus.read(EVENT_REGISTER_PORT, &mut data));
            data
        };
        assert_eq!(read(), [0]);
        device.press_power_button().unwrap();
        assert_eq!(edges.read().unwrap(), 1);
        assert!(bus.write(EVENT_REGISTER_PORT, &[0]), "which changes nothing");
        assert_eq!((read(), read()), ([1], [0]));
        // Not taken by the guest: each press is an edge of its own all the same.
        device.press_power_button().unwrap();
        device.press_power_button().unwrap();
        assert_eq!(edges.read().unwrap(), 2);
    }

    #[test]
    fn output_wakes_the_console_and_an_interrupt_reaches_its_eventfd() {
        let bus = Bus::new();
        let interrupt = IrqTrigger::new().unwrap();
        let event = interrupt.event().try_clone().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut console = add_serial(&bus, interrupt, Backend::file(&path).unwrap()).unwrap();
        // Enable the interrupt for an empty transmitter: it is.
        assert!(bus.write(SERIAL_BASE + 1, &[2]));
        assert_eq!(event.read().unwrap(), 1);
        assert!(bus.write(SERIAL_BASE, b"x"));
        console.service().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
