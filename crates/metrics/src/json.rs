//! The form that is written to a file or FIFO: one line of JSON each time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::latency::BOUNDS;
use crate::{Distribution, Group, Value};

/// What a line says besides the groups.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header<'a> {
    /// When the metrics were read, in milliseconds since 1970.
    pub utc_timestamp_ms: u64,
    /// Whose they are, if the lines shall say so: field `id`.
    pub id: Option<&'a str>,
    /// Whatever else the reader wants to find in each line: field `properties`.
    pub properties: Option<&'a BTreeMap<String, String>>,
}

/// The present values of `groups` as an object on one line, without a line feed.
///
/// Each group is an object called by its subsystem, followed by `_` and its id if it has one.
pub fn json(groups: &[Group], header: &Header<'_>) -> String {
    let mut text = String::from("{\"utc_timestamp_ms\":");
    push(&mut text, header.utc_timestamp_ms);
    if let Some(id) = header.id {
        text.push_str(",\"id\":");
        push_string(&mut text, id);
    }
    if let Some(properties) = header.properties {
        text.push_str(",\"properties\":{");
        for (name, value) in properties {
            push_key(&mut text, name);
            push_string(&mut text, value);
        }
        text.push('}');
    }
    let mut groups: Vec<&Group> = groups.iter().collect();
    groups.sort_by(|a, b| a.key().cmp(&b.key()));
    for same in groups.chunk_by(|a, b| a.key() == b.key()) {
        let Some(Group { subsystem, id, .. }) = same.first() else { continue };
        match id {
            Some(id) => push_key(&mut text, &format!("{subsystem}_{id}")),
            None => push_key(&mut text, subsystem),
        }
        text.push('{');
        for group in same {
            group.metrics.visit(&mut |name, _, value| {
                push_key(&mut text, name);
                match value {
                    Value::Counter(value) | Value::Gauge(value) => push(&mut text, value),
                    Value::Latency(distribution) => push_distribution(&mut text, &distribution),
                }
            });
        }
        text.push('}');
    }
    text.push('}');
    text
}

/// Only buckets that are in use, for most devices need few, and a FIFO has room for 64 KiB.
fn push_distribution(text: &mut String, distribution: &Distribution) {
    text.push('{');
    push_key(text, "count");
    push(text, distribution.count());
    push_key(text, "sum_us");
    push(text, distribution.sum_ns / 1_000);
    push_key(text, "buckets_us");
    text.push('{');
    let bounds = BOUNDS.iter().map(|(nanoseconds, _)| Some(nanoseconds / 1_000)).chain([None]);
    for (bound, count) in bounds.zip(distribution.buckets).filter(|(_, count)| *count != 0) {
        match bound {
            Some(microseconds) => push_key(text, &microseconds.to_string()),
            None => push_key(text, "inf"),
        }
        push(text, count);
    }
    text.push_str("}}");
}

/// A member's name, behind a comma if it is not the object's first.
fn push_key(text: &mut String, key: &str) {
    if !text.ends_with('{') {
        text.push(',');
    }
    push_string(text, key);
    text.push(':');
}

fn push(text: &mut String, number: u64) {
    // Writing to a String cannot fail.
    let _ = write!(text, "{number}");
}

fn push_string(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\0'..='\x1f' => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            _ => text.push(c),
        }
    }
    text.push('"');
}
