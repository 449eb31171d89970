//! The escape for people at a terminal: in raw mode, Ctrl-C goes to the guest, and there must be a way to leave it.

use std::collections::VecDeque;

use crate::ConsoleEvent;

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// Ctrl-A x ends the guest, Ctrl-A p presses the power button, Ctrl-A d presses Ctrl+Alt+Del, Ctrl-A Ctrl-A is one
/// Ctrl-A, and Ctrl-A before anything else is just that.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    after_prefix: bool,
}

impl Escape {
    /// Appends to `output` what of `input` is for the guest, and returns what was asked for. The end of the guest goes
    /// before all else: what was typed after that is dropped.
    pub(crate) fn filter(&mut self, input: &[u8], output: &mut VecDeque<u8>) -> Option<ConsoleEvent> {
        let mut event = None;
        for &byte in input {
            match (std::mem::take(&mut self.after_prefix), byte) {
                (false, PREFIX) => self.after_prefix = true,
                (true, b'x' | b'X') => return Some(ConsoleEvent::Quit),
                (true, b'p' | b'P') => event = Some(ConsoleEvent::PowerButton),
                (true, b'd' | b'D') => event = Some(ConsoleEvent::CtrlAltDel),
                (true, PREFIX) | (false, _) => output.push_back(byte),
                (true, _) => output.extend([PREFIX, byte]),
            }
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pieces: &[&[u8]]) -> (Vec<u8>, Option<ConsoleEvent>) {
        let (mut escape, mut output) = (Escape::default(), VecDeque::new());
        let event = pieces.iter().find_map(|piece| escape.filter(piece, &mut output));
        (output.into(), event)
    }

    #[test]
    fn ctrl_a_x_quits_even_when_it_comes_in_two_reads() {
        assert_eq!(filter(&[b"ls\x01xrest"]), (b"ls".to_vec(), Some(ConsoleEvent::Quit)));
        assert_eq!(filter(&[b"ls\x01", b"x"]), (b"ls".to_vec(), Some(ConsoleEvent::Quit)));
    }

    #[test]
    fn ctrl_a_d_presses_ctrl_alt_del_and_ctrl_a_p_the_power_button() {
        assert_eq!(filter(&[b"ls\x01drest"]), (b"lsrest".to_vec(), Some(ConsoleEvent::CtrlAltDel)));
        assert_eq!(filter(&[b"ls\x01prest"]), (b"lsrest".to_vec(), Some(ConsoleEvent::PowerButton)));
        assert_eq!(filter(&[b"\x01d\x01x"]), (b"".to_vec(), Some(ConsoleEvent::Quit)));
    }

    #[test]
    fn ctrl_a_twice_sends_one() {
        assert_eq!(filter(&[b"\x01\x01x"]), (b"\x01x".to_vec(), None));
    }

    #[test]
    fn other_keys_pass_unchanged() {
        assert_eq!(filter(&[b"x\x01b\x03\x00\xff"]), (b"x\x01b\x03\x00\xff".to_vec(), None));
    }
}
