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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `kindling.init=shell|agent|host`.
    pub mode: Mode,
    /// `kindling.size=COLUMNSxROWS` of the terminal on the other side of the console.
    pub size: Option<(u16, u16)>,
    /// `kindling.modules=NAME,NAME` to load first.
    pub modules: Vec<String>,
    /// `kindling.root=DEVICE` with the root file system to go on in.
    pub root: Option<String>,
    /// `kindling.tools=DEVICE` with a root file system whose programs the nested host shall have.
    pub tools: Option<String>,
    /// `kindling.scratch=DEVICE` for the nested host to make a file system on.
    pub scratch: Option<String>,
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
                Some(("kindling.modules", names)) => {
                    parameters.modules.extend(names.split(',').map(str::to_owned));
                }
                Some(("kindling.root", device)) => parameters.root = Some(device.to_owned()),
                Some(("kindling.tools", device)) => parameters.tools = Some(device.to_owned()),
                Some(("kindling.scratch", device)) => parameters.scratch = Some(device.to_owned()),
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

    #[test]
    fn modules_add_up() {
        let modules = Parameters::parse("kindling.modules=a,b quiet kindling.modules=c").modules;
        assert_eq!(modules, ["a", "b", "c"]);
    }

    #[test]
    fn each_device_has_its_own_use() {
        let line = "kindling.root=/dev/vda kindling.tools=/dev/vdb kindling.scratch=/dev/vdc root=/dev/vdd";
        let Parameters { root, tools, scratch, .. } = Parameters::parse(line);
        let devices = [root, tools, scratch];
        assert_eq!(
            devices.each_ref().map(Option::as_deref),
            [Some("/dev/vda"), Some("/dev/vdb"), Some("/dev/vdc")]
        );
    }
}
