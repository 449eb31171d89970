#![no_main]
//! A guest accesses the controller's ports as it likes while the host presses Ctrl+Alt+Del. Input: pairs of what to do
//! and a value.

use std::cell::Cell;
use std::convert::Infallible;

use kindling_i8042::{COMMAND_OFFSET, DATA_OFFSET, Error, I8042};
use libfuzzer_sys::fuzz_target;
use vm_superio::Trigger;

#[derive(Default)]
struct Line(Cell<u64>);

impl Trigger for &Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let line = Line::default();
    let mut controller = I8042::new(&line);
    for access in data.chunks_exact(2) {
        let interrupts = line.0.get();
        match (access[0] % 6, access[1]) {
            (0, value) => assert!(controller.write(DATA_OFFSET, value).is_ok()),
            (1, value) => assert!(controller.write(COMMAND_OFFSET, value).is_ok()),
            (2, _) => drop(controller.read(DATA_OFFSET)),
            (3, offset) => drop(controller.read(offset)),
            (4, offset) => assert!(controller.write(offset, access[0]).is_ok()),
            _ => match controller.press_ctrl_alt_del() {
                Ok(()) => assert_eq!(controller.read(COMMAND_OFFSET) & 1, 1, "a stroke waits"),
                Err(Error::Trigger(_)) => unreachable!("the line never fails"),
                Err(_) => assert_eq!(line.0.get(), interrupts, "refused and yet announced"),
            },
        }
        assert!(line.0.get() - interrupts <= 1, "one byte moves at a time");
        let status = controller.read(COMMAND_OFFSET);
        assert_eq!(status & 0b1101_0010, 0b0001_0000, "no errors, never busy, never locked");
    }
    // However much was asked for, no more is held than the output buffer, an answer and the keyboard's 16 bytes.
    assert!(controller.write(COMMAND_OFFSET, 0xae).is_ok());
    let mut held = 0;
    while controller.read(COMMAND_OFFSET) & 1 != 0 {
        controller.read(DATA_OFFSET);
        held += 1;
        assert!(held <= 18);
    }
});
