//! The DSDT's entries for the devices that every machine has at their customary ports.

use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, ResourceTemplate};
use acpi_tables::{Aml, AmlSink};

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

/// An interrupt as ISA cards have it: edge-triggered, active high, not shared.
fn isa_interrupt(gsi: u32) -> Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}
