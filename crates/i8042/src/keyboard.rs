//! The keyboard at the controller's port: it acknowledges what drivers configure, and can be made to type
//! Ctrl+Alt+Del.
//!
//! The commands are those of the IBM PS/2 keyboard (technical reference "Keyboards (101- and 102-key)"). Scan code
//! set 2 is the only one; the controller translates it to set 1 unless told not to.

use std::collections::VecDeque;

use crate::Error;

/// Bytes the keyboard holds for the host to read; the size of the real one's, and no more than Linux flushes at once.
const BUFFER_SIZE: usize = 16;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;

const SET_LEDS: u8 = 0xed;
const SET_SCAN_CODE_SET: u8 = 0xf0;
const GET_ID: u8 = 0xf2;
const SET_TYPEMATIC: u8 = 0xf3;
const ENABLE_SCANNING: u8 = 0xf4;
const DISABLE_SCANNING: u8 = 0xf5;
const SET_DEFAULTS: u8 = 0xf6;
const RESET: u8 = 0xff;

/// Ctrl, Alt and Delete pressed and released in set 2.
const CTRL_ALT_DEL: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
/// The same as the controller translates it, in set 1.
const CTRL_ALT_DEL_TRANSLATED: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];

#[derive(Debug)]
pub(crate) struct Keyboard {
    /// Never longer than [`BUFFER_SIZE`].
    buffer: VecDeque<u8>,
    /// The command whose parameter comes next.
    awaiting_parameter: Option<u8>,
    /// Whether strokes are reported. A keyboard that was just powered on does.
    scanning: bool,
}

impl Keyboard {
    pub fn new() -> Self {
        Self { buffer: VecDeque::with_capacity(BUFFER_SIZE), awaiting_parameter: None, scanning: true }
    }

    /// The next byte for the host.
    pub fn next(&mut self) -> Option<u8> {
        self.buffer.pop_front()
    }

    /// Takes a byte from the host. `translated` tells whether the controller translates what the keyboard says.
    pub fn receive(&mut self, byte: u8, translated: bool) {
        // Parameters are small; a command in the place of one starts over.
        match self.awaiting_parameter.take() {
            Some(command) if byte < 0x80 => self.receive_parameter(command, byte, translated),
            _ => self.receive_command(byte, translated),
        }
    }

    fn receive_command(&mut self, command: u8, translated: bool) {
        match command {
            SET_LEDS | SET_SCAN_CODE_SET | SET_TYPEMATIC => {
                self.awaiting_parameter = Some(command);
                self.send(&[ACK]);
            }
            GET_ID => self.send(&[ACK, 0xab, if translated { 0x41 } else { 0x83 }]),
            ENABLE_SCANNING => {
                self.scanning = true;
                self.send(&[ACK]);
            }
            DISABLE_SCANNING => {
                self.scanning = false;
                self.send(&[ACK]);
            }
            SET_DEFAULTS => self.send(&[ACK]),
            RESET => {
                self.buffer.clear();
                self.scanning = true;
                self.send(&[ACK, SELF_TEST_PASSED]);
            }
            _ => self.send(&[RESEND]),
        }
    }

    fn receive_parameter(&mut self, command: u8, parameter: u8, translated: bool) {
        match (command, parameter) {
            (SET_SCAN_CODE_SET, 0) => self.send(&[ACK, if translated { 0x41 } else { 2 }]),
            (SET_SCAN_CODE_SET, 1 | 3..) => self.send(&[RESEND]),
            _ => self.send(&[ACK]),
        }
    }

    /// Presses and releases Ctrl+Alt+Del, wholly or not at all.
    pub fn press_ctrl_alt_del(&mut self, translated: bool) -> Result<(), Error> {
        let strokes: &[u8] = if translated { &CTRL_ALT_DEL_TRANSLATED } else { &CTRL_ALT_DEL };
        let room = BUFFER_SIZE.saturating_sub(self.buffer.len());
        if room < strokes.len() {
            return Err(Error::BufferFull { room, needed: strokes.len() });
        }
        self.send(strokes);
        Ok(())
    }

    pub fn is_scanning(&self) -> bool {
        self.scanning
    }

    /// Queues bytes for the host. Those that do not fit are lost: the host asked for more answers than it read.
    fn send(&mut self, bytes: &[u8]) {
        let room = BUFFER_SIZE.saturating_sub(self.buffer.len());
        self.buffer.extend(bytes.iter().take(room));
    }
}
