//! From the count of every line to figures of crates.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::workspace::root;

use crate::source::{is_test_file, test_lines};

/// A share in tenths of a percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.0 / 10, self.0 % 10))
    }
}

/// How many lines of code a crate has, and how many of them were run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// All that are no tests.
    pub all: u32,
    /// Those that were run.
    pub run: u32,
}

impl Lines {
    /// The share that was run, rounded down.
    pub fn share(&self) -> Percent {
        let tenths = u64::from(self.run) * 1000 / u64::from(self.all.max(1));
        Percent(u32::try_from(tenths).unwrap_or(u32::MAX))
    }
}

/// The crates by name: of those in `crates`, the name of the folder, and `vmm` and `jailer`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Crates(pub BTreeMap<String, Lines>);

impl Crates {
    /// Reads what `llvm-cov export -format=lcov` prints, and the source files that it names.
    pub fn from_lcov(lcov: &str) -> Result<Self> {
        let read = |path: &Path| fs::read_to_string(path).doing(|| format!("cannot read {}", path.display()));
        Self::with_sources(lcov, &root(), read)
    }

    fn with_sources(lcov: &str, root: &Path, read: impl Fn(&Path) -> Result<String>) -> Result<Self> {
        let mut crates = BTreeMap::<String, Lines>::new();
        for record in lcov.split_terminator("end_of_record\n") {
            let path = record.lines().find_map(|line| line.strip_prefix("SF:")).unwrap_or_default();
            let path = Path::new(path);
            let Some(name) = path.strip_prefix(root).ok().and_then(crate_of) else { continue };
            let tests = test_lines(&read(path)?);
            let lines = crates.entry(name.to_owned()).or_default();
            for data in record.lines().filter_map(|line| line.strip_prefix("DA:")) {
                let (line, count) = line_and_count(data)
                    .ok_or_else(|| Error::Protocol(format!("llvm-cov printed DA:{data}")))?;
                if !tests.iter().any(|range| range.contains(&line)) {
                    lines.all += 1;
                    lines.run += u32::from(count > 0);
                }
            }
        }
        Ok(Self(crates))
    }
}

/// The crate that a file below the workspace's root counts for.
fn crate_of(path: &Path) -> Option<&str> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts[..] {
        ["crates", name, "src", ..] | [name @ ("vmm" | "jailer"), "src", ..] if !is_test_file(path) => {
            Some(name)
        }
        _ => None,
    }
}

fn line_and_count(data: &str) -> Option<(usize, u64)> {
    let mut numbers = data.split(',');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_for_their_crate_unless_they_are_tests() {
        let lcov = "\
            SF:/w/crates/acpi/src/lib.rs\nFN:1,main\nDA:1,5\nDA:2,0\nDA:4,7\nLF:3\nend_of_record\n\
            SF:/w/crates/acpi/src/x.rs\nDA:1,18446744073709551615\nend_of_record\n\
            SF:/w/crates/acpi/src/tests.rs\nDA:1,0\nend_of_record\n\
            SF:/w/crates/acpi/tests/all.rs\nDA:1,0\nend_of_record\n\
            SF:/w/vmm/src/main.rs\nDA:1,0\nend_of_record\n\
            SF:/w/integration-tests/src/lib.rs\nDA:1,0\nend_of_record\n\
            SF:/home/a/vmm/src/main.rs\nDA:1,0\nend_of_record\n";
        let source = |_: &Path| Ok("a\nb\n#[cfg(test)]\nmod tests {\n}\n".to_owned());
        let crates = Crates::with_sources(lcov, Path::new("/w"), source).unwrap();
        let expected = [("acpi", Lines { all: 3, run: 2 }), ("vmm", Lines { all: 1, run: 0 })];
        assert_eq!(crates, Crates(expected.map(|(name, lines)| (name.to_owned(), lines)).into()));
    }

    #[test]
    fn a_report_that_makes_no_sense_is_refused() {
        let source = |_: &Path| Ok(String::new());
        let lcov = "SF:/w/vmm/src/main.rs\nDA:1\nend_of_record\n";
        let error = Crates::with_sources(lcov, Path::new("/w"), source).unwrap_err();
        assert_eq!(error.to_string(), "llvm-cov printed DA:1");
    }

    #[test]
    fn shares_are_rounded_down() {
        assert_eq!(Lines { all: 3, run: 2 }.share(), Percent(666));
        assert_eq!(Lines { all: 0, run: 0 }.share(), Percent(0));
        assert_eq!(format!("{:>6}", Percent(805)), "  80.5");
    }
}
