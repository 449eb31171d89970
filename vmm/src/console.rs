//! The serial port's other end: which back end the configuration asks for, and its place in the event loop.

use std::io::{self, Write};
use std::time::Duration;

use kindling_api::{SerialConfig, SerialMode};
use kindling_serial::terminal::{RawMode, restore_on_fatal_signals};
use kindling_serial::{Backend, Console, ConsoleEvent};

use crate::devices::IrqTrigger;
use crate::error::{Error, one_line};
use crate::guest::Guest;
use crate::outcome::{Outcome, OutcomeSlot};

/// How long the guest's last words wait for a reader that takes nothing.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Opens what the serial port leads to.
pub fn backend(config: &SerialConfig) -> Result<Backend, Error> {
    let refused = |cause| Error::configuration("serial.serial_out_path", cause);
    let backend = match (config.mode(), &config.serial_out_path) {
        (SerialMode::File, Some(path)) => Backend::file(path).map_err(refused)?,
        (SerialMode::Socket, Some(path)) => Backend::socket(path).map_err(refused)?,
        (SerialMode::Pty, _) => Backend::pty().map_err(|cause| Error::configuration("serial.mode", cause))?,
        _ => Backend::stdio().map_err(Error::host("use standard input and output as the console"))?,
    };
    if let Some(path) = backend.pty_path() {
        // Whoever asked for a pseudo-terminal has no other way to learn which one it is.
        let _ = writeln!(io::stderr(), "vmm: the serial port is at {}", path.display());
    }
    Ok(backend)
}

/// Gives the terminal to the guest if there is one, until the guard is dropped or the process dies.
pub fn enter_raw_mode(console: &Console<IrqTrigger>) -> Result<Option<RawMode>, Error> {
    if !console.backend().is_interactive() {
        return Ok(None);
    }
    restore_on_fatal_signals().map_err(Error::host("guard the terminal's mode"))?;
    RawMode::enable().map_err(Error::host("put the terminal into raw mode"))
}

/// Pushes out what the guest has sent, for a bounded time; the guest must have stopped.
pub fn finish(mut console: Console<IrqTrigger>) {
    let left = console.drain(DRAIN_PATIENCE);
    let lost = console.lost_output().saturating_add(left as u64);
    if lost > 0 {
        log::warn!("{lost} bytes of console output found no reader");
    }
    if console.lost_input() > 0 {
        log::warn!(
            "{} bytes typed at the console were lost: the guest did not take them",
            console.lost_input()
        );
    }
}

/// Moves the bytes that can be moved, and does what was typed for the monitor.
///
/// # Errors
///
/// When the console cannot be served any more.
pub fn serve(guest: &mut Guest, outcome: &OutcomeSlot) -> Result<(), kindling_serial::Error> {
    match guest.console.service()? {
        None => {}
        Some(ConsoleEvent::Quit) => outcome.report(Outcome::PowerOff),
        Some(ConsoleEvent::CtrlAltDel) => {
            if let Err(error) = guest.keyboard.press_ctrl_alt_del() {
                log::warn!("Ctrl+Alt+Del: {}", one_line(&error));
            }
        }
        Some(ConsoleEvent::PowerButton) => {
            if let Err(error) = guest.events.press_power_button() {
                log::warn!("power button: {}", one_line(&error));
            }
        }
    }
    Ok(())
}
