//! Pause and resume: what the guest, its clock and the API notice.

use std::time::{Duration, Instant};

use kindling_integration_tests::harness::scaled;
use serde_json::json;

use super::Api;
use crate::process::{LIMIT, images, until};

/// Time stamps a second, as the guest counts them too.
fn time_stamps_per_second() -> f64 {
    // SAFETY: every x86-64 processor has the instruction.
    let now = || unsafe { std::arch::x86_64::_rdtsc() };
    let both = |_| {
        let (before, clock) = (now(), Instant::now());
        (now() - before, before, clock)
    };
    // Of several readings of both clocks, the one that took least, and so was not interrupted.
    let read = || (0..5).map(both).min().unwrap();
    let (_, ticks, start) = read();
    std::thread::sleep(Duration::from_millis(50));
    let (_, later, end) = read();
    (later - ticks) as f64 / (end - start).as_secs_f64()
}

/// The guest's scenario `heartbeat`.
pub struct Heart {
    per_second: f64,
}

/// A line of it.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    pub number: u64,
    /// The longest time for which the guest stood still.
    pub gap: Duration,
}

impl Heart {
    /// A guest that says ten times a second that it lives.
    pub fn start() -> (Api, Self) {
        let per_second = time_stamps_per_second();
        let scenario = format!("heartbeat ticks={}", (per_second / 10.0) as u64);
        (Api::running(&scenario, "beat 2 "), Self { per_second })
    }

    /// All that the guest has said so far.
    pub fn beats(&self, api: &Api) -> Vec<Beat> {
        let output = api.vmm.output();
        // The last line may not be there as a whole.
        let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let beat = |line: &str| {
            let (number, gap) = line.strip_prefix("beat ")?.split_once(' ')?;
            let gap: f64 = gap.parse().ok()?;
            Some(Beat { number: number.parse().ok()?, gap: Duration::from_secs_f64(gap / self.per_second) })
        };
        whole.lines().map(|line| beat(line).unwrap_or_else(|| panic!("{line:?}"))).collect()
    }
}

#[test]
fn a_paused_guest_stands_still_while_its_clock_goes_on() {
    let (api, heart) = Heart::start();
    api.make("Paused");
    let before = heart.beats(&api).len();
    std::thread::sleep(Duration::from_secs(1));
    // What it had said before may reach us later. Running, it says ten.
    assert!(heart.beats(&api).len() < before + 5, "{:?}", heart.beats(&api));
    assert_eq!(api.state(), "Paused");
    api.make("Resumed");
    let stood_still = |beat: &Beat| beat.gap >= Duration::from_millis(900);
    until("the guest notices its pause", || heart.beats(&api)[before..].iter().any(stood_still));
    let beats = heart.beats(&api);
    assert!(beats.iter().zip(1..).all(|(beat, number)| beat.number == number), "{beats:?}");
    api.terminate();
}

#[test]
fn quick_pauses_and_resumes_take_effect_whatever_the_guest_does() {
    for scenario in ["spin", "ports", "halt"] {
        let mut api = Api::new(&[]);
        api.done("PUT", "/machine-config", &json!({"vcpu_count": 4, "mem_size_mib": 128}));
        api.done(
            "PUT",
            "/drives/a",
            &json!({"drive_id": "a", "is_root_device": false, "path_on_host": api.disk("a")}),
        );
        api.done("PUT", "/balloon", &json!({"amount_mib": 0, "deflate_on_oom": false}));
        match scenario {
            "halt" => api.done("PUT", "/boot-source", &json!({"kernel_image_path": images().mark})),
            _ => api.boot(scenario),
        }
        api.action("InstanceStart");
        api.vmm.wait_for(match scenario {
            "halt" => "!",
            "spin" => "spinning",
            _ => "reading",
        });
        let mut connection = api.connect();
        let start = Instant::now();
        for round in 0..300 {
            for state in ["Paused", "Resumed"] {
                let body = format!("{{\"state\": {state:?}}}");
                let answer = connection.request("PATCH", "/vm", &body).unwrap();
                assert_eq!(answer, (204, String::new()), "{scenario}, round {round}");
            }
        }
        // A vCPU that misses its kick holds up a pause for seconds.
        assert!(start.elapsed() < scaled(LIMIT) / 4, "{scenario}: {:?}", start.elapsed());
        api.terminate();
    }
}

#[test]
fn a_paused_vcpu_costs_no_processor_time_and_one_that_was_paused_runs_at_full_speed() {
    let (api, heart) = Heart::start();
    (0..20).for_each(|_| ["Paused", "Resumed"].iter().for_each(|state| api.make(state)));
    api.make("Paused");
    let before = api.vmm.processor_time();
    std::thread::sleep(Duration::from_millis(300));
    let used = api.vmm.processor_time() - before;
    assert!(used < Duration::from_millis(30), "{used:?} of processor time");
    api.make("Resumed");
    // A kick that is never taken back would have KVM leave the guest again and again: many times slower.
    let (beats, start) = (heart.beats(&api).len(), Instant::now());
    until("the guest goes on", || heart.beats(&api).len() >= beats + 4);
    assert!(start.elapsed() < scaled(Duration::from_secs(10)), "four beats took {:?}", start.elapsed());
    api.terminate();
}
