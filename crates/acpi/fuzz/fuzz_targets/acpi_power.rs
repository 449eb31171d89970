#![no_main]
//! A guest accesses the power registers as it likes: pairs of an offset (with the top bit, a read) and a value.

use kindling_acpi::{PowerEvent, PowerRegisters};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut registers = PowerRegisters::new();
    for access in data.chunks_exact(2) {
        let (offset, value) = (access[0] & 0x7f, access[1]);
        if access[0] & 0x80 != 0 {
            // Only the sleep type is ever seen again.
            let read = registers.read(offset);
            assert_eq!(read & !0x1c, 0);
            assert!(offset == 0 || read == 0);
        } else {
            match registers.write(offset, value) {
                Some(PowerEvent::PowerOff) => assert_eq!((offset, value & 0x3c), (0, 0x34)),
                Some(PowerEvent::Reset) => assert_eq!((offset, value), (2, 1)),
                None => assert!((offset, value) != (2, 1)),
            }
        }
    }
});
