//! The one list of the machine's virtio devices: where each is in the guest's address space, and on which threads its
//! workers run.
//!
//! Whatever is done with devices is written here once, over the traits of the virtio crates. No device kind has a name
//! here; `backends` gives them theirs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kindling_acpi::VirtioMmio;
use kindling_device_bus::{Bus, BusDevice};
use kindling_irq_allocator::{IrqAllocator, IrqLine};
use kindling_memory_layout::x86_64::VIRTIO_MMIO;
use kindling_metrics::Group;
use kindling_seccomp_profiles::Thread;
use kindling_virtio_device::{Device, GuestMemory, SetUp, WorkerSlot, WorkerThread, Workers};
use kindling_virtio_transport::mmio::{QUEUE_NOTIFY, WINDOW_SIZE};
use kindling_virtio_transport::{MmioTransport, Transport};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::confinement::Confinement;
use crate::error::{Error, one_line};

/// How long the end of a guest waits for requests in flight.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// How long each device has at least to come to rest, whatever those before it have taken.
const LEAST: Duration = Duration::from_millis(20);

/// What a device is attached to.
pub struct Machine<'a> {
    /// The virtual machine.
    pub vm: &'a VmFd,
    /// The MMIO address space.
    pub mmio: &'a Bus,
    /// Its interrupt lines.
    pub lines: &'a IrqAllocator,
    /// Its memory.
    pub memory: &'a Arc<GuestMemory>,
}

/// The virtio devices of one machine.
pub struct Registry {
    /// What the threads of devices may do.
    confinement: Confinement,
    devices: Vec<Attached>,
    /// The thread of all devices that do little.
    quiet: Option<WorkerThread>,
    /// Written when a device can go on that did not sleep in time.
    late: Arc<EventFd>,
    /// What raises each interrupt line, by GSI. Devices that share a line share it too: of two irqfds of one line, KVM
    /// may take the edge of the second for that of the first, which the guest has seen to already.
    lines: BTreeMap<u32, EventFd>,
}

struct Attached {
    /// What kind of device it is to a reader of metrics.
    kind: &'static str,
    id: String,
    transport: Arc<MmioTransport>,
    base: u64,
    line: IrqLine,
}

impl Registry {
    /// No devices. The threads of those that come are confined so.
    pub fn new(confinement: Confinement) -> Result<Self, Error> {
        let late = Arc::new(eventfd()?);
        Ok(Registry { confinement, devices: Vec::new(), quiet: None, late, lines: BTreeMap::new() })
    }

    /// Shows `device` to the guest from now on. Its own threads, if it has any, are of the kind `thread`.
    pub fn attach(
        &mut self,
        machine: &Machine<'_>,
        (kind, id): (&'static str, &str),
        thread: Thread,
        device: Box<dyn Device>,
    ) -> Result<(), Error> {
        let base = (self.devices.len() as u64)
            .checked_mul(WINDOW_SIZE)
            .filter(|offset| *offset < VIRTIO_MMIO.size)
            .map(|offset| VIRTIO_MMIO.start + offset)
            .ok_or_else(|| Error::host("place a virtio device")("the window for their registers is full"))?;
        let line = machine.lines.allocate().map_err(Error::host("give a virtio device an interrupt line"))?;
        let interrupt = self.interrupt(machine.vm, line.gsi())?;
        let slots = self.slots(id, thread, device.as_ref())?;
        let (memory, late) = (Arc::clone(machine.memory), Arc::clone(&self.late));
        let transport = MmioTransport::new(device, memory, slots, interrupt, late)
            .map_err(Error::host("set up a virtio device"))?;
        for (queue, kick) in (0_u32..).zip(transport.kicks()) {
            let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
            let connected = machine.vm.register_ioevent(kick, &address, queue);
            connected.map_err(Error::host("connect a virtio device's notifications"))?;
        }
        let transport = Arc::new(transport);
        let window = Arc::new(Window(Arc::clone(&transport)));
        machine.mmio.insert(base, WINDOW_SIZE, window).map_err(Error::host("place a virtio device"))?;
        self.devices.push(Attached { kind, id: id.to_owned(), transport, base, line });
        Ok(())
    }

    /// What raises the interrupt line `gsi`.
    fn interrupt(&mut self, vm: &VmFd, gsi: u32) -> Result<EventFd, Error> {
        let copy = |event: &EventFd| event.try_clone().map_err(Error::host("copy an eventfd"));
        if let Some(event) = self.lines.get(&gsi) {
            return copy(event);
        }
        let event = eventfd()?;
        vm.register_irqfd(&event, gsi).map_err(Error::host("connect a virtio device's interrupt line"))?;
        let copy = copy(&event)?;
        self.lines.insert(gsi, event);
        Ok(copy)
    }

    /// Places for a device's workers, on threads of their own or on the shared one.
    fn slots(&mut self, id: &str, thread: Thread, device: &dyn Device) -> Result<Vec<WorkerSlot>, Error> {
        let spawn = |name: &str, thread: Thread, set_up: Option<SetUp>| {
            let confinement = self.confinement.clone();
            let set_up = move || {
                set_up.map_or(Ok(()), |set_up| set_up())?;
                confinement.apply(thread)
            };
            WorkerThread::spawn(name, set_up).map_err(Error::host("start a virtio device's thread"))
        };
        match device.workers() {
            Workers::Own(count) => {
                let name = |queue| if count == 1 { format!("io {id}") } else { format!("io {id}.{queue}") };
                let spawn = |queue| spawn(&name(queue), thread, device.set_up_thread(queue));
                (0..count).map(|queue| Ok(spawn(queue)?.slot())).collect()
            }
            Workers::Shared => {
                let thread = match &self.quiet {
                    Some(thread) => thread,
                    // Such devices have nothing to set up: the thread may be there before they are.
                    None => self.quiet.insert(spawn("io quiet", Thread::Io, None)?),
                };
                Ok(vec![thread.slot()])
            }
        }
    }

    /// What the guest has to be told to find the devices.
    pub fn acpi(&self) -> Vec<VirtioMmio> {
        let describe = |(index, device): (u16, &Attached)| VirtioMmio {
            index,
            // In the gap below 4 GiB, as is the whole window.
            base: device.base as u32,
            size: WINDOW_SIZE as u32,
            gsi: device.line.gsi(),
        };
        (0..).zip(&self.devices).map(describe).collect()
    }

    /// Has all devices finish what they have begun and rest, until `deadline`, or a moment later each.
    ///
    /// # Errors
    ///
    /// The first device that does not, by its id. The others are awake again then, and [`Registry::go_on`] will have that one
    /// go on.
    pub fn sleep(&self, deadline: Instant) -> Result<(), (String, kindling_virtio_transport::Error)> {
        for device in &self.devices {
            let deadline = deadline.max(Instant::now() + LEAST);
            if let Err(error) = device.transport.sleep(deadline) {
                self.wake();
                return Err((device.id.clone(), error));
            }
        }
        Ok(())
    }

    /// Has all devices go on.
    pub fn wake(&self) {
        for device in &self.devices {
            if let Err(error) = device.transport.wake() {
                log::warn!("{}: does not go on yet: {}", device.id, one_line(&error));
            }
        }
    }

    /// What is written when it is time to [`Registry::go_on`].
    pub fn late(&self) -> &EventFd {
        &self.late
    }

    /// Has the devices go on that did not sleep in time, and have finished since.
    pub fn go_on(&self) {
        // Before the look, so that what comes after it is seen then. Fails when it was not written.
        let _ = self.late.read();
        for device in &self.devices {
            device.transport.go_on();
        }
    }

    /// Has all devices finish what they have begun, when the guest has ended. One that hangs is left to the end of the
    /// process.
    pub fn drain(&self) {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        for device in &self.devices {
            let deadline = deadline.max(Instant::now() + LEAST);
            if let Err(error) = device.transport.sleep(deadline) {
                log::warn!("{}: requests are lost: {}", device.id, one_line(&error));
            }
        }
    }

    /// What the devices and their transports count.
    pub fn metrics(&self) -> Vec<Group> {
        let groups = self.devices.iter().flat_map(|device| {
            [device.transport.device_metrics(), device.transport.metrics()].map(|metrics| Group {
                subsystem: device.kind,
                // Of these kinds there is one, which is called by its kind.
                id: (device.id != device.kind).then(|| device.id.clone()),
                metrics,
            })
        });
        groups.collect()
    }
}

fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(Error::host("create an eventfd"))
}

/// A device's registers as the bus sees them.
struct Window(Arc<MmioTransport>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

#[cfg(test)]
mod tests;
