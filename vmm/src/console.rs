//! The serial port's other end: which back end the configuration asks for, and its place in the event loop.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use kindling_api::{SerialConfig, SerialMode};
use kindling_serial::terminal::{RawMode, restore_on_fatal_signals};
use kindling_serial::{Backend, Console, ConsoleEvent};

use crate::devices::{IrqTrigger, KeyboardDevice};
use crate::error::{Error, one_line};
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
}

/// The console as a subscriber of the event loop.
pub struct ConsoleSource<'a> {
    /// The serial port's other end.
    pub console: &'a mut Console<IrqTrigger>,
    /// Where Ctrl+Alt+Del goes.
    pub keyboard: Arc<KeyboardDevice>,
    /// Where the end of the guest is reported.
    pub outcome: Arc<OutcomeSlot>,
}

impl MutEventSubscriber for ConsoleSource<'_> {
    fn process(&mut self, _: Events, ops: &mut EventOps<'_>) {
        match self.console.service() {
            Ok(None) => {}
            Ok(Some(ConsoleEvent::Quit)) => self.outcome.report(Outcome::PowerOff),
            Ok(Some(ConsoleEvent::CtrlAltDel)) => {
                if let Err(error) = self.keyboard.press_ctrl_alt_del() {
                    log::warn!("Ctrl+Alt+Del: {}", one_line(&error));
                }
            }
            Err(error) => {
                // The guest runs on without a console rather than the loop spinning on a broken one.
                log::error!("the console stops: {}", one_line(&error));
                let _ = ops.remove(Events::empty(self.console));
            }
        }
    }

    fn init(&mut self, _: &mut EventOps<'_>) {}
}
