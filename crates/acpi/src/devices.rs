//! The DSDT's entries for devices that no bus enumerates: those that every machine has at their customary ports, the
//! event device, and those with virtio-mmio registers.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate,
    Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use crate::event::{EVENT_REGISTER_PORT, EventCause};

/// The first serial port: ports 0x3F8 to 0x3FF, interrupt 4.
#[derive(Debug, Clone, Copy)]
pub struct Com1;

impl Aml for Com1 {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &1_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&IO::new(0x3f8, 0x3f8, 1, 8), &isa_interrupt(4)]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The keyboard controller: ports 0x60 and 0x64, interrupt 1.
#[derive(Debug, Clone, Copy)]
pub struct Keyboard;

impl Aml for Keyboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "KBD_".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0303")),
                &Name::new(
                    "_CRS".into(),
                    // Linux takes the first for the data port and the second for the command port.
                    &ResourceTemplate::new(vec![
                        &IO::new(0x60, 0x60, 1, 1),
                        &IO::new(0x64, 0x64, 1, 1),
                        &isa_interrupt(1),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The Generic Event Device (ACPI 6.5, 5.6.9), and the device that it alone speaks for: the power button, a
/// control-method one (4.8.2.2.1.2).
#[derive(Debug, Clone, Copy)]
pub struct GenericEventDevice {
    /// The interrupt line, which no other device may share. Edge-triggered, active high.
    pub gsi: u32,
}

impl Aml for GenericEventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        /// Notification of a button: it was pressed (5.6.6).
        const BUTTON_PRESSED: u8 = 0x80;
        const REGISTER_BITS: usize = 8;

        Device::new("PWRB".into(), vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))])
            .to_aml_bytes(sink);
        let (register, pending) = (Path::new("PEND"), Local(0));
        let power_button = EventCause::PowerButton as u8;
        let (arguments, serialized) = (1, true);
        Device::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                // The interrupt alone: Linux's driver gives up at any other resource.
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&isa_interrupt(self.gsi)])),
                &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &EVENT_REGISTER_PORT, &1_u8),
                &Field::new(
                    "EVTR".into(),
                    FieldAccessType::Byte,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::Preserve,
                    vec![FieldEntry::Named(*b"PEND", REGISTER_BITS)],
                ),
                // Called with the line's number, of which there is one.
                &Method::new(
                    "_EVT".into(),
                    arguments,
                    serialized,
                    vec![
                        // Once, since that clears it.
                        &Store::new(&pending, &register),
                        &If::new(
                            &And::new(&ZERO, &pending, &power_button),
                            vec![&Notify::new(&Path::new("PWRB"), &BUTTON_PRESSED)],
                        ),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// A device with virtio-mmio registers (VIRTIO 1.2, 4.2). Linux's driver knows them by the id LNRO0005.
#[derive(Debug, Clone, Copy)]
pub struct VirtioMmio {
    /// Tells the devices apart: 0 to 0xFFF.
    pub index: u16,
    /// Guest-physical address of the registers.
    pub base: u32,
    /// Bytes of address space that they take.
    pub size: u32,
    /// The interrupt line, which other such devices may share. Edge-triggered, active high.
    pub gsi: u32,
}

impl Aml for VirtioMmio {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (consumer, edge_triggered, active_low, shared) = (true, true, false, true);
        Device::new(
            format!("V{:03X}", self.index & 0xfff).as_str().into(),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &self.index),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, self.base, self.size),
                        &Interrupt::new(consumer, edge_triggered, active_low, shared, self.gsi),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// An interrupt as ISA cards have it: edge-triggered, active high, not shared.
fn isa_interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}
