//! Python interpreters with the packages that a step of the tests needs, each in a folder of its own.
//!
//! A folder is made once and kept ([`crate::store`]). Every package is named with its version and hashes.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::packages::{self, PYTHON};
use crate::progress::Progress;
use crate::run;
use crate::store::Store;
use crate::workspace;

/// Names an interpreter that is there, for programs that shall not make one themselves.
pub const VARIABLE: &str = "KINDLING_PYTHON";

/// Debian's package of the modules that make a folder for an interpreter, and `pip` in it.
const VENV_PACKAGE: &str = "python3-venv";

/// The interpreter that the environment names.
pub fn from_environment() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Makes a folder with the packages that the file at `path` below the workspace names, unless it is there, and returns the
/// path of the interpreter. The packages' programs are run as its modules: the scripts beside it name the folder that was this
/// one's while it was made.
pub fn prepare(path: &str, progress: &Progress) -> Result<PathBuf> {
    packages::require(&[PYTHON], progress)?;
    require_venv(progress)?;
    let path = workspace::root().join(path);
    let requirements = fs::read(&path).doing(|| format!("cannot read {}", path.display()))?;
    let interpreter = run::output(python().args(["-c", "import sys; print(sys.executable, sys.version)"]))?;
    let mut hasher = DefaultHasher::new();
    (interpreter, requirements).hash(&mut hasher);
    let name = format!("python_{:016x}", hasher.finish());
    let folder = Store::open(progress)?.folder(&name, progress, |_, new| {
        progress.during("installing packages of Python", || install(new, &path))
    })?;
    Ok(interpreter_in(&folder))
}

fn python() -> Command {
    Command::new(PYTHON.program)
}

fn interpreter_in(folder: &Path) -> PathBuf {
    folder.join("bin/python")
}

/// Debian has these modules in a package of their own.
fn require_venv(progress: &Progress) -> Result<()> {
    let check = || run::quiet(python().args(["-c", "import ensurepip, venv"]));
    if check().is_ok() {
        return Ok(());
    }
    let what = "pip for python3";
    packages::install(what, VENV_PACKAGE, progress)?;
    check().map_err(|_| Error::Missing {
        what: what.to_owned(),
        command: format!("sudo apt-get install {VENV_PACKAGE}"),
    })
}

fn install(folder: &Path, requirements: &Path) -> Result<()> {
    run::quiet(python().args(["-m", "venv"]).arg(folder))?;
    let mut pip = Command::new(interpreter_in(folder));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
    run::quiet(pip.args(["--require-hashes", "--requirement"]).arg(requirements))
}
