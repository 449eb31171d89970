//! The programs that read profiles. They have to be of rustc's LLVM or a newer one, since the format changes.

use std::path::{Path, PathBuf};
use std::process::Command;

use kindling_integration_tests::error::{Error, Result, chain};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::python;
use kindling_integration_tests::run;
use kindling_integration_tests::workspace::TARGET;

/// Brings them with rustc.
const COMPONENT_COMMAND: &str = "rustup component add llvm-tools";

/// Prints where the package has its programs.
const FIND_PACKAGE: &str = "import sysconfig; print(sysconfig.get_path('purelib') + '/llvm/bin')";

/// `llvm-cov` and `llvm-profdata`.
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Those of rustc's component `llvm-tools`, or else of a package that is installed below `target`.
    pub fn find(progress: &Progress) -> Result<Self> {
        let sysroot = run::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let component = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("bin");
        if component.join("llvm-cov").exists() {
            return Ok(Self { folder: component });
        }
        let tools = Self::from_package(progress).map_err(|error| {
            Error::Package(format!("{}; instead, run: {COMPONENT_COMMAND}", chain(&error)))
        })?;
        let ours = major(&run::output(tools.cov().arg("--version"))?);
        let wanted = major(&run::output(Command::new("rustc").arg("-vV"))?);
        if ours < wanted {
            let what = format!("llvm-cov of LLVM {} or newer", wanted.unwrap_or_default());
            return Err(Error::Missing { what, command: COMPONENT_COMMAND.to_owned() });
        }
        Ok(tools)
    }

    fn from_package(progress: &Progress) -> Result<Self> {
        let python = python::prepare("coverage/requirements.txt", progress)?;
        let folder = run::output(Command::new(python).args(["-c", FIND_PACKAGE]))?;
        Ok(Self { folder: PathBuf::from(folder.trim()) })
    }

    /// A command that reports.
    pub fn cov(&self) -> Command {
        Command::new(self.folder.join("llvm-cov"))
    }

    /// A command that merges.
    pub fn profdata(&self) -> Command {
        Command::new(self.folder.join("llvm-profdata"))
    }
}

/// The number in `LLVM version 22.1.8` or `LLVM version: 22.1.2`.
fn major(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("LLVM version")?;
    version.trim_start_matches([':', ' ']).split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_and_its_tools_say_their_version_each_in_its_way() {
        assert_eq!(major("rustc 1.95.0\nrelease: 1.95.0\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(major("LLVM (http://llvm.org/):\n  LLVM version 9.1.8\n  Optimized build.\n"), Some(9));
        assert_eq!(major("none"), None);
    }
}
