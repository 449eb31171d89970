//! The floors: a file with a line per crate, and what they say of what was measured.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::fs;

use kindling_integration_tests::error::{Context, Error, Result};
use kindling_integration_tests::workspace::root;

use crate::report::{Crates, Percent};

/// The file, below the workspace's root.
pub const PATH: &str = "coverage/floors.toml";

/// Which lines are run depends a little on chance. So a new floor is this far below what is measured, and one that is another
/// as much below is too low.
const SLACK: Percent = Percent(5);

/// No floor is below this one.
const LEAST: Percent = Percent(800);

/// The floors of crates by their names, and the comment that the file begins with.
#[derive(Debug, PartialEq, Eq)]
pub struct Floors {
    comment: String,
    floors: BTreeMap<String, Percent>,
}

/// A crate whose floor does not fit.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// Fewer of its lines are run than there have to be.
    Below { name: String, measured: Percent, floor: Percent },
    /// So many more are run that the floor could be raised.
    Above { name: String, measured: Percent, floor: Percent },
    /// It has no floor.
    NoFloor { name: String, measured: Percent },
    /// It has one, and no lines.
    NoCrate { name: String },
}

impl Finding {
    /// Whether it makes the measurement fail.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Above { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below { name, measured, floor } => {
                write!(f, "{name}: {measured} % of the lines are run, below the floor of {floor} %")
            }
            Self::Above { name, measured, floor } => write!(
                f,
                "{name}: {measured} % of the lines are run, well above the floor of {floor} %; \
                 raise it: cargo coverage --update"
            ),
            Self::NoFloor { name, measured } => write!(
                f,
                "{name}: {measured} % of the lines are run, and {PATH} has no floor; add it: cargo coverage --update"
            ),
            Self::NoCrate { name } => {
                write!(f, "{name}: {PATH} has a floor, and no line of such a crate was measured; remove it")
            }
        }
    }
}

impl Floors {
    /// Reads the file.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(root().join(PATH)).doing(|| format!("cannot read {PATH}"))?;
        Self::parse(&text)
    }

    /// Writes the file.
    pub fn write(&self) -> Result<()> {
        fs::write(root().join(PATH), self.text()).doing(|| format!("cannot write {PATH}"))
    }

    /// Reads lines such as `acpi = 97.5`, after the comment.
    fn parse(text: &str) -> Result<Self> {
        let is_comment = |line: &&str| line.is_empty() || line.starts_with('#');
        let mut comment = String::new();
        for line in text.lines().take_while(is_comment) {
            comment.push_str(line);
            comment.push('\n');
        }
        let mut floors = BTreeMap::new();
        for (index, line) in text.lines().enumerate().skip(comment.lines().count()) {
            let floor = line.split_once(" = ").and_then(|(name, value)| Some((name, parse_percent(value)?)));
            let Some((name, floor)) = floor else {
                let text = format!(
                    "{PATH}, line {}: {line:?} is not a crate and its floor, as in acpi = 97.5",
                    index + 1
                );
                return Err(Error::Protocol(text));
            };
            if floor < LEAST {
                let text =
                    format!("{PATH}, line {}: {name} = {floor} is below {LEAST}, as no floor is", index + 1);
                return Err(Error::Protocol(text));
            }
            if floors.insert(name.to_owned(), floor).is_some() {
                return Err(Error::Protocol(format!("{PATH}, line {}: {name} is there twice", index + 1)));
            }
        }
        Ok(Self { comment, floors })
    }

    fn text(&self) -> String {
        let mut text = self.comment.clone();
        for (name, floor) in &self.floors {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} = {floor}");
        }
        text
    }

    /// What was measured beside the floors.
    pub fn table(&self, crates: &Crates) -> String {
        let mut text =
            format!("\n{:<18}{:>8}{:>8}{:>10}{:>8}\n", "crate", "lines", "run", "percent", "floor");
        for (name, lines) in &crates.0 {
            let floor = self.floors.get(name).map_or_else(|| "none".to_owned(), Percent::to_string);
            let (all, run, share) = (lines.all, lines.run, lines.share());
            let _ = writeln!(text, "{name:<18}{all:>8}{run:>8}{share:>10}{floor:>8}");
        }
        text.push('\n');
        text
    }

    /// What does not fit, by the crate's name.
    pub fn compare(&self, crates: &Crates) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (name, lines) in &crates.0 {
            let (name, measured) = (name.clone(), lines.share());
            match self.floors.get(&name).copied() {
                None => findings.push(Finding::NoFloor { name, measured }),
                Some(floor) if measured < floor => findings.push(Finding::Below { name, measured, floor }),
                Some(floor) if is_low(floor, measured) => {
                    findings.push(Finding::Above { name, measured, floor })
                }
                Some(_) => {}
            }
        }
        let gone = self.floors.keys().filter(|name| !crates.0.contains_key(*name));
        findings.extend(gone.map(|name| Finding::NoCrate { name: name.clone() }));
        findings
    }

    /// Raises what is too low and adds what is missing, which may be more than what is measured: no floor is below the least.
    /// Whether there was something.
    pub fn raise(&mut self, crates: &Crates) -> bool {
        let mut changed = false;
        for (name, lines) in &crates.0 {
            let measured = lines.share();
            if self.floors.get(name).is_none_or(|floor| is_low(*floor, measured)) {
                let floor = Percent(measured.0.saturating_sub(SLACK.0)).max(LEAST);
                self.floors.insert(name.clone(), floor);
                changed = true;
            }
        }
        changed
    }
}

fn is_low(floor: Percent, measured: Percent) -> bool {
    measured.0 > floor.0 + 2 * SLACK.0
}

/// Reads a number such as `97.5`, from 0 to 100.
fn parse_percent(text: &str) -> Option<Percent> {
    let (whole, tenth) = text.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(tenth) || tenth.len() != 1 {
        return None;
    }
    let tenths = whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(tenth.parse().ok()?)?;
    (tenths <= 1000).then_some(Percent(tenths))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Lines;

    fn crates<const N: usize>(shares: [(&str, u32); N]) -> Crates {
        Crates(shares.map(|(name, run)| (name.to_owned(), Lines { all: 1000, run })).into())
    }

    fn findings(floors: &str, crates: &Crates) -> Vec<String> {
        Floors::parse(floors).unwrap().compare(crates).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_crate_below_its_floor_fails_with_its_name_what_is_measured_and_the_floor() {
        let floors = Floors::parse("acpi = 90.0\nboot = 90.1\n").unwrap();
        let found = floors.compare(&crates([("acpi", 900), ("boot", 900)]));
        assert!(found.iter().all(Finding::is_failure));
        let text = "boot: 90.0 % of the lines are run, below the floor of 90.1 %";
        assert_eq!(found.iter().map(Finding::to_string).collect::<Vec<_>>(), [text]);
    }

    #[test]
    fn a_floor_far_below_is_told_of_and_raised_and_no_floor_is_lowered() {
        let measured = crates([("acpi", 911), ("boot", 910), ("cpu", 800)]);
        let mut floors = Floors::parse("# Why.\n\nacpi = 90.0\nboot = 90.0\ncpu = 90.0\n").unwrap();
        let found = floors.compare(&measured);
        assert!(!found[0].is_failure());
        let text = "acpi: 91.1 % of the lines are run, well above the floor of 90.0 %; raise it: cargo coverage --update";
        assert_eq!(found[0].to_string(), text);
        assert!(floors.raise(&measured));
        assert_eq!(floors.text(), "# Why.\n\nacpi = 90.6\nboot = 90.0\ncpu = 90.0\n");
        assert!(!floors.raise(&measured));
    }

    #[test]
    fn crates_and_floors_have_to_be_the_same() {
        let [gone, new] = &findings("acpi = 90.0\n", &crates([("boot", 905)]))[..] else { panic!() };
        assert!(gone.starts_with("boot: 90.5 %") && gone.contains("no floor"), "{gone}");
        assert!(new.starts_with("acpi: ") && new.ends_with("remove it"), "{new}");
        let mut floors = Floors::parse("").unwrap();
        assert!(floors.raise(&crates([("boot", 905)])));
        assert_eq!(floors.text(), "boot = 90.0\n");
    }

    #[test]
    fn lines_that_are_no_floors_are_named() {
        for line in
            ["acpi", "acpi = 9", "acpi = 9.55", "acpi = 100.1", "acpi = +9.5", "acpi = .5", "[floors]", ""]
        {
            let error = Floors::parse(&format!("boot = 80.0\n{line}\nvmm = 80.0\n")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{PATH}, line 2: {line:?}")), "{error}");
        }
        let error = Floors::parse("acpi = 81.0\nacpi = 82.0\n").unwrap_err().to_string();
        assert!(error.ends_with("line 2: acpi is there twice"), "{error}");
    }

    #[test]
    fn no_floor_is_below_80_neither_in_the_file_nor_after_an_update() {
        assert!(Floors::parse("acpi = 80.0\n").is_ok());
        let error = Floors::parse("acpi = 90.0\nboot = 79.9\n").unwrap_err().to_string();
        assert_eq!(error, format!("{PATH}, line 2: boot = 79.9 is below 80.0, as no floor is"));
        let measured = crates([("acpi", 799), ("boot", 803), ("cpu", 806)]);
        let mut floors = Floors::parse("").unwrap();
        assert!(floors.raise(&measured));
        assert_eq!(floors.text(), "acpi = 80.0\nboot = 80.0\ncpu = 80.1\n");
        let [below] = &floors.compare(&measured)[..] else { panic!() };
        assert!(below.is_failure());
        assert_eq!(below.to_string(), "acpi: 79.9 % of the lines are run, below the floor of 80.0 %");
    }
}
