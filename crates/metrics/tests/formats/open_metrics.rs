//! Readers of the format are strict: one that finds a mistake drops everything it was sent. So the text is read back by the
//! specification's rules.

use std::collections::BTreeMap;

use kindling_metrics::open_metrics;

use super::machine;

/// A family as read back: its samples' names (without the family's), labels and values.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    unit: Option<String>,
    help: String,
    samples: Vec<(String, Labels, String)>,
}

type Labels = BTreeMap<String, String>;

impl Family {
    fn value(&self, suffix: &str, id: Option<&str>) -> &str {
        let is_it = |labels: &Labels| labels.get("id").map(String::as_str) == id;
        let sample = self.samples.iter().find(|(each, labels, _)| each == suffix && is_it(labels));
        &sample.unwrap().2
    }
}

/// Reads an exposition, and panics where it breaks a rule.
fn read(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    let body = text.strip_suffix("# EOF\n").unwrap();
    for line in body.lines() {
        if let Some(metadata) = line.strip_prefix("# ") {
            let [keyword, name, rest] = metadata.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
            if keyword == "TYPE" {
                assert!(!families.contains_key(name), "{name} is not in one piece");
                families.insert(name.to_owned(), Family { kind: rest.to_owned(), ..Family::default() });
                name.clone_into(&mut current);
            }
            assert_eq!(name, current, "{line}");
            let family = families.get_mut(name).unwrap();
            assert!(family.samples.is_empty(), "{line}: comes too late");
            match keyword {
                "TYPE" => assert!(["counter", "gauge", "histogram"].contains(&rest), "{line}"),
                "UNIT" => {
                    assert!(name.ends_with(&format!("_{rest}")) && family.help.is_empty(), "{line}");
                    assert_eq!(family.unit.replace(rest.to_owned()), None);
                }
                "HELP" => assert_eq!(std::mem::replace(&mut family.help, unescape(rest)), ""),
                _ => panic!("{line}"),
            }
            continue;
        }
        let end_of_name = line.find(['{', ' ']).unwrap();
        let suffix = line[..end_of_name].strip_prefix(current.as_str()).unwrap();
        let family = families.get_mut(&current).unwrap();
        let allowed: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            _ => &["_bucket", "_count", "_sum"],
        };
        assert!(allowed.contains(&suffix), "{line}");
        let (labels, value) = read_labels(&line[end_of_name..]);
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
        assert!(
            !family.samples.iter().any(|sample| sample.0 == suffix && sample.1 == labels),
            "{line}: again"
        );
        family.samples.push((suffix.to_owned(), labels, value.to_owned()));
    }
    families.values().filter(|family| family.kind == "histogram").for_each(check_histogram);
    families
}

/// Reads what follows a sample's name: its labels, and its value.
fn read_labels(text: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    let Some(mut rest) = text.strip_prefix('{') else { return (labels, text.strip_prefix(' ').unwrap()) };
    loop {
        let (name, quoted) = rest.split_once("=\"").unwrap();
        let escapes = |end: usize| quoted[..end].bytes().rev().take_while(|byte| *byte == b'\\').count();
        let end = quoted.match_indices('"').map(|(at, _)| at).find(|at| escapes(*at) % 2 == 0).unwrap();
        assert_eq!(labels.insert(name.to_owned(), unescape(&quoted[..end])), None);
        match quoted[end + 1..].strip_prefix(',') {
            Some(next) => rest = next,
            None => return (labels, quoted[end + 1..].strip_prefix("} ").unwrap()),
        }
    }
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut plain = String::new();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(c @ ('"' | '\\')) => c,
                other => panic!("{text:?}: escapes {other:?}"),
            },
            '"' => panic!("{text:?}: a bare quotation mark"),
            c => c,
        });
    }
    plain
}

/// The samples of each metric stand together, buckets first and in order, and what the last counts is the count.
fn check_histogram(family: &Family) {
    let mut samples = family.samples.iter().peekable();
    while samples.peek().is_some() {
        let (mut bound, mut up_to_here) = (f64::NEG_INFINITY, 0);
        let mut id = None;
        while bound != f64::INFINITY {
            let (suffix, labels, value) = samples.next().unwrap();
            let next_bound: f64 = labels["le"].parse().unwrap();
            let next: u64 = value.parse().unwrap();
            assert!(suffix == "_bucket" && next_bound > bound && next >= up_to_here, "{labels:?} {value}");
            (bound, up_to_here, id) = (next_bound, next, labels.get("id"));
        }
        let (count, sum) = (samples.next().unwrap(), samples.next().unwrap());
        assert_eq!((count.0.as_str(), &count.2, count.1.get("id")), ("_count", &up_to_here.to_string(), id));
        assert!(sum.0 == "_sum" && sum.1.get("id") == id && sum.2.contains('.'));
    }
}

#[test]
fn all_groups_metrics_of_one_name_are_one_family() {
    let text = open_metrics(&machine("data"));
    let families = read(&text);
    let kinds: Vec<_> = families.iter().map(|(name, family)| (name.as_str(), family.kind.as_str())).collect();
    assert_eq!(
        kinds,
        [
            ("kindling_block_in_flight", "gauge"),
            ("kindling_block_read_bytes", "counter"),
            ("kindling_block_read_latency_seconds", "histogram"),
            ("kindling_block_reads", "counter"),
            ("kindling_block_resets", "counter"),
            ("kindling_memory_used_bytes", "gauge"),
        ]
    );
    let reads = &families["kindling_block_reads"];
    assert_eq!((reads.value("_total", Some("rootfs")), reads.value("_total", Some("data"))), ("3", "0"));
    assert_eq!(families["kindling_block_resets"].value("_total", Some("rootfs")), "1");
    assert_eq!(families["kindling_memory_used_bytes"].value("", None), "0");
}

#[test]
fn units_and_descriptions_are_told_where_there_are_any() {
    let families = read(&open_metrics(&machine("data")));
    let unit = |name: &str| families[name].unit.as_deref();
    assert_eq!(unit("kindling_block_read_bytes"), Some("bytes"));
    assert_eq!(unit("kindling_block_read_latency_seconds"), Some("seconds"));
    assert_eq!(unit("kindling_block_reads"), None);
    assert_eq!(families["kindling_block_read_bytes"].help, "Bytes read by them, \"\\\" included.");
}

#[test]
fn a_latency_has_its_samples_in_all_buckets_that_are_wide_enough() {
    let families = read(&open_metrics(&machine("data")));
    let latency = &families["kindling_block_read_latency_seconds"];
    let bucket = |bound: &str| {
        let is_it = |labels: &Labels| labels["id"] == "rootfs" && labels["le"] == bound;
        let found = latency.samples.iter().find(|(suffix, labels, _)| suffix == "_bucket" && is_it(labels));
        found.unwrap().2.as_str()
    };
    assert_eq!(["1e-05", "2e-05", "0.001", "10.0", "+Inf"].map(bucket), ["1", "2", "2", "2", "3"]);
    assert_eq!(latency.value("_sum", Some("rootfs")), "20.000021000");
    assert_eq!(latency.value("_count", Some("data")), "0");
}

#[test]
fn an_id_cannot_end_its_label_early() {
    for id in ["a\"} 7\nb", "\\", "ends with \\\"", "\n"] {
        let families = read(&open_metrics(&machine(id)));
        assert_eq!(families["kindling_block_reads"].value("_total", Some(id)), "0");
        assert_eq!(families["kindling_block_read_latency_seconds"].value("_sum", Some(id)), "0.000000000");
    }
}

#[test]
fn no_groups_are_an_exposition_too() {
    assert_eq!(open_metrics(&[]), "# EOF\n");
}
