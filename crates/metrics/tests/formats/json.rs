use std::collections::BTreeMap;

use kindling_metrics::{Header, json};
use serde_json::{Value, json as value};

use super::machine;

#[test]
fn a_line_has_an_object_for_each_group_by_subsystem_and_id() {
    let line = json(&machine("data"), &Header { utc_timestamp_ms: 1_739_000_000_000, ..Header::default() });
    assert!(!line.contains('\n'));
    let expected = value!({
        "utc_timestamp_ms": 1_739_000_000_000_u64,
        "block_rootfs": {
            "reads": 3,
            "read_bytes": 4096,
            "read_latency": {
                "count": 3,
                "sum_us": 20_000_021,
                "buckets_us": {"10": 1, "20": 1, "inf": 1},
            },
            "in_flight": 2,
            "resets": 1,
        },
        "block_data": {
            "reads": 0,
            "read_bytes": 0,
            "read_latency": {"count": 0, "sum_us": 0, "buckets_us": {}},
            "in_flight": 0,
            "resets": 0,
        },
        "memory": {"used_bytes": 0},
    });
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
}

#[test]
fn a_line_names_the_machine_and_the_operators_properties_when_asked_to() {
    let properties =
        BTreeMap::from([("a\"b".to_owned(), "c\\d\n\u{1}é".to_owned()), ("e".to_owned(), String::new())]);
    let header = Header { utc_timestamp_ms: 7, id: Some("vm-1{"), properties: Some(&properties) };
    let line = json(&[], &header);
    assert!(!line.contains('\n'));
    let expected = value!({
        "utc_timestamp_ms": 7,
        "id": "vm-1{",
        "properties": {"a\"b": "c\\d\n\u{1}é", "e": ""},
    });
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
}

#[test]
fn an_id_cannot_end_its_name_early() {
    let id = "x\":{},\"memory";
    let line: Value = serde_json::from_str(&json(&machine(id), &Header::default())).unwrap();
    assert_eq!(line[format!("block_{id}")]["reads"], 0);
    assert_eq!(line.as_object().unwrap().len(), 4);
}
