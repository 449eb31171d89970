//! What the tests share: the profiles as they are written, read without the help of what compiles them, and children that
//! are bound to filters.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use kindling_seccomp_profiles::Thread;
use serde_json::Value;
use syscalls::Sysno;

pub const THREADS: [(Thread, &str); 5] = [
    (Thread::Vmm, "vmm"),
    (Thread::Api, "api"),
    (Thread::Vcpu, "vcpu"),
    (Thread::Io, "io"),
    (Thread::Vsock, "vsock"),
];

/// A condition of a rule.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    pub index: usize,
    /// The bits of the argument that are looked at.
    pub mask: u64,
    pub is_at_most: bool,
    pub value: u64,
}

impl Condition {
    pub fn holds(&self, arguments: &[u64; 6]) -> bool {
        let argument = arguments[self.index] & self.mask;
        if self.is_at_most { argument <= self.value } else { argument == self.value }
    }
}

/// What has to hold for a rule; nothing for one that takes any arguments.
pub type Rule = Vec<Condition>;

/// The rules of one kind of thread by the number of the system call.
#[derive(Debug)]
pub struct Profile(pub BTreeMap<u32, Vec<Rule>>);

impl Profile {
    /// The profile as it is written.
    pub fn read(thread: &str) -> Self {
        let mut rules = BTreeMap::<_, Vec<_>>::new();
        for name in [thread, "every"] {
            let text: Value = serde_json::from_str(&text(name)).unwrap();
            let filter = &text[name];
            assert_eq!(
                (&filter["mismatch_action"], &filter["match_action"]),
                (&"trap".into(), &"allow".into())
            );
            for rule in filter["filter"].as_array().unwrap() {
                assert!(rule["comment"].as_str().is_some_and(|text| text.len() > 5), "{rule}");
                let number = rule["syscall"].as_str().unwrap().parse::<Sysno>().unwrap() as u32;
                let conditions = rule.get("args").map(|args| args.as_array().unwrap().as_slice());
                let conditions = conditions.unwrap_or_default().iter().map(condition).collect();
                rules.entry(number).or_default().push(conditions);
            }
        }
        Self(rules)
    }

    /// The same without arguments.
    pub fn calls_only(&self) -> Self {
        Self(self.0.keys().map(|number| (*number, vec![vec![]])).collect())
    }

    pub fn allows(&self, number: u32, arguments: &[u64; 6]) -> bool {
        let holds = |rule: &Rule| rule.iter().all(|condition| condition.holds(arguments));
        self.0.get(&number).is_some_and(|rules| rules.iter().any(holds))
    }
}

fn condition(json: &Value) -> Condition {
    assert!(json["comment"].as_str().is_some_and(|text| !text.is_empty()), "{json}");
    let width = match json["type"].as_str().unwrap() {
        "dword" => u64::from(u32::MAX),
        "qword" => u64::MAX,
        other => panic!("{other}"),
    };
    let (mask, is_at_most) = match &json["op"] {
        Value::String(op) if op == "eq" => (width, false),
        Value::String(op) if op == "le" => (width, true),
        op => (width & op["masked_eq"].as_u64().unwrap(), false),
    };
    let index = json["index"].as_u64().unwrap() as usize;
    Condition { index, mask, is_at_most, value: json["val"].as_u64().unwrap() }
}

/// The text of a profile.
pub fn text(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "profiles/x86_64", name].iter().collect();
    fs::read_to_string(path.with_extension("json")).unwrap()
}

/// The texts of all profiles.
pub fn texts() -> Vec<String> {
    THREADS.iter().map(|(_, name)| *name).chain(["every"]).map(text).collect()
}

/// Runs `body` in a child with a pipe to write to, and returns what it wrote and how it ended. The process has other
/// threads: `body` must neither allocate nor lock anything.
pub fn in_child(body: impl FnOnce(i32)) -> (Vec<u8>, ExitStatus) {
    let (mut reader, writer) = io::pipe().unwrap();
    // SAFETY: the child only does what is async-signal-safe, and ends without running anything of this process.
    match unsafe { libc::fork() } {
        0 => {
            body(writer.as_raw_fd());
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => {
            assert!(child > 0, "{}", io::Error::last_os_error());
            drop(writer);
            let mut written = Vec::new();
            reader.read_to_end(&mut written).unwrap();
            let mut status = 0;
            // SAFETY: the call writes one number.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            (written, ExitStatus::from_raw(status))
        }
    }
}

/// Binds the calling process to a program, without a look at it. Returns whether the kernel took it.
pub fn bind(program: &[[u8; 8]]) -> bool {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: both calls only read what they are given: numbers, and a program of that length.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) == 0
    }
}

/// An instruction.
pub fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> [u8; 8] {
    let [low, high] = (code as u16).to_le_bytes();
    let [k0, k1, k2, k3] = k.to_le_bytes();
    [low, high, jt, jf, k0, k1, k2, k3]
}
