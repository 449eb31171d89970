//! What filters cost: each system call that a bound thread makes, and being bound.
#![allow(clippy::expect_used, reason = "a bench fails so")]

use std::io::{Read, Write};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use kindling_seccomp_profiles::{Filters, Level, Thread};

/// `KVM_RUN`: the first rule of a vCPU for ioctl(2).
const KVM_RUN: libc::Ioctl = 0xae80;

const LEVELS: [(&str, Level); 3] =
    [("level 0", Level::Off), ("level 1", Level::Calls), ("level 2", Level::Arguments)];

/// The processor time that `run` takes in a process of its own, which its filter binds to its end.
fn in_a_process(run: impl FnOnce()) -> Duration {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // SAFETY: this process has no other threads.
    match unsafe { libc::fork() } {
        0 => {
            let start = processor_time();
            run();
            let taken = processor_time().saturating_sub(start);
            let _ = writer.write_all(&taken.as_nanos().to_ne_bytes());
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => {
            drop(writer);
            let mut taken = [0; 16];
            reader.read_exact(&mut taken).expect("the child comes to its end");
            // SAFETY: a null pointer asks for no status.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            Duration::from_nanos(u128::from_ne_bytes(taken) as u64)
        }
    }
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`, and the pointer is to one.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn calls(criterion: &mut Criterion) {
    // Both fail at once, since there is no such descriptor.
    let calls: [(&str, fn()); 2] = [
        ("write", || {
            // SAFETY: nothing is read for a descriptor that is none.
            unsafe { libc::write(-1, std::ptr::null(), 0) };
        }),
        ("ioctl(KVM_RUN)", || {
            // SAFETY: nothing is read or written for a descriptor that is none.
            unsafe { libc::ioctl(-1, KVM_RUN, 0) };
        }),
    ];
    for (name, call) in calls {
        let mut group = criterion.benchmark_group(name);
        for (level_name, level) in LEVELS {
            group.bench_function(level_name, |bencher| {
                bencher.iter_custom(|count| {
                    in_a_process(|| {
                        Filters::embedded(level).install(Thread::Vcpu).expect("a filter");
                        (0..count).for_each(|_| call());
                    })
                });
            });
        }
        group.finish();
    }
}

fn install(criterion: &mut Criterion) {
    let threads = [
        ("vmm", Thread::Vmm),
        ("api", Thread::Api),
        ("vcpu", Thread::Vcpu),
        ("io", Thread::Io),
        ("vsock", Thread::Vsock),
    ];
    for (name, thread) in threads {
        let mut group = criterion.benchmark_group(format!("bind the {name} thread"));
        for (level_name, level) in &LEVELS[1..] {
            group.bench_function(*level_name, |bencher| {
                bencher.iter_custom(|count| {
                    let one =
                        |_| in_a_process(|| Filters::embedded(*level).install(thread).expect("a filter"));
                    (0..count).map(one).sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, calls, install);
criterion_main!(benches);
