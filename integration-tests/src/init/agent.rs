//! Runs commands that a test sends over the console.
//!
//! The console passes bytes as they are. The agent says [`READY`]; then each line `NONCE COMMAND` is run by `/bin/sh`,
//! with the console as its three standard streams. What the command prints stands between
//! `\x1ebegin NONCE\n` and `\x1eend NONCE CODE\n`, where CODE is the exit code as a shell shows it. The next line is read
//! when the command has ended, so a test can also type into a command that runs.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::Command;

use super::system::{self, Event, Power, Session, System};

/// Opens every line of the agent's own.
pub const MARK: u8 = 0x1e;

/// Says that commands are taken.
pub const READY: &str = "\x1eready\n";

/// The longest command line that is taken, the NONCE included.
pub const LINE_MAX: usize = 64 << 10;

/// Runs until the machine shall end.
pub(super) fn run(system: &mut System) -> io::Result<Power> {
    let mut console = system::console()?;
    system::make_raw(&console)?;
    system::silence_kernel();
    system::set_hostname("guest");
    console.write_all(READY.as_bytes())?;
    let mut line = Vec::new();
    let mut running: Option<(libc::pid_t, String)> = None;
    loop {
        let watched = if running.is_none() { Some(console.as_fd()) } else { None };
        match system.wait(watched, None)? {
            Event::Power(power) => return Ok(power),
            Event::Readable => {
                if read_line(&mut console, &mut line)? {
                    running = begin(&mut console, &line)?;
                    line.clear();
                }
            }
            Event::Child(pid, status) => {
                if let Some((_, nonce)) = running.take_if(|(running, _)| *running == pid) {
                    finish(&mut console, &nonce, system::exit_code(status))?;
                }
            }
            Event::Timeout => {}
        }
    }
}

/// Takes one byte, so that what follows a line is left to the command; returns whether the line is complete.
fn read_line(console: &mut File, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut byte = [0];
    if console.read(&mut byte)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the console has hung up"));
    }
    match byte {
        [b'\n' | b'\r'] => Ok(!line.is_empty()),
        [byte] => {
            if line.len() < LINE_MAX {
                line.push(byte);
            }
            Ok(false)
        }
    }
}

/// Starts the command of a line; what cannot be started has ended with code 127.
fn begin(console: &mut File, line: &[u8]) -> io::Result<Option<(libc::pid_t, String)>> {
    let line = String::from_utf8_lossy(line);
    let (nonce, text) = line.split_once(' ').unwrap_or((&line, ""));
    console.write_all(format!("\x1ebegin {nonce}\n").as_bytes())?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", text]).current_dir("/root").env("HOME", "/root");
    match system::spawn(command, console, Session::None) {
        Ok(pid) => Ok(Some((pid, nonce.to_owned()))),
        Err(error) => {
            console.write_all(format!("init: cannot start /bin/sh: {error}\n").as_bytes())?;
            finish(console, nonce, 127)?;
            Ok(None)
        }
    }
}

fn finish(console: &mut File, nonce: &str, code: i32) -> io::Result<()> {
    console.write_all(format!("\x1eend {nonce} {code}\n").as_bytes())
}
