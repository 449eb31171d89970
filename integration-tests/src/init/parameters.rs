//! What the kernel command line asks of init.

/// What to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A shell for a person.
    #[default]
    Shell,
    /// Commands from a test.
    Agent,
    /// A job in the nested host.
    Host,
}

/// The parameters with our prefix; those with unknown values are as if they were not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `kindling.init=shell|agent|host`.
    pub mode: Mode,
    /// `kindling.size=COLUMNSxROWS` of the terminal on the other side of the console.
    pub size: Option<(u16, u16)>,
}

impl Parameters {
    /// Reads `/proc/cmdline`.
    pub fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(line: &str) -> Self {
        let mut parameters = Self::default();
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("kindling.init", "agent")) => parameters.mode = Mode::Agent,
                Some(("kindling.init", "host")) => parameters.mode = Mode::Host,
                Some(("kindling.init", "shell")) => parameters.mode = Mode::Shell,
                Some(("kindling.size", size)) => parameters.size = parse_size(size),
                _ => {}
            }
        }
        parameters
    }
}

fn parse_size(size: &str) -> Option<(u16, u16)> {
    let (columns, rows) = size.split_once('x')?;
    Some((columns.parse().ok()?, rows.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mode_counts_and_nonsense_does_not() {
        let mode = |line| Parameters::parse(line).mode;
        assert_eq!(mode("console=ttyS0 quiet"), Mode::Shell);
        assert_eq!(mode("kindling.init=agent"), Mode::Agent);
        assert_eq!(mode("kindling.init=agent kindling.init=host\n"), Mode::Host);
        assert_eq!(mode("kindling.init=agent kindling.init=what"), Mode::Agent);
    }

    #[test]
    fn the_size_is_columns_by_rows() {
        assert_eq!(Parameters::parse("kindling.size=132x43").size, Some((132, 43)));
        assert_eq!(Parameters::parse("kindling.size=132").size, None);
        assert_eq!(Parameters::parse("kindling.size=99999x1").size, None);
    }
}
