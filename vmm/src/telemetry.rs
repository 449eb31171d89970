//! What the monitor tells of itself: metrics, to a file and to who asks, and events to who listens.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kindling_api::Reply;
use kindling_api::server::{EventSender, ServerMetrics};
use kindling_api::{MetricsConfig, Phase};
use kindling_metrics::{Group, Header, Metrics, OPEN_METRICS_CONTENT_TYPE, json, metrics, open_metrics};
use serde_json::json as object;

use crate::log_sink;
use crate::metrics_sink::MetricsSink;
use crate::outcome::Outcome;
use crate::process_metrics::ProcessMetrics;

/// How often metrics are written.
const INTERVAL: Duration = Duration::from_secs(60);

metrics! {
    /// What became of the requests for one action.
    struct ActionMetrics {
        /// Requests that succeeded.
        done: Counter,
        /// Requests that were refused.
        refused: Counter,
        /// How long it took to act on them.
        latency: Latency,
    }
}

metrics! {
    /// How the process started.
    struct StartMetrics {
        /// Microseconds from when the process was started until its API could be used, or its guest was started.
        startup_us: Gauge,
        /// Microseconds of processor time from when the process was started until then.
        startup_cpu_us: Gauge,
    }
}

/// Metrics of the monitor itself, and where all metrics and events go.
pub struct Telemetry {
    id: String,
    config: Option<MetricsConfig>,
    sink: Option<MetricsSink>,
    /// When metrics are to be written next.
    due: Option<Instant>,
    process: Arc<ProcessMetrics>,
    start: Arc<StartMetrics>,
    /// By the name of the action; of those that were asked for.
    actions: BTreeMap<&'static str, Arc<ActionMetrics>>,
    server: Option<Arc<ServerMetrics>>,
    events: Option<EventSender>,
}

impl Telemetry {
    /// Telemetry of the machine called `id`, whose API has these metrics and takes these events.
    pub fn new(id: String, api: Option<(Arc<ServerMetrics>, EventSender)>) -> Self {
        let (server, events) = api.unzip();
        Telemetry {
            id,
            config: None,
            sink: None,
            due: None,
            process: Arc::new(ProcessMetrics::new(Instant::now())),
            start: Arc::default(),
            actions: BTreeMap::new(),
            server,
            events,
        }
    }

    /// The name of the machine.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Writes metrics every minute from now on.
    pub fn write_to(&mut self, config: &MetricsConfig) -> io::Result<()> {
        self.sink = Some(MetricsSink::open(&config.metrics_path)?);
        self.config = Some(config.clone());
        self.due = Instant::now().checked_add(INTERVAL);
        Ok(())
    }

    /// The process is ready for what it was started for, so long after its start.
    pub fn started(&self, wall: Duration, cpu: Duration) {
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.start.startup_us.set(microseconds(wall));
        self.start.startup_cpu_us.set(microseconds(cpu));
    }

    /// A request was acted on.
    pub fn acted(&mut self, action: &'static str, latency: Duration, done: bool) {
        let metrics = self.actions.entry(action).or_default();
        if done {
            metrics.done.increment()
        } else {
            metrics.refused.increment()
        };
        metrics.latency.record(latency);
    }

    /// How long the event loop may wait before metrics are due.
    pub fn wait(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Whether it is time to write metrics; if so, the next time is a minute from now.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            self.due = now.checked_add(INTERVAL);
        }
        due
    }

    /// Writes metrics now, `groups` and its own. Nothing happens where they were not asked for.
    ///
    /// # Errors
    ///
    /// Why the line is lost.
    pub fn write(&mut self, groups: Vec<Group>) -> io::Result<()> {
        let groups = self.with_own(groups);
        let (Some(sink), Some(config)) = (&mut self.sink, &self.config) else { return Ok(()) };
        let header = Header {
            utc_timestamp_ms: utc_ms(),
            id: config.emit_id.then_some(&self.id),
            properties: Some(&config.properties).filter(|properties| !properties.is_empty()),
        };
        sink.write(&json(&groups, &header))
    }

    /// The reply to `GET /metrics`.
    pub fn reply(&self, groups: Vec<Group>) -> Reply {
        Reply::Text { content_type: OPEN_METRICS_CONTENT_TYPE, body: open_metrics(&self.with_own(groups)) }
    }

    fn with_own(&self, mut groups: Vec<Group>) -> Vec<Group> {
        let mut add = |subsystem, id: Option<&str>, metrics: Arc<dyn Metrics>| {
            groups.push(Group { subsystem, id: id.map(str::to_owned), metrics });
        };
        add("process", None, self.process.clone());
        add("process", None, self.start.clone());
        add("logger", None, log_sink::metrics());
        if let Some(sink) = &self.sink {
            add("metrics", None, sink.metrics());
        }
        if let Some(server) = &self.server {
            add("api", None, server.clone());
        }
        for (action, metrics) in &self.actions {
            add("api_action", Some(action), metrics.clone());
        }
        groups
    }

    /// The machine is in another phase now.
    pub fn phase_changed(&self, phase: Phase) {
        self.event(|| object!({"event": "state", "state": phase}));
    }

    /// The guest has ended.
    pub fn ended(&self, outcome: &Outcome) {
        self.event(
            || object!({"event": "ended", "reason": outcome.to_string(), "exit_code": outcome.exit_code()}),
        );
    }

    fn event(&self, event: impl FnOnce() -> serde_json::Value) {
        if let Some(events) = &self.events {
            let mut event = event();
            if let Some(members) = event.as_object_mut() {
                members.insert("timestamp_ms".to_owned(), utc_ms().into());
            }
            events.send(event.to_string());
        }
    }
}

/// Milliseconds since 1970.
fn utc_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_written_every_minute_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics");
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count();
        let write_if_due = |telemetry: &mut Telemetry| {
            if telemetry.is_due() {
                telemetry.write(Vec::new()).unwrap();
            }
        };
        let mut telemetry = Telemetry::new("m".to_owned(), None);
        assert_eq!(telemetry.wait(), None, "nothing is due as long as nobody wants metrics");
        telemetry.write_to(&MetricsConfig::new(path.clone())).unwrap();
        let almost_a_minute = Duration::from_secs(50)..=Duration::from_secs(60);
        write_if_due(&mut telemetry);
        assert_eq!(lines(), 0);
        for minutes in 1..=2 {
            assert!(almost_a_minute.contains(&telemetry.wait().unwrap()));
            telemetry.due = Some(Instant::now());
            assert_eq!(telemetry.wait(), Some(Duration::ZERO));
            write_if_due(&mut telemetry);
            assert_eq!(lines(), minutes);
        }
    }
}
