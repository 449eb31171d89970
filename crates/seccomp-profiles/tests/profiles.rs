//! The filters against the kernel: what each thread may do is what its profile says, and nothing else.
//!
//! A child is bound to two filters, first to one that has every system call fail with an error that nothing else has, then
//! to the one under test. The kernel does what the more severe of the two says: a call that the profile allows fails with
//! that error and does nothing, one that it forbids raises SIGSYS. So all calls can be made, with any arguments.

#![allow(clippy::panic, clippy::unwrap_used, reason = "the tests' helpers fail as the tests do")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Profile, Rule, THREADS, bind, in_child, instruction};
use kindling_seccomp_profiles::{Filters, Level, Thread, name};
use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_int};

/// No call of the kernel fails with this.
const ALLOWED: i32 = 3999;

/// More than any system call has, and more than there will be soon.
const NUMBERS: u32 = 600;

/// With this bit, numbers are those of the x32 ABI.
const X32: u32 = 0x4000_0000;

/// The code with which a child ends that has made all its calls.
const DONE: i32 = 77;

/// What goes where a rule does not look.
const FILLERS: [u64; 3] = [0, u64::MAX, 0x5555_5555_aaaa_aaaa];

/// What a child does: a system call. The profile allows it or not.
struct Call {
    number: u32,
    arguments: [u64; 6],
    is_allowed: bool,
}

/// Has every call fail but what binds a thread to another filter (no profile allows that), a write to `report`, an end with
/// [`DONE`] and the return of a handler.
fn everything_fails(report: u32) -> [[u8; 8]; 18] {
    let load = |offset| instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
    let skip_unless = |value, count| instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, count, value);
    let end = |action| instruction(BPF_RET | BPF_K, 0, 0, action);
    let [allow, fail] = [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ERRNO | ALLOWED as u32].map(end);
    [
        load(0),
        skip_unless(libc::SYS_rt_sigreturn as u32, 1),
        allow,
        skip_unless(libc::SYS_seccomp as u32, 1),
        allow,
        skip_unless(libc::SYS_prctl as u32, 3),
        load(16),
        skip_unless(libc::PR_SET_NO_NEW_PRIVS as u32, 9),
        allow,
        skip_unless(libc::SYS_write as u32, 3),
        load(16),
        skip_unless(report, 5),
        allow,
        skip_unless(libc::SYS_exit_group as u32, 3),
        load(16),
        skip_unless(DONE as u32, 1),
        allow,
        fail,
    ]
}

static TRAPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn trap(_: c_int) {
    TRAPPED.store(true, Ordering::SeqCst);
}

/// Makes all calls in a child that is bound to the filter for `thread`.
fn make(filters: &Filters, thread: Thread, calls: &[Call]) {
    let (wrong, status) = in_child(|report| {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(libc::SIGSYS, trap as extern "C" fn(c_int) as libc::sighandler_t) };
        if !bind(&everything_fails(report as u32)) || filters.install(thread).is_err() {
            return;
        }
        for (index, call) in (0_u32..).zip(calls) {
            TRAPPED.store(false, Ordering::SeqCst);
            let [a, b, c, d, e, f] = call.arguments;
            // SAFETY: no call is carried out: each fails or traps.
            let result = unsafe { libc::syscall(i64::from(call.number), a, b, c, d, e, f) };
            // SAFETY: the pointer is to this thread's error number.
            let failed = result == -1 && unsafe { *libc::__errno_location() } == ALLOWED;
            if TRAPPED.load(Ordering::SeqCst) == call.is_allowed || failed != call.is_allowed {
                // SAFETY: writes four bytes that live across the call.
                unsafe { libc::write(report, (&raw const index).cast(), 4) };
            }
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(DONE) };
    });
    assert_eq!(status.code(), Some(DONE), "{thread:?}: the child did not come to its end: {status}");
    let wrong: Vec<String> = wrong
        .as_chunks()
        .0
        .iter()
        .map(|index| &calls[u32::from_ne_bytes(*index) as usize])
        .map(|Call { number, arguments, is_allowed }| {
            format!("{number:#x} {:?} {arguments:x?} should be allowed: {is_allowed}", name(*number))
        })
        .collect();
    assert!(wrong.is_empty(), "{thread:?}: {} of {}: {:#?}", wrong.len(), calls.len(), wrong.get(..10));
}

/// The arguments that satisfy `rule`, with `filler` in the places where it does not look.
fn satisfy(rule: &Rule, filler: u64) -> [u64; 6] {
    let mut arguments = [filler; 6];
    for condition in rule {
        let argument = &mut arguments[condition.index];
        *argument = *argument & !condition.mask | condition.value;
    }
    arguments
}

/// The calls by which the kernel's probes of user programs return (uretprobe and uprobe): kernels that have them do not
/// ask filters about them, and end who makes them.
const PROBES: [u32; 2] = [335, 336];

/// Handlers return by `rt_sigreturn`, with which nothing else can be done. That they do return shows that it is allowed.
fn can_be_made(number: u32) -> bool {
    i64::from(number) != libc::SYS_rt_sigreturn && !PROBES.contains(&number)
}

/// Calls of all numbers, whatever their arguments.
fn every_number(profile: &Profile) -> Vec<Call> {
    let numbers = (0..NUMBERS).chain((0..NUMBERS).map(|number| number | X32));
    let numbers =
        numbers.chain([i32::MAX as u32, i32::MIN as u32, u32::MAX]).filter(|number| can_be_made(*number));
    let calls = numbers.flat_map(|number| FILLERS.map(|filler| (number, [filler; 6])));
    calls.map(|(number, arguments)| call(profile, number, arguments)).collect()
}

fn call(profile: &Profile, number: u32, arguments: [u64; 6]) -> Call {
    Call { number, arguments, is_allowed: profile.allows(number, &arguments) }
}

#[test]
fn without_arguments_a_thread_can_make_the_calls_of_its_profile_and_no_others() {
    let filters = Filters::embedded(Level::Calls);
    for (thread, name) in THREADS {
        let profile = Profile::read(name).calls_only();
        let calls = every_number(&profile);
        let allowed = calls.iter().filter(|call| call.is_allowed).count();
        assert_eq!(allowed, FILLERS.len() * (profile.0.len() - 1), "all of them but rt_sigreturn");
        make(&filters, thread, &calls);
    }
}

#[test]
fn with_arguments_a_thread_can_make_no_calls_but_those_of_its_profile() {
    let filters = Filters::embedded(Level::Arguments);
    for (thread, name) in THREADS {
        make(&filters, thread, &every_number(&Profile::read(name)));
    }
}

#[test]
fn every_rule_allows_what_it_says_and_not_a_bit_more() {
    let filters = Filters::embedded(Level::Arguments);
    for (thread, name) in THREADS {
        let profile = Profile::read(name);
        let mut calls = Vec::new();
        let rules =
            profile.0.iter().flat_map(|(number, rules)| rules.iter().map(move |rule| (*number, rule)));
        for (number, rule) in rules.filter(|(number, _)| can_be_made(*number)) {
            let mut forbidden = 0;
            for filler in FILLERS {
                let good = satisfy(rule, filler);
                calls.push(Call { number, arguments: good, is_allowed: true });
                for condition in rule {
                    let changes = (0..u64::BITS).map(|bit| good[condition.index] ^ 1 << bit);
                    for changed in changes.chain([good[condition.index].wrapping_add(1)]) {
                        let mut arguments = good;
                        arguments[condition.index] = changed;
                        let call = call(&profile, number, arguments);
                        forbidden += usize::from(!call.is_allowed);
                        calls.push(call);
                    }
                }
            }
            assert!(
                rule.is_empty() || forbidden > 20 * rule.len(),
                "{name}: a rule for {number} that forbids nothing"
            );
        }
        make(&filters, thread, &calls);
    }
}

/// What the profiles mean, which they cannot be asked themselves.
#[test]
fn the_sockets_devices_thread_alone_can_connect_to_unix_sockets_and_none_can_to_others() {
    const KIND: libc::c_int = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let filters = Filters::embedded(Level::Arguments);
    for (thread, _) in THREADS {
        let is_its = thread == Thread::Vsock;
        let call = |number: i64, [first, second]: [u64; 2], is_allowed| Call {
            number: number as u32,
            arguments: [first, second, 0, 0, 0, 0],
            is_allowed,
        };
        let socket = |domain: libc::c_int, is_allowed| {
            call(libc::SYS_socket, [domain as u64, KIND as u64], is_allowed)
        };
        let calls = [
            socket(libc::AF_UNIX, is_its),
            call(libc::SYS_connect, [3, 0x1000], is_its),
            socket(libc::AF_INET, false),
            socket(libc::AF_INET6, false),
            socket(libc::AF_NETLINK, false),
            socket(libc::AF_VSOCK, false),
        ];
        make(&filters, thread, &calls);
    }
}

/// What a rule means, which the profile itself cannot be asked.
#[test]
fn no_thread_can_make_or_empty_a_file() {
    let filters = Filters::embedded(Level::Arguments);
    for (thread, _) in THREADS {
        let calls = [libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE].map(|flags| Call {
            number: libc::SYS_openat as u32,
            arguments: [libc::AT_FDCWD as u64, 0x1000, (libc::O_RDWR | flags) as u64, 0o600, 0, 0],
            is_allowed: false,
        });
        make(&filters, thread, &calls);
    }
}

#[test]
fn no_rule_is_there_twice() {
    for (_, name) in THREADS {
        for (number, rules) in Profile::read(name).0 {
            for (index, rule) in rules.iter().enumerate() {
                let arguments = satisfy(rule, 0);
                let others = rules.iter().enumerate().filter(|(other, _)| *other != index);
                let same =
                    others.filter(|(_, other)| other.iter().all(|condition| condition.holds(&arguments)));
                assert_eq!(same.count(), 0, "{name}: system call {number}, rule {index}");
            }
        }
    }
}

#[test]
fn without_a_filter_everything_is_allowed() {
    let everything = (0..NUMBERS).filter(|number| can_be_made(*number));
    let calls: Vec<_> =
        everything.map(|number| Call { number, arguments: [u64::MAX; 6], is_allowed: true }).collect();
    let not_the_first = |call: &Call| i64::from(call.number) != libc::SYS_seccomp;
    let calls: Vec<_> = calls.into_iter().filter(not_the_first).collect();
    make(&Filters::embedded(Level::Off), Thread::Vcpu, &calls);
}

/// The system calls of 32-bit programs have other numbers.
#[test]
fn calls_of_32_bit_programs_end_the_process() {
    for level in [Level::Calls, Level::Arguments] {
        let filters = Filters::embedded(level);
        let (_, status) = in_child(|_| {
            if filters.install(Thread::Io).is_ok() {
                // SAFETY: this is getpid of the 32-bit ABI, which touches no memory.
                unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
            }
        });
        // A kernel without them has no such interrupt.
        assert!(matches!(status.signal(), Some(libc::SIGSYS | libc::SIGSEGV)), "{status}");
    }
}
