//! The REST API of `vmm` as its clients see it, with the bare-metal guest behind it.

mod calls;
mod ending;
mod files;
mod limits;
mod load;
mod phases;
mod start;
mod telemetry;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kindling_api::client::{Client, Response};
use kindling_integration_tests::harness::{Connection, Tap, scaled};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{LIMIT, Vmm, command, images, until};

/// A `vmm` that serves its API.
pub struct Api {
    pub vmm: Vmm,
    pub client: Client,
    folder: TempDir,
}

impl Api {
    /// `vmm` with its API and these options besides.
    pub fn new(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut vmm = command(&["--api-sock"]);
        vmm.arg(folder.path().join("api")).args(options);
        Self::start(&mut vmm, folder)
    }

    /// Starts a command that serves its API at `api` in the folder.
    pub fn start(command: &mut Command, folder: TempDir) -> Self {
        let path = folder.path().join("api");
        let vmm = Vmm::start(command);
        let api = Self { vmm, client: Client::new(&path).with_timeout(LIMIT), folder };
        until("the API is there", || api.client.get("/").is_ok());
        api
    }

    /// A `vmm` whose guest does `scenario`, and has said `ready`.
    fn running(scenario: &str, ready: &str) -> Self {
        let mut api = Self::new(&[]);
        api.boot(scenario);
        api.action("InstanceStart");
        api.vmm.wait_for(ready);
        api
    }

    /// A path in the test's folder.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An empty disk in the test's folder.
    pub fn disk(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.path("api")).unwrap()
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Response {
        let answer = match method {
            "GET" => self.client.get(path),
            "PUT" => self.client.put(path, body),
            "PATCH" => self.client.patch(path, body),
            _ => panic!("{method}"),
        };
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// A call that succeeds without a word.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: &Value) {
        let response = self.call(method, path, body);
        assert_eq!((response.status, response.body.as_str()), (204, ""), "{method} {path} {body}");
    }

    /// A call that is refused: why.
    #[track_caller]
    fn refused(&self, method: &str, path: &str, body: &Value) -> String {
        let before = self.get("/vm/config");
        let response = self.call(method, path, body);
        let message = fault(&response);
        assert_eq!(response.status, 400, "{method} {path} {body}: {message}");
        assert_eq!(self.get("/vm/config"), before, "{method} {path} {body}: nothing has changed");
        message
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let response = self.call("GET", path, &Value::Null);
        assert_eq!(response.status, 200, "{path}: {}", response.body);
        response.json().unwrap()
    }

    fn state(&self) -> String {
        self.get("/")["state"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn boot(&self, scenario: &str) {
        self.done("PUT", "/boot-source", &boot_source(scenario));
    }

    #[track_caller]
    pub fn action(&self, name: &str) {
        self.done("PUT", "/actions", &json!({ "action_type": name }));
    }

    /// Has the guest be `Paused` or `Resumed`.
    #[track_caller]
    fn make(&self, state: &str) {
        self.done("PATCH", "/vm", &json!({ "state": state }));
    }

    /// The value of one metric.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.call("GET", "/metrics", &Value::Null).body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }

    /// What the process has open: device and inode.
    fn open_files(&self) -> Vec<(u64, u64)> {
        let folder = format!("/proc/{}/fd", self.vmm.id());
        let file = |entry: std::io::Result<fs::DirEntry>| fs::metadata(entry.ok()?.path()).ok();
        fs::read_dir(folder).unwrap().filter_map(file).map(|file| (file.dev(), file.ino())).collect()
    }

    fn has_open(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|file| self.open_files().contains(&(file.dev(), file.ino())))
    }

    /// Sends SIGTERM, which ends the process soon.
    pub fn terminate(mut self) {
        let start = Instant::now();
        self.vmm.signal(libc::SIGTERM);
        self.vmm.end(143);
        assert!(start.elapsed() < scaled(Duration::from_secs(5)), "the end took {:?}", start.elapsed());
    }
}

fn boot_source(scenario: &str) -> Value {
    json!({ "kernel_image_path": images().guest, "boot_args": format!("scenario={scenario}") })
}

/// The text of a refusal, which is JSON with nothing else in it, and one line.
#[track_caller]
fn fault(response: &Response) -> String {
    let body = response.json().unwrap_or_else(|error| panic!("{error}: {:?}", response.body));
    let members = body.as_object().unwrap();
    assert_eq!(members.keys().collect::<Vec<_>>(), ["fault_message"], "{body}");
    let message = members["fault_message"].as_str().unwrap().to_owned();
    assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
    message
}

/// A tap in a namespace of its own, where the tests are root's; else they do without a network.
fn tap() -> Option<Tap> {
    // SAFETY: geteuid takes nothing and cannot fail.
    (unsafe { libc::geteuid() } == 0).then(|| Tap::new("10.0.0.1/24", &[]).unwrap())
}
