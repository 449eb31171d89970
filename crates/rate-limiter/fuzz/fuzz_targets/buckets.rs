#![no_main]
//! A worker, an operator and a clock that goes where it likes share a limiter. Checked: what is admitted never exceeds
//! what size, burst and time allow; a refusal takes nothing and says the exact moment; a saved state is the limiter.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use arbitrary::Arbitrary;
use kindling_rate_limiter::{
    BucketConfig, BucketState, Clock, RateLimiter, RateLimiterState, TokenBucket, Update,
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Config {
    size: u64,
    refill_ns: u64,
    one_time_burst: u64,
    /// By how many bits the numbers above are too big.
    shift: u8,
}

impl From<Config> for BucketConfig {
    fn from(config: Config) -> Self {
        let [size, refill_ns, one_time_burst] = [config.size, config.refill_ns, config.one_time_burst]
            .map(|number| number >> (config.shift % 64));
        Self { size, refill_time: Duration::from_nanos(refill_ns), one_time_burst }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Change {
    Keep,
    Unlimited,
    Set(Config),
}

impl From<Change> for Update {
    fn from(change: Change) -> Self {
        match change {
            Change::Keep => Self::Keep,
            Change::Unlimited => Self::Unlimited,
            Change::Set(config) => Self::Set(config.into()),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct State {
    config: Config,
    burst_left: u64,
    missing_tokens: u64,
    missing_fraction: u64,
}

impl From<State> for BucketState {
    fn from(state: State) -> Self {
        let State { config, burst_left, missing_tokens, missing_fraction } = state;
        Self { config: config.into(), burst_left, missing_tokens, missing_fraction }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Consume {
        bytes: u64,
        shift: u8,
    },
    GiveBack,
    OnTimer,
    Advance(u16),
    SetClock(u64),
    Update(Change, Change),
    SaveAndRestore,
    /// A state from nowhere is refused, or is a limiter that can be used.
    Forge(Option<State>, Option<State>, u64),
}

#[derive(Clone, Default)]
struct Hands(Rc<Cell<u64>>);

impl Clock for Hands {
    fn now(&self) -> u64 {
        self.0.get()
    }
}

/// What one bucket has let through since it was set.
#[derive(Clone, Copy, Default)]
struct Account {
    config: Option<BucketConfig>,
    taken: u128,
    /// The most by which one request was bigger than the bucket.
    excess: u64,
    elapsed: u128,
    /// The latest moment that is in `elapsed`.
    latest: u64,
}

impl Account {
    fn update(&mut self, update: Update, now: u64) {
        match update {
            Update::Keep => {}
            Update::Unlimited => *self = Self::default(),
            Update::Set(config) => *self = Self { config: Some(config), latest: now, ..Self::default() },
        }
    }

    fn pass(&mut self, now: u64) {
        self.elapsed += u128::from(now.saturating_sub(self.latest));
        self.latest = self.latest.max(now);
    }

    fn give_back(&mut self, tokens: u64) {
        if self.config.is_some() {
            self.taken -= u128::from(tokens);
        }
    }

    fn take(&mut self, tokens: u64) {
        let Some(config) = self.config else { return };
        self.taken += u128::from(tokens);
        self.excess = self.excess.max(tokens.saturating_sub(config.size));
        let inflow = u128::from(config.size).saturating_mul(self.elapsed) / config.refill_time.as_nanos();
        let at_rest = u128::from(config.size) + u128::from(config.one_time_burst) + u128::from(self.excess);
        assert!(self.taken <= at_rest.saturating_add(inflow), "more than promised");
    }
}

/// The wait that a saved bucket calls for, by a clock of its own.
fn wait(state: Option<BucketState>, tokens: u64) -> u64 {
    let Some(state) = state else { return 0 };
    let mut bucket = TokenBucket::restore(&state, 0).unwrap();
    let wait = bucket.wait(tokens, 0);
    if wait > 0 && wait < u64::MAX {
        assert_eq!(bucket.wait(tokens, wait - 1), 1);
        assert_eq!(bucket.wait(tokens, wait), 0);
    }
    wait
}

/// Asks for `bytes` and checks the answer against the state before and after it.
fn consume(limiter: &mut RateLimiter<Hands>, bytes: u64) -> bool {
    let before = limiter.save();
    let due = wait(before.bandwidth, bytes) == 0 && wait(before.ops, 1) == 0;
    let admitted = limiter.consume(bytes);
    assert_eq!(admitted, due);
    assert_eq!(limiter.is_blocked(), !admitted);
    if !admitted {
        assert_eq!(limiter.save(), before, "refused, and yet something was taken");
        assert!(limiter.timer().is_some());
    }
    admitted
}

fuzz_target!(|steps: Vec<Step>| {
    let hands = Hands::default();
    let mut limiter = RateLimiter::with_clock(hands.clone());
    let mut accounts = [Account::default(); 2];
    let mut admitted = Vec::new();
    for step in steps.into_iter().take(256) {
        match step {
            Step::Consume { bytes, shift } => {
                let bytes = bytes >> (shift % 64);
                if consume(&mut limiter, bytes) {
                    accounts[0].take(bytes);
                    accounts[1].take(1);
                    admitted.push(bytes);
                }
            }
            Step::GiveBack => {
                if let Some(bytes) = admitted.pop() {
                    limiter.give_back(bytes);
                    accounts[0].give_back(bytes);
                    accounts[1].give_back(1);
                }
            }
            Step::OnTimer => {
                limiter.on_timer();
                assert!(!limiter.is_blocked());
            }
            Step::Advance(nanoseconds) => hands.0.set(hands.now().saturating_add(nanoseconds.into())),
            Step::SetClock(now) => hands.0.set(now),
            Step::Update(bandwidth, ops) => {
                let updates = [bandwidth.into(), ops.into()];
                let (before, timer) = (limiter.save(), limiter.timer());
                if limiter.update(updates[0], updates[1]).is_ok() {
                    accounts
                        .iter_mut()
                        .zip(updates)
                        .for_each(|(account, update)| account.update(update, hands.now()));
                    if updates != [Update::Keep; 2] {
                        // What the new bucket has not given cannot be given back to it.
                        admitted.clear();
                    }
                } else {
                    assert_eq!(limiter.save(), before, "refused, and yet something was changed");
                }
                assert!(timer.is_none() || limiter.timer() == timer);
            }
            Step::SaveAndRestore => {
                let state = limiter.save();
                limiter = RateLimiter::restore(&state, hands.clone()).unwrap();
                assert_eq!(limiter.save(), state);
                accounts.iter_mut().for_each(|account| account.latest = hands.now());
            }
            Step::Forge(bandwidth, ops, bytes) => {
                let state =
                    RateLimiterState { bandwidth: bandwidth.map(Into::into), ops: ops.map(Into::into) };
                if let Ok(mut forged) = RateLimiter::restore(&state, hands.clone()) {
                    assert_eq!(forged.save(), state);
                    consume(&mut forged, bytes);
                    forged.give_back(bytes);
                    assert!(RateLimiter::restore(&forged.save(), hands.clone()).is_ok());
                }
            }
        }
        accounts.iter_mut().for_each(|account| account.pass(hands.now()));
    }
});
