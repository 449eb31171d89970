//! Plays what Linux's drivers do with the controller (`i8042.c`, `libps2.c`, `atkbd.c`), polling as they poll.

// Helpers outside test functions unwrap as well.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;

use kindling_i8042::{COMMAND_OFFSET, DATA_OFFSET, Error, Event, I8042};
use vm_superio::Trigger;

const OUTPUT_FULL: u8 = 0x01;
const INPUT_FULL: u8 = 0x02;
const UNLOCKED: u8 = 0x10;
const FROM_AUX: u8 = 0x20;

const KEYBOARD_INTERRUPT: u8 = 0x01;
const KEYBOARD_DISABLED: u8 = 0x10;
const AUX_DISABLED: u8 = 0x20;
const TRANSLATE: u8 = 0x40;

#[derive(Clone, Default)]
struct Line(Rc<Cell<u32>>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

struct Driver {
    controller: I8042<Line>,
    line: Line,
    command_byte: u8,
}

impl Driver {
    fn new() -> Self {
        let line = Line::default();
        Self { controller: I8042::new(line.clone()), line, command_byte: 0 }
    }

    fn status(&mut self) -> u8 {
        self.controller.read(COMMAND_OFFSET)
    }

    fn write(&mut self, offset: u8, value: u8) {
        assert_eq!(self.status() & INPUT_FULL, 0);
        assert_eq!(self.controller.write(offset, value).unwrap(), None);
    }

    /// Waits for a byte; the half second of Linux's patience is over at once here.
    fn wait(&mut self) -> Option<u8> {
        let full = self.status() & OUTPUT_FULL != 0;
        full.then(|| self.controller.read(DATA_OFFSET))
    }

    fn command(&mut self, command: u8) -> Option<u8> {
        self.write(COMMAND_OFFSET, command);
        self.wait()
    }

    fn set_command_byte(&mut self, value: u8) {
        self.command_byte = value;
        self.write(COMMAND_OFFSET, 0x60);
        self.write(DATA_OFFSET, value);
    }

    /// Linux gives the controller up when more than 16 bytes come.
    fn flush(&mut self) {
        let bytes = (0..17).take_while(|_| self.wait().is_some()).count();
        assert!(bytes <= 16);
    }

    /// `i8042_controller_check` to `i8042_controller_init`: the keyboard and its interrupt go off.
    fn probe_controller(&mut self) {
        self.flush();
        let first = self.command(0x20).expect("no command byte");
        assert_eq!(self.command(0x20), Some(first), "the command byte is not stable");
        assert_ne!(self.status() & UNLOCKED, 0, "Linux warns of the keyboard lock");
        self.set_command_byte((first | KEYBOARD_DISABLED) & !KEYBOARD_INTERRUPT);
        self.flush();
    }

    /// `i8042_check_aux`: whether Linux sees a mouse port.
    fn sees_aux(&mut self) -> bool {
        self.flush();
        self.write(COMMAND_OFFSET, 0xd3);
        self.write(DATA_OFFSET, 0x5a);
        let status = self.status();
        assert_ne!(status & OUTPUT_FULL, 0, "Linux would wait for half a second");
        let looped = status & FROM_AUX != 0 && self.controller.read(DATA_OFFSET) == 0x5a;
        looped || matches!(self.command(0xa9).expect("Linux would wait"), 0x00 | 0xfa | 0xff)
    }

    /// `i8042_enable_kbd_port`.
    fn enable_keyboard(&mut self) {
        self.set_command_byte((self.command_byte & !KEYBOARD_DISABLED) | KEYBOARD_INTERRUPT);
    }

    /// The interrupt handler: one byte for each interrupt, until there are no more.
    fn interrupts(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.line.0.get() > 0 {
            self.line.0.set(self.line.0.get() - 1);
            bytes.push(self.wait().expect("an interrupt without data"));
        }
        assert_eq!(self.status() & OUTPUT_FULL, 0, "data without an interrupt");
        bytes
    }

    /// `ps2_command`: a command and its parameters, each acknowledged, and what is answered after that.
    fn ps2(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        for byte in bytes {
            assert_eq!(answer, [], "an answer before the parameters");
            self.write(DATA_OFFSET, *byte);
            answer = self.interrupts();
            assert_eq!(answer.remove(0), 0xfa, "{byte:#x} is not acknowledged");
        }
        answer
    }

    /// `atkbd_connect` to `atkbd_activate`, and the LEDs and repeat rate it sets as the first event.
    fn probe_keyboard(&mut self) {
        let id = self.ps2(&[0xf2]);
        let translated = self.command_byte & TRANSLATE != 0;
        assert_eq!(id, if translated { [0xab, 0x41] } else { [0xab, 0x83] });
        assert_eq!(self.ps2(&[0xf5]), []);
        assert_eq!(self.ps2(&[0xed, 0x00]), []);
        assert_eq!(self.ps2(&[0xf3, 0x2b]), []);
        assert_eq!(self.ps2(&[0xf4]), []);
    }
}

#[test]
fn probe_with_default_options_finds_a_keyboard_and_no_mouse_port() {
    let mut driver = Driver::new();
    driver.probe_controller();
    assert!(!driver.sees_aux());
    driver.flush();
    driver.enable_keyboard();
    assert_eq!(driver.interrupts(), []);
    driver.probe_keyboard();
    driver.controller.press_ctrl_alt_del().unwrap();
    assert_eq!(driver.interrupts(), [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
}

#[test]
fn probe_with_noaux_and_dumbkbd_gets_ctrl_alt_del_without_a_word_to_the_keyboard() {
    let mut driver = Driver::new();
    driver.probe_controller();
    driver.enable_keyboard();
    driver.controller.press_ctrl_alt_del().unwrap();
    assert_eq!(driver.interrupts(), [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
    driver.controller.press_ctrl_alt_del().unwrap();
    assert_eq!(driver.interrupts().len(), 8, "and again");
}

#[test]
fn driver_that_switches_translation_off_gets_scan_code_set_2() {
    let mut driver = Driver::new();
    driver.probe_controller();
    driver.set_command_byte(driver.command_byte & !TRANSLATE);
    driver.enable_keyboard();
    driver.probe_keyboard();
    assert_eq!(driver.ps2(&[0xf0, 0x00]), [0x02]);
    driver.controller.press_ctrl_alt_del().unwrap();
    let strokes = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
    assert_eq!(driver.interrupts(), strokes);
}

#[test]
fn reset_options_pass_their_tests() {
    let mut driver = Driver::new();
    assert_eq!(driver.command(0xaa), Some(0x55), "i8042.reset");
    assert_eq!(driver.command(0xab), Some(0x00));
    driver.probe_controller();
    driver.enable_keyboard();
    assert_eq!(driver.ps2(&[0xff]), [0xaa], "atkbd.reset");
}

#[test]
fn each_way_to_pull_the_reset_line_resets() {
    for command in [0xfe, 0xf0, 0xfc] {
        let mut driver = Driver::new();
        assert_eq!(driver.controller.write(COMMAND_OFFSET, command).unwrap(), Some(Event::Reset));
    }
    let mut driver = Driver::new();
    driver.write(COMMAND_OFFSET, 0xff);
    driver.write(COMMAND_OFFSET, 0xd1);
    driver.write(DATA_OFFSET, 0x03);
    driver.write(COMMAND_OFFSET, 0xd1);
    assert_eq!(driver.controller.write(DATA_OFFSET, 0x02).unwrap(), Some(Event::Reset));
}

#[test]
fn ctrl_alt_del_is_refused_until_the_guest_listens() {
    let mut driver = Driver::new();
    let refused = |driver: &mut Driver| {
        matches!(driver.controller.press_ctrl_alt_del(), Err(Error::NotListening { .. }))
    };
    assert!(refused(&mut driver), "no driver yet");
    driver.probe_controller();
    assert!(refused(&mut driver), "the driver is probing");
    driver.enable_keyboard();
    driver.ps2(&[0xf5]);
    assert!(refused(&mut driver), "the keyboard is switched off");
    driver.ps2(&[0xf4]);
    driver.write(COMMAND_OFFSET, 0xad);
    assert!(refused(&mut driver), "the keyboard's port is switched off");
    assert_eq!(driver.interrupts(), [], "nothing of it was kept");
    driver.write(COMMAND_OFFSET, 0xae);
    driver.controller.press_ctrl_alt_del().unwrap();
}

#[test]
fn ctrl_alt_del_to_a_guest_that_does_not_read_is_refused_whole() {
    let mut driver = Driver::new();
    driver.probe_controller();
    driver.enable_keyboard();
    driver.controller.press_ctrl_alt_del().unwrap();
    driver.controller.press_ctrl_alt_del().unwrap();
    let error = driver.controller.press_ctrl_alt_del().unwrap_err();
    assert_eq!(error.to_string(), "the keyboard's buffer has room for 1 more bytes, 8 are needed");
    assert_eq!(driver.interrupts().len(), 16);
}

#[test]
fn answers_of_the_controller_do_not_queue_behind_key_strokes() {
    let mut driver = Driver::new();
    driver.probe_controller();
    driver.enable_keyboard();
    driver.controller.press_ctrl_alt_del().unwrap();
    driver.write(COMMAND_OFFSET, 0xa9);
    assert_eq!(driver.wait(), Some(0x1d), "this stroke was in the output buffer");
    assert_eq!(driver.wait(), Some(0x01), "the answer");
    assert_eq!(driver.wait(), Some(0x38));
}

#[test]
fn byte_that_waits_when_the_interrupt_is_switched_on_raises_it_once() {
    let mut driver = Driver::new();
    driver.write(DATA_OFFSET, 0xf2);
    assert_eq!(driver.line.0.get(), 0);
    driver.set_command_byte(KEYBOARD_INTERRUPT | TRANSLATE);
    assert_eq!(driver.line.0.get(), 1);
    driver.set_command_byte(KEYBOARD_INTERRUPT | TRANSLATE);
    assert_eq!(driver.line.0.get(), 1);
    assert_eq!(driver.interrupts(), [0xfa, 0xab, 0x41]);
}

#[test]
fn disabled_keyboard_keeps_its_bytes_until_it_may_send() {
    let mut driver = Driver::new();
    driver.write(DATA_OFFSET, 0xf2);
    driver.write(COMMAND_OFFSET, 0xad);
    assert_eq!(driver.wait(), Some(0xfa), "this one was sent before");
    assert_eq!(driver.wait(), None);
    driver.write(COMMAND_OFFSET, 0xae);
    assert_eq!(driver.wait(), Some(0xab));
    // A command starts the keyboard's clock.
    driver.write(COMMAND_OFFSET, 0xad);
    assert_eq!(driver.wait(), Some(0x41));
    driver.write(DATA_OFFSET, 0xf4);
    assert_eq!(driver.wait(), Some(0xfa));
    assert_eq!(driver.command(0x20).unwrap() & KEYBOARD_DISABLED, 0);
}

#[test]
fn aux_commands_change_their_bit_and_reach_no_keyboard() {
    let mut driver = Driver::new();
    driver.write(COMMAND_OFFSET, 0xa7);
    assert_eq!(driver.command(0x20).unwrap() & AUX_DISABLED, AUX_DISABLED);
    driver.write(COMMAND_OFFSET, 0xa8);
    assert_eq!(driver.command(0x20).unwrap() & AUX_DISABLED, 0);
    driver.write(COMMAND_OFFSET, 0xd4);
    driver.write(DATA_OFFSET, 0xf2);
    assert_eq!(driver.wait(), None);
    assert_eq!(driver.command(0xd0), Some(0x03), "the output port: no reset, A20 open");
}

#[test]
fn unknown_keyboard_commands_ask_to_send_again_and_commands_take_the_place_of_parameters() {
    let mut driver = Driver::new();
    driver.set_command_byte(KEYBOARD_INTERRUPT | TRANSLATE);
    let mut says = |byte| {
        driver.write(DATA_OFFSET, byte);
        driver.interrupts()
    };
    assert_eq!(says(0x00), [0xfe]);
    assert_eq!(says(0xea), [0xfe]);
    assert_eq!(says(0xed), [0xfa]);
    assert_eq!(says(0xf2), [0xfa, 0xab, 0x41], "not the LEDs");
    assert_eq!(says(0xf0), [0xfa]);
    assert_eq!(says(0x03), [0xfe], "no scan code set 3");
    assert_eq!(says(0xf0), [0xfa]);
    assert_eq!(says(0x02), [0xfa]);
    assert_eq!(says(0xf6), [0xfa]);
}

#[test]
fn guest_that_never_reads_loses_bytes_and_the_controller_goes_on() {
    let mut driver = Driver::new();
    for _ in 0..1000 {
        driver.write(DATA_OFFSET, 0xf2);
    }
    let bytes = (0..).take_while(|_| driver.wait().is_some()).count();
    assert_eq!(bytes, 17, "the keyboard's 16 and the output buffer's one");
    driver.write(DATA_OFFSET, 0xf4);
    assert_eq!(driver.wait(), Some(0xfa));
}

#[test]
fn other_offsets_read_as_nothing_and_ignore_writes() {
    let mut driver = Driver::new();
    for offset in [1, 2, 3, 5, 255] {
        assert_eq!(driver.controller.write(offset, 0xfe).unwrap(), None);
        assert_eq!(driver.controller.read(offset), 0xff);
    }
    assert_eq!(driver.wait(), None);
}

/// An interrupt line that cannot be raised.
struct Broken;

impl Trigger for Broken {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), std::io::Error> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
}

#[test]
fn interrupt_that_fails_is_reported_and_the_byte_is_there_all_the_same() {
    let mut controller = I8042::new(Broken);
    controller.write(COMMAND_OFFSET, 0x60).unwrap();
    controller.write(DATA_OFFSET, KEYBOARD_INTERRUPT).unwrap();
    let error = controller.write(DATA_OFFSET, 0xf4).unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "broken pipe");
    assert_eq!(controller.read(COMMAND_OFFSET) & OUTPUT_FULL, OUTPUT_FULL);
    assert_eq!(controller.read(DATA_OFFSET), 0xfa);
}
