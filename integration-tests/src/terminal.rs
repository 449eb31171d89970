//! Terminal modes and pseudo-terminals.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The settings of a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Settings(libc::termios);

impl Settings {
    /// Reads a terminal's settings; fails with ENOTTY for anything else.
    pub fn of(terminal: impl AsFd) -> io::Result<Self> {
        // SAFETY: termios is plain data, for which all zeroes is a value.
        let mut termios: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is borrowed for the call and termios is valid for writes.
        check(unsafe { libc::tcgetattr(terminal.as_fd().as_raw_fd(), &raw mut termios) })?;
        Ok(Self(termios))
    }

    /// Bytes pass in both directions as they are: no echo, no line editing, no signals, no translation.
    #[must_use]
    pub fn raw(mut self) -> Self {
        // SAFETY: cfmakeraw only changes the structure it is given.
        unsafe { libc::cfmakeraw(&raw mut self.0) };
        self
    }

    /// Applies the settings once what was written has been sent.
    pub fn apply(&self, terminal: impl AsFd) -> io::Result<()> {
        // SAFETY: the descriptor is borrowed for the call and the settings are valid for reads.
        check(unsafe { libc::tcsetattr(terminal.as_fd().as_raw_fd(), libc::TCSADRAIN, &raw const self.0) })
    }

    /// Whether what is typed is echoed.
    pub fn echoes(&self) -> bool {
        self.0.c_lflag & libc::ECHO != 0
    }

    /// Whether input comes in edited lines.
    pub fn edits_lines(&self) -> bool {
        self.0.c_lflag & libc::ICANON != 0
    }
}

/// All flags and special characters.
impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        let flags = |Self(of): &Self| [of.c_iflag, of.c_oflag, of.c_cflag, of.c_lflag];
        flags(self) == flags(other) && self.0.c_cc == other.0.c_cc
    }
}

impl Eq for Settings {}

/// Puts a terminal into raw mode and back on drop.
pub struct RawMode {
    terminal: OwnedFd,
    before: Settings,
}

impl RawMode {
    /// Returns `None` if `terminal` is none.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let Ok(before) = Settings::of(terminal) else {
            return Ok(None);
        };
        let terminal = terminal.try_clone_to_owned()?;
        before.raw().apply(&terminal)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // There is nothing left to do for a terminal that is gone.
        let _ = self.before.apply(&self.terminal);
    }
}

/// Columns and rows of a terminal, if it knows them.
pub fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    // SAFETY: winsize is plain data, for which all zeroes is a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes a winsize to the pointer, which is valid for writes.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Tells a terminal how large it is.
pub fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize from the pointer, which is valid for reads.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
}

/// Opens a pseudo-terminal and returns its two ends: the controlling one and the terminal itself.
pub fn open_pty() -> io::Result<(File, File)> {
    let (mut controller, mut terminal) = (-1, -1);
    // SAFETY: both pointers are valid for writes; no name, settings or size are passed.
    let result = unsafe {
        libc::openpty(
            &raw mut controller,
            &raw mut terminal,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    check(result)?;
    // SAFETY: openpty succeeded, so both are open descriptors that nothing else owns.
    let ends = unsafe { (File::from_raw_fd(controller), File::from_raw_fd(terminal)) };
    for end in [&ends.0, &ends.1] {
        // SAFETY: the descriptor is open for as long as the borrowed file.
        check(unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok(ends)
}

/// Makes standard input the controlling terminal of a new session. For `pre_exec`: async-signal-safe.
pub fn become_session_leader() -> io::Result<()> {
    // SAFETY: setsid takes nothing; it fails with EPERM for a process group leader.
    check(unsafe { libc::setsid() })?;
    // SAFETY: TIOCSCTTY takes an integer argument.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })
}

/// Turns -1 into the error in `errno`.
pub fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let (_controller, terminal) = open_pty().unwrap();
        let before = Settings::of(&terminal).unwrap();
        assert!(before.echoes() && before.edits_lines());
        let guard = RawMode::enter(terminal.as_fd()).unwrap().unwrap();
        let settings = Settings::of(&terminal).unwrap();
        assert!(!settings.echoes() && !settings.edits_lines());
        assert_ne!(settings, before);
        drop(guard);
        assert_eq!(Settings::of(&terminal).unwrap(), before);
    }

    #[test]
    fn a_file_is_left_alone() {
        let file = tempfile::tempfile().unwrap();
        assert!(RawMode::enter(file.as_fd()).unwrap().is_none());
        assert_eq!(size(&file), None);
    }

    #[test]
    fn a_terminal_keeps_its_size() {
        let (controller, terminal) = open_pty().unwrap();
        set_size(&controller, 132, 43).unwrap();
        assert_eq!(size(&terminal), Some((132, 43)));
    }
}
