//! Which lines of a source file are tests.
//!
//! The source is formatted as rustfmt does it, so that indentation says where an item ends.

use std::ops::Range;
use std::path::Path;

const ATTRIBUTE: &str = "#[cfg(test)]";

/// Names of modules that are there for tests alone.
const TEST_MODULES: [&str; 2] = ["tests", "test_utils"];

/// Whether a file is part of a module for tests.
pub fn is_test_file(path: &Path) -> bool {
    let is_test = |name: &std::ffi::OsStr| TEST_MODULES.iter().any(|module| name == *module);
    path.file_stem().is_some_and(is_test) || path.iter().any(is_test)
}

/// The lines, from 1 on, of items that are compiled for tests alone.
pub fn test_lines(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((start, line)) = lines.next() {
        let item = line.trim_start();
        if item != ATTRIBUTE {
            continue;
        }
        let indentation = &line[..line.len() - item.len()];
        let last = lines.find(|(_, line)| ends_item(line, indentation));
        found.push(start + 1..last.map_or(usize::MAX, |(last, _)| last + 2));
    }
    found
}

/// Whether an item of this indentation has its last line here, and not only an attribute of its own.
fn ends_item(line: &str, indentation: &str) -> bool {
    let outermost = line.strip_prefix(indentation).filter(|rest| !rest.starts_with(' '));
    outermost.is_some_and(|rest| rest.ends_with(['}', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_for_tests_end_where_their_indentation_does() {
        let text = "\
            fn shipped() {\n}\n\n\
            #[cfg(test)]\nmod tests {\n    use super::*;\n\n    fn one() {\n    }\n}\n\
            fn shipped() {}\n\
            impl Some {\n    #[cfg(test)]\n    #[inline]\n    fn helper() {\n        a;\n    }\n\n    fn shipped() {\n    }\n}\n\
            #[cfg(test)]\nmod other;\nfn shipped() {}\n#[cfg(test)]\nfn unfinished() {\n";
        let lines = test_lines(text);
        assert_eq!(lines[..3], [4..11, 13..18, 22..24]);
        assert_eq!(lines[3].start, 25);
        assert!(lines[3].contains(&26));
        assert_eq!(lines.len(), 4);
        assert!(test_lines("#[cfg(feature = \"a\")]\nmod tests {\n}\n").is_empty());
    }

    #[test]
    fn files_of_modules_for_tests_are_known_by_name() {
        for path in ["src/tests.rs", "src/x86_64/tests.rs", "src/tests/one.rs", "src/test_utils/mod.rs"] {
            assert!(is_test_file(Path::new(path)), "{path}");
        }
        for path in ["src/lib.rs", "src/attests.rs", "src/tests_of_ram.rs"] {
            assert!(!is_test_file(Path::new(path)), "{path}");
        }
    }
}
