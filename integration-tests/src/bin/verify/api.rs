//! The step that has schemathesis ask the API whatever its description allows, and does not: every answer has to be one that
//! the description has.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kindling_api::client::{Client, ClientError, Response};
use kindling_integration_tests::bare_metal::Images;
use kindling_integration_tests::error::{Context as _, Error, Result, chain};
use kindling_integration_tests::harness::Process;
use kindling_integration_tests::place::kvm_opens;
use kindling_integration_tests::python;
use kindling_integration_tests::workspace::root;
use serde_json::{Value, json};

use crate::Context;
use crate::shell::show;
use crate::steps::Passed;
use crate::suite::vmm;

/// How long `vmm` has to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an answer may not be: anything but what the description says. A valid request may be refused all the same, since what
/// it names need not exist.
const CHECKS: [&str; 4] = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"];

/// The state of a machine while it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotStarted,
    Running,
    Paused,
}

impl State {
    /// As `GET /` says it.
    fn name(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }

    /// The state for `PATCH /vm` that changes nothing.
    fn wanted(self) -> &'static str {
        if self == Self::Paused { "Paused" } else { "Resumed" }
    }
}

/// Asks a machine that is not started, one that runs and one that is paused.
pub fn run(context: &Context) -> Result<Passed> {
    let python = python::prepare("integration-tests/schemathesis/requirements.txt", &context.progress)?;
    let vmm = PathBuf::from(vmm(context)?);
    // With what is no kernel the guest does not start.
    let no_kernel = root().join("crates/api/openapi.yaml");
    ask(context, &python, &vmm, &no_kernel, State::NotStarted)?;
    if !kvm_opens() {
        let note = "only before the start, for /dev/kvm cannot be opened".to_owned();
        return Ok(Passed { note, tests: 0 });
    }
    let guest = Images::build(&context.progress)?.guest;
    ask(context, &python, &vmm, &guest, State::Running)?;
    ask(context, &python, &vmm, &guest, State::Paused)?;
    Ok(Passed { note: format!("{} examples a call and state", context.api_examples), tests: 0 })
}

fn ask(context: &Context, python: &Path, vmm: &Path, kernel: &Path, state: State) -> Result<()> {
    println!("{}:", state.name());
    let folder = tempfile::tempdir().doing(|| "cannot create a folder for the API's socket".to_owned())?;
    let socket = folder.path().join("api/api.sock");
    let files = root().join("integration-tests/schemathesis");
    let mut jail = Command::new(files.join("jail.sh"));
    jail.arg(folder.path()).arg(vmm).arg(kernel).stdin(Stdio::null()).stdout(Stdio::null());
    let child = jail.spawn().doing(|| format!("cannot run {}", jail.get_program().display()))?;
    let mut process = Process::new(child, "vmm in its jail");
    let client = Client::new(&socket);
    wait_for(&mut process, &client)?;
    if state != State::NotStarted {
        start(&client, state == State::Paused)?;
    }

    let mut command = Command::new(python);
    command.args(["-m", "schemathesis.cli", "run"]).arg(root().join("crates/api/openapi.yaml"));
    command.current_dir(folder.path());
    command.args(["--url", "http://localhost", "--phases", "examples,coverage,fuzzing"]).args(CHECKS);
    command.args(["--max-examples", &context.api_examples.to_string()]);
    command.args(["--continue-on-failure", "--warnings", "off", "--no-color"]);
    command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", &files).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("KINDLING_API_SOCK", &socket).env("KINDLING_VM_STATE", state.wanted());
    show(&mut command)?;

    let answer = said(client.get("/").and_then(|answer| answer.json()))?;
    if answer["state"] != state.name() {
        return Err(Error::Protocol(format!("the machine's state was {}, and is {answer}", state.name())));
    }
    process.signal(libc::SIGTERM)?;
    let status = process.wait(PATIENCE)?;
    if status.code() == Some(128 + libc::SIGTERM) {
        return Ok(());
    }
    Err(Error::Protocol(format!("vmm ended with {status} after SIGTERM")))
}

/// Waits until `vmm` answers.
fn wait_for(process: &mut Process, client: &Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while client.get("/").is_err() {
        if let Some(status) = process.status()? {
            let detail =
                format!("{status}; a user namespace is needed, in which to mount and to open /dev/kvm");
            return Err(Error::Command { command: "jail.sh".to_owned(), detail });
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: "an answer of vmm".to_owned(), after: PATIENCE });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Starts a guest with every device that there can be, and pauses it if that is wanted.
fn start(client: &Client, paused: bool) -> Result<()> {
    let put = |path: &str, body: Value| said(client.put(path, &body).and_then(Response::success));
    put("/boot-source", json!({"kernel_image_path": "/srv/vmlinux", "boot_args": "scenario=spin"}))?;
    let rootfs = json!({"drive_id": "rootfs", "is_root_device": true, "path_on_host": "/srv/rootfs.ext4"});
    put("/drives/rootfs", rootfs)?;
    if Path::new("/dev/net/tun").exists() {
        put("/network-interfaces/eth0", json!({"iface_id": "eth0", "host_dev_name": "tap0"}))?;
        put("/mmds/config", json!({"network_interfaces": ["eth0"]}))?;
    }
    put("/vsock", json!({"guest_cid": 3, "uds_path": "/run/guest.sock"}))?;
    put("/entropy", json!({}))?;
    let balloon = json!({
        "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true,
    });
    put("/balloon", balloon)?;
    put("/actions", json!({"action_type": "InstanceStart"}))?;
    if paused {
        let body = json!({"state": "Paused"});
        said(client.patch("/vm", &body).and_then(Response::success))?;
    }
    Ok(())
}

/// The answer, or what was wrong with it as an error of this program.
fn said<T>(answer: std::result::Result<T, ClientError>) -> Result<T> {
    answer.map_err(|error| Error::Protocol(chain(&error)))
}
