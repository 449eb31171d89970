//! `vmm doctor` on the machine at hand, on which guests run.

use kindling_integration_tests::harness::{Ended, Vmm};

use crate::process::{LIMIT, program};

fn doctor(arguments: &[&str]) -> Ended {
    Vmm::with_program(program(), arguments).run(LIMIT).unwrap()
}

#[test]
fn both_forms_and_the_exit_code_agree() {
    let (text, json) = (doctor(&["doctor"]), doctor(&["doctor", "--json"]));
    assert_eq!((text.stderr.as_str(), json.stderr.as_str()), ("", ""));
    let diagnosis: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let verdict = diagnosis["verdict"].as_str().unwrap();
    let code = match verdict {
        "usable" => 0,
        "emulated" => 2,
        other => panic!("verdict {other:?}"),
    };
    assert_eq!((text.code(), json.code()), (Some(code), Some(code)));

    let summary = format!("{verdict}: {}", diagnosis["summary"].as_str().unwrap());
    assert_eq!(text.stdout.lines().last(), Some(summary.as_str()));
    // Details may change from one run to the next; a check and its outcome do not.
    let checks = diagnosis["checks"].as_array().unwrap();
    let expected: Vec<_> = checks
        .iter()
        .map(|check| [check["status"].as_str().unwrap(), check["check"].as_str().unwrap()])
        .collect();
    let is_check = |line: &&str| !line.starts_with(' ') && **line != summary;
    let shown: Vec<[&str; 2]> = text
        .stdout
        .lines()
        .filter(is_check)
        .map(|line| {
            let mut words = line.split_whitespace();
            [(); 2].map(|()| words.next().unwrap())
        })
        .collect();
    assert_eq!(shown, expected);
}
