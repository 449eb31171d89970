//! The steps of `cargo verify`.

use kindling_integration_tests::error::Result;
use kindling_integration_tests::packages::{self, Tool};
use kindling_integration_tests::place::kvm_opens;
use kindling_integration_tests::workspace::cargo;

use crate::shell::{colour, show, show_tests};
use crate::{Context, api, deny, fuzz, guests, usage};

/// One step.
#[derive(Debug)]
pub struct Step {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it checks.
    pub what: &'static str,
    /// Whether it runs tests that have names.
    pub filterable: bool,
    /// What has to be installed.
    pub tools: &'static [Tool],
    /// Runs it.
    pub run: fn(&Context) -> Result<Passed>,
}

/// What the summary says of a step that passed.
#[derive(Debug, Default)]
pub struct Passed {
    /// A few words.
    pub note: String,
    /// How many tests passed.
    pub tests: u32,
}

/// All steps, cheap ones first.
pub const STEPS: [Step; 13] = [
    Step { name: "fmt", what: "the source is formatted", filterable: false, tools: &[], run: fmt },
    Step { name: "clippy", what: "no lint has a complaint", filterable: false, tools: &[], run: clippy },
    Step {
        name: "doc",
        what: "the documentation builds without warnings",
        filterable: false,
        tools: &[],
        run: doc,
    },
    Step {
        name: "deny",
        what: "dependencies have the licences, sources and single versions they may have",
        filterable: false,
        tools: &[packages::PYTHON],
        run: deny::run,
    },
    Step { name: "unit", what: "unit, integration and doc tests", filterable: true, tools: &[], run: unit },
    Step {
        name: "bad-input",
        what: "what vmm says to bad options, files and machines",
        filterable: true,
        tools: &[],
        run: guests::bad_input,
    },
    Step {
        name: "bare-metal",
        what: "guests without an operating system, on any KVM",
        filterable: true,
        tools: &[],
        run: guests::bare_metal,
    },
    Step {
        name: "api",
        what: "answers of the API are those that openapi.yaml has",
        filterable: false,
        tools: &[packages::PYTHON],
        run: api::run,
    },
    Step { name: "linux", what: "stock Linux guests", filterable: true, tools: &[], run: guests::linux },
    Step {
        name: "seccomp-usage",
        what: "no rule of the filters of system calls is without a use",
        filterable: false,
        tools: &[],
        run: usage::run,
    },
    Step {
        name: "clients",
        what: "clients of Firecracker's API, unchanged",
        filterable: true,
        tools: &[],
        run: guests::clients,
    },
    Step {
        name: "demo",
        what: "the demo boots a guest, asks it about itself and powers it off",
        filterable: false,
        tools: &[],
        run: guests::demo,
    },
    Step {
        name: "fuzz",
        what: "a short run of every fuzz target",
        filterable: false,
        tools: &[packages::CXX],
        run: fuzz::run,
    },
];

/// Has the unit tests do without `/dev/kvm`.
const NO_KVM_VARIABLE: &str = "KINDLING_NO_KVM";

/// Packages that need special flags, and steps of their own.
const NOT_FOR_THE_HOST: [&str; 4] =
    ["--exclude", "kindling-bare-metal-guest", "--exclude", "kindling-*-fuzz"];

fn fmt(_: &Context) -> Result<Passed> {
    show(cargo().args(["fmt", "--all", "--check"]))?;
    Ok(Passed::default())
}

fn clippy(_: &Context) -> Result<Passed> {
    let deny = ["--", "-D", "warnings"];
    let mut command = cargo();
    command.args(["clippy", "--quiet", "--workspace", "--all-targets"]).args(deny);
    // Nothing is linked, so that the fuzzing engine need not be compiled for it.
    show(command.env("CUSTOM_LIBFUZZER_PATH", "/dev/null"))?;
    // The tests that need guests are not part of "all targets", so that `cargo test` does not run them.
    let package =
        ["--package", "kindling-integration-tests", "--package", "kindling-client-tests", "--test", "*"];
    show(cargo().args(["clippy", "--quiet"]).args(package).args(deny))?;
    Ok(Passed::default())
}

fn doc(_: &Context) -> Result<Passed> {
    let mut command = cargo();
    command.args(["doc", "--quiet", "--no-deps", "--workspace"]).args(NOT_FOR_THE_HOST);
    show(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Passed::default())
}

fn unit(context: &Context) -> Result<Passed> {
    let mut command = cargo();
    command.args(["test", "--quiet", "--no-fail-fast", "--workspace"]).args(NOT_FOR_THE_HOST);
    command.args(&context.filter).args(["--", "--color", colour()]);
    // Some crates' tests ask KVM, and fail where they cannot and are not told to do without.
    let kvm = kvm_opens();
    if !kvm {
        command.env(NO_KVM_VARIABLE, "1");
    }
    let mut passed = show_tests(&mut command)?.passed();
    if !kvm {
        passed.note.push_str("; those that need /dev/kvm did nothing, for it cannot be opened");
    }
    Ok(passed)
}
