//! Compiles the filters, at both levels, and the names of system calls.
#![allow(clippy::expect_used, clippy::panic, reason = "a build fails so")]

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

use compile::{Arguments, compile};
use syscalls::x86_64::Sysno;

#[path = "src/compile.rs"]
mod compile;
#[allow(dead_code, reason = "some of it is the reader's")]
#[path = "src/format.rs"]
mod format;
#[path = "src/optimise.rs"]
mod optimise;

fn main() {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo says what it builds for");
    assert_eq!(arch, "x86_64", "there are no filters for {arch} yet");
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where output goes"));
    for path in ["build.rs", "src/compile.rs", "src/format.rs", "src/optimise.rs", "profiles"] {
        println!("cargo::rerun-if-changed={path}");
    }

    let texts: Vec<String> = format::THREADS
        .into_iter()
        .chain([compile::EVERY])
        .map(|name| fs::read_to_string(format!("profiles/{arch}/{name}.json")).expect("a filter"))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for (name, arguments) in [("calls", Arguments::Ignored), ("arguments", Arguments::Checked)] {
        let file = compile(&texts, arguments).unwrap_or_else(|error| panic!("profiles/{arch}: {error:?}"));
        fs::write(output.join(name), file).expect("a file can be written");
    }
    fs::write(output.join("names.rs"), names()).expect("a file can be written");
}

/// The names of all system calls as one text and where each ends, by number. A table of strings would be written to when
/// the program starts, since it is linked to run at any address.
fn names() -> String {
    let last = Sysno::last().id();
    let (mut all, mut ends) = (String::new(), String::new());
    for number in 0..=last {
        all.push_str(Sysno::new(number as usize).map_or("", |call| call.name()));
        write!(ends, "{}, ", all.len()).expect("a string grows");
    }
    format!("const ALL: &str = \"{all}\";\nconst ENDS: [u16; {}] = [{ends}];\n", last + 1)
}
