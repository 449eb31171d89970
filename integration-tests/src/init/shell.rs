//! A shell with job control for a person at the console.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::parameters::Parameters;
use super::system::{self, Event, Power, Session, System};
use crate::terminal::set_size;

/// Runs until the shell or the machine shall end.
pub fn run(system: &mut System, parameters: &Parameters) -> io::Result<Power> {
    let mut console = system::console()?;
    system::silence_kernel();
    system::set_hostname("guest");
    if let Some((columns, rows)) = parameters.size {
        set_size(&console, columns, rows)?;
    }
    console
        .write_all(b"\r\nThis shell runs in the guest. Leave with `exit`, `poweroff` or Ctrl-D.\r\n\r\n")?;
    let mut command = Command::new("/bin/sh");
    command.arg0("-sh").current_dir("/root").env("HOME", "/root").env("PS1", "\\h:\\w# ");
    let shell = system::spawn(command, &console, Session::Own)?;
    loop {
        match system.wait(None, None)? {
            Event::Child(pid, _) if pid == shell => return Ok(Power::Off),
            Event::Power(power) => return Ok(power),
            _ => {}
        }
    }
}
