//! The steps that run `vmm`, with the tests of others' clients among them, and the demo.

use std::path::{Path, PathBuf};
use std::process::Command;

use kindling_integration_tests::bare_metal::{IMAGES_VARIABLE, Images};
use kindling_integration_tests::error::{Error, Result};
use kindling_integration_tests::harness::jail::JAILER_VARIABLE;
use kindling_integration_tests::place::{self, kvm_opens};
use kindling_integration_tests::progress::Progress;
use kindling_integration_tests::python;
use kindling_integration_tests::run::show_again;
use kindling_integration_tests::runner::{EXIT_HOST_BROKEN, FILES_VARIABLE, TRIES};
use kindling_integration_tests::workspace::{JAILER, cargo};

use crate::Context;
use crate::steps::Passed;
use crate::suite::{Needs, Pass, Suite, run_all};

/// The package of most test binaries.
const PACKAGE: &str = "kindling-integration-tests";
/// The package of those with clients of others, which bring much of their own.
const CLIENTS_PACKAGE: &str = "kindling-client-tests";

/// The packages of the clients in Python.
const PYTHON_CLIENTS: &str = "integration-tests/clients/tests/python_clients/requirements.txt";

const BAD_INPUT: Suite = Suite {
    package: PACKAGE,
    name: "bad_input",
    needs: Needs::AnyKvm,
    notes_rules: false,
    prepare: |_, _| Ok(()),
};
/// The bare-metal guest's tests.
pub const BARE_METAL: Suite = Suite {
    package: PACKAGE,
    name: "bare_metal",
    needs: Needs::AnyKvm,
    notes_rules: true,
    prepare: add_images,
};
/// The tests with stock Linux guests.
pub const LINUX: Suite = Suite {
    package: PACKAGE,
    name: "linux",
    needs: Needs::GuestKernels,
    notes_rules: true,
    prepare: |context, command| {
        // One of the tests starts it itself, whatever the others do.
        command.env(JAILER_VARIABLE, JAILER.build(&context.progress)?);
        Ok(())
    },
};
const CLIENTS: Suite = Suite {
    package: CLIENTS_PACKAGE,
    name: "clients",
    needs: Needs::GuestKernels,
    notes_rules: false,
    prepare: |_, _| Ok(()),
};
const IN_PYTHON: Suite = Suite {
    package: CLIENTS_PACKAGE,
    name: "python_clients",
    needs: Needs::AnyKvm,
    notes_rules: false,
    prepare: |context, command| {
        add_images(context, command)?;
        command.env(python::VARIABLE, python::prepare(PYTHON_CLIENTS, &context.progress)?);
        Ok(())
    },
};

/// How `vmm` ends, and what it says, for input it cannot work with.
pub fn bad_input(context: &Context) -> Result<Passed> {
    BAD_INPUT.run(context, &BAD_INPUT.passes(context)?)
}

/// The bare-metal guest's tests.
pub fn bare_metal(context: &Context) -> Result<Passed> {
    BARE_METAL.run(context, &BARE_METAL.passes(context)?)
}

/// The tests with stock Linux guests. When all steps are run, those of clients with such guests run beside them: a nested
/// host of their own would leave processors idle.
pub fn linux(context: &Context) -> Result<Passed> {
    let passes = LINUX.passes(context)?;
    let beside: &[Pass] = if context.is_whole { &[Pass::Plain] } else { &[] };
    run_all(context, &[(&LINUX, &passes), (&CLIENTS, beside)])
}

/// Builds the tests with clients of others and stock guests.
pub fn build_clients(progress: &Progress) -> Result<PathBuf> {
    CLIENTS.build(progress)
}

/// Gives a test binary the bare-metal guest's images.
fn add_images(context: &Context, command: &mut Command) -> Result<()> {
    let images = Images::build(&context.progress)?;
    let files: Vec<_> =
        [&images.guest, &images.exit, &images.mark, &images.lost].map(PathBuf::as_path).into();
    let joined = std::env::join_paths(&files)
        .map_err(|error| Error::Protocol(format!("a path that cannot stand in a list: {error}")))?;
    let folder = images.guest.parent().unwrap_or(Path::new("/"));
    command.env(IMAGES_VARIABLE, folder).env(FILES_VARIABLE, joined);
    Ok(())
}

/// The tests with clients of others, which start the monitor themselves. Those in Python run on this machine only, which has
/// Python.
pub fn clients(context: &Context) -> Result<Passed> {
    let have_run = context.noted.borrow().passed.contains(&(CLIENTS.name, Pass::Plain));
    let stock = match have_run {
        true => Passed { note: "those with stock guests beside the step linux".to_owned(), tests: 0 },
        false => CLIENTS.run(context, &[Pass::Plain])?,
    };
    let wanted = std::env::var(place::VARIABLE).unwrap_or_default();
    if !Needs::AnyKvm.run_directly(&wanted, kvm_opens()) {
        let note = format!("{}; none in Python, which need a /dev/kvm of this machine", stock.note);
        return Ok(Passed { note, ..stock });
    }
    let python = IN_PYTHON.run(context, &[Pass::Plain])?;
    let note = format!("{}; in Python, {}", stock.note, python.note);
    Ok(Passed { note, tests: stock.tests + python.tests })
}

/// The demo, as the README has it. A nested host that breaks says nothing about it.
pub fn demo(_: &Context) -> Result<Passed> {
    show_again(cargo().args(["demo", "--", "--check"]), TRIES, EXIT_HOST_BROKEN.into())?;
    Ok(Passed::default())
}
