//! The form that is served to a monitoring system: the text format of OpenMetrics 1.0
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::latency::BOUNDS;
use crate::{Distribution, Group, Value};

/// The media type of what [`open_metrics`] returns.
pub const OPEN_METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the same metric of several groups is called, and its values.
struct Family<'a> {
    help: &'static str,
    /// The group's id, and the value.
    metrics: Vec<(Option<&'a str>, Value)>,
}

/// The present values of `groups`.
///
/// A metric is called `kindling_`, its subsystem, `_` and its name, followed by `_seconds` if it is a latency, and has the
/// label `id` if its group has one.
pub fn open_metrics(groups: &[Group]) -> String {
    // All metrics of a family have to stand together.
    let mut families: BTreeMap<(&str, &str), Family<'_>> = BTreeMap::new();
    for group in groups {
        group.metrics.visit(&mut |name, help, value| {
            let family = families.entry((group.subsystem, name));
            let family = family.or_insert_with(|| Family { help, metrics: Vec::new() });
            family.metrics.push((group.id.as_deref(), value));
        });
    }
    let mut text = String::new();
    for ((subsystem, name), family) in families {
        push_family(&mut text, format!("kindling_{subsystem}_{name}"), &family);
    }
    text.push_str("# EOF\n");
    text
}

fn push_family(text: &mut String, mut name: String, family: &Family<'_>) {
    let kind = match family.metrics.first() {
        Some((_, Value::Counter(_))) => "counter",
        Some((_, Value::Gauge(_))) => "gauge",
        Some((_, Value::Latency(_))) => {
            name.push_str("_seconds");
            "histogram"
        }
        None => return,
    };
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "# TYPE {name} {kind}");
    if let Some((_, unit @ ("bytes" | "seconds"))) = name.rsplit_once('_') {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
    let _ = writeln!(text, "# HELP {name} {}", escaped(family.help));
    for (id, value) in &family.metrics {
        let id = id.map(|id| format!("id=\"{}\"", escaped(id)));
        let labels = id.as_ref().map(|id| format!("{{{id}}}")).unwrap_or_default();
        let _ = match value {
            Value::Counter(value) => writeln!(text, "{name}_total{labels} {value}"),
            Value::Gauge(value) => writeln!(text, "{name}{labels} {value}"),
            Value::Latency(distribution) => {
                let before = id.map(|id| id + ",").unwrap_or_default();
                push_buckets(text, &name, &before, distribution);
                let Distribution { sum_ns, .. } = distribution;
                let (seconds, nanoseconds) = (sum_ns / 1_000_000_000, sum_ns % 1_000_000_000);
                let _ = writeln!(text, "{name}_count{labels} {}", distribution.count());
                writeln!(text, "{name}_sum{labels} {seconds}.{nanoseconds:09}")
            }
        };
    }
}

/// Each bucket counts what is in those before it too. `before` are the other labels.
fn push_buckets(text: &mut String, name: &str, before: &str, distribution: &Distribution) {
    let mut up_to_here = 0;
    for (bound, count) in BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]).zip(distribution.buckets) {
        up_to_here += count;
        let _ = writeln!(text, "{name}_bucket{{{before}le=\"{bound}\"}} {up_to_here}");
    }
}

/// `text` as the format wants it in a label or a description.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}
