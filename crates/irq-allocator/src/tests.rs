//! Tests of the allocator, among them one against a list of what is held.

use std::{collections::HashSet, thread};

use proptest::prelude::*;

use super::*;

fn gsis(lines: &[IrqLine]) -> Vec<u32> {
    lines.iter().map(IrqLine::gsi).collect()
}

#[test]
fn lines_are_exclusive_while_they_last() {
    let allocator = IrqAllocator::new(5, 3).unwrap();
    let lines: Vec<_> = (0..3).map(|_| allocator.allocate().unwrap()).collect();
    assert_eq!(gsis(&lines), [5, 6, 7]);
    assert!(lines.iter().all(|line| !line.is_shared()));
}

#[test]
fn lines_are_shared_evenly_when_they_have_run_out() {
    let allocator = IrqAllocator::new(5, 2).unwrap();
    let lines: Vec<_> = (0..5).map(|_| allocator.allocate().unwrap()).collect();
    assert_eq!(gsis(&lines), [5, 6, 5, 6, 5]);
    assert!(lines.iter().all(IrqLine::is_shared));
}

#[test]
fn dropped_line_is_handed_out_again() {
    let allocator = IrqAllocator::new(5, 2).unwrap();
    let first = allocator.allocate().unwrap();
    let second = allocator.allocate().unwrap();
    drop(first);
    assert_eq!(allocator.allocate().unwrap().gsi(), 5);
    drop(second);
}

#[test]
fn line_is_no_longer_shared_when_the_other_holder_leaves() {
    let allocator = IrqAllocator::new(5, 1).unwrap();
    let first = allocator.allocate().unwrap();
    let second = allocator.allocate().unwrap();
    assert!(first.is_shared() && second.is_shared());
    drop(first);
    assert!(!second.is_shared());
}

#[test]
fn reserved_line_is_neither_allocated_nor_shared() {
    let allocator = IrqAllocator::new(3, 3).unwrap();
    let serial = allocator.reserve(4).unwrap();
    let lines: Vec<_> = (0..4).map(|_| allocator.allocate().unwrap()).collect();
    assert_eq!(gsis(&lines), [3, 5, 3, 5]);
    assert_eq!(serial.gsi(), 4);
    assert!(!serial.is_shared());
}

#[test]
fn line_in_use_cannot_be_reserved() {
    let allocator = IrqAllocator::new(4, 2).unwrap();
    let line = allocator.allocate().unwrap();
    assert_eq!(allocator.reserve(4).unwrap_err(), Error::InUse { gsi: 4 });
    let reserved = allocator.reserve(5).unwrap();
    assert_eq!(allocator.reserve(5).unwrap_err(), Error::InUse { gsi: 5 });
    drop(line);
    drop(reserved);
    assert!(allocator.reserve(4).is_ok());
    assert!(allocator.reserve(5).is_ok());
}

#[test]
fn gsi_of_someone_else_cannot_be_reserved() {
    let allocator = IrqAllocator::new(5, 19).unwrap();
    for gsi in [0, 4, 24, u32::MAX] {
        let refused = allocator.reserve(gsi).unwrap_err();
        assert_eq!(refused, Error::UnknownGsi { gsi, first: 5, count: 19 });
    }
}

#[test]
fn allocating_fails_only_when_every_line_is_reserved() {
    let allocator = IrqAllocator::new(1, 2).unwrap();
    let keyboard = allocator.reserve(1).unwrap();
    let timer = allocator.reserve(2).unwrap();
    assert_eq!(allocator.allocate().unwrap_err(), Error::AllReserved { count: 2 });
    drop(timer);
    assert_eq!(allocator.allocate().unwrap().gsi(), 2);
    drop(keyboard);
}

#[test]
fn invalid_lines_are_refused() {
    for (first, count) in [(0, 0), (0, MAX_LINES + 1), (0, u32::MAX), (u32::MAX, 1), (u32::MAX - 1, 2)] {
        assert_eq!(IrqAllocator::new(first, count).unwrap_err(), Error::InvalidLines { first, count });
    }
    assert!(IrqAllocator::new(0, MAX_LINES).is_ok());
    assert_eq!(IrqAllocator::new(u32::MAX - 1, 1).unwrap().allocate().unwrap().gsi(), u32::MAX - 1);
}

#[test]
fn handle_outlives_the_allocator() {
    let allocator = IrqAllocator::new(5, 1).unwrap();
    let line = allocator.allocate().unwrap();
    drop(allocator);
    assert_eq!(line.gsi(), 5);
    assert!(!line.is_shared());
}

#[test]
fn threads_never_get_the_same_line_while_lines_last() {
    let allocator = IrqAllocator::new(0, 16).unwrap();
    for _ in 0..100 {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let allocator = allocator.clone();
                thread::spawn(move || (0..4).map(|_| allocator.allocate().unwrap()).collect::<Vec<_>>())
            })
            .collect();
        let lines: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(gsis(&lines).into_iter().collect::<HashSet<_>>().len(), 16);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate,
    Reserve(u32),
    Drop(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Allocate),
        1 => (0_u32..12).prop_map(Step::Reserve),
        2 => any::<prop::sample::Index>().prop_map(Step::Drop),
    ]
}

proptest! {
    #[test]
    fn allocator_agrees_with_a_list_of_what_is_held(
        count in 1_u32..8,
        steps in prop::collection::vec(step(), 0..100),
    ) {
        let first = 3;
        let allocator = IrqAllocator::new(first, count).unwrap();
        let mut lines: Vec<IrqLine> = Vec::new();
        // The GSI of every handle in `lines`, and whether it was reserved.
        let mut held: Vec<(u32, bool)> = Vec::new();
        let holders = |held: &[(u32, bool)], gsi| held.iter().filter(|entry| entry.0 == gsi).count();

        for step in steps {
            match step {
                Step::Allocate => {
                    let expected = (first..first + count)
                        .filter(|gsi| !held.contains(&(*gsi, true)))
                        .min_by_key(|gsi| (holders(&held, *gsi), *gsi));
                    let got = allocator.allocate().ok();
                    prop_assert_eq!(got.as_ref().map(IrqLine::gsi), expected);
                    held.extend(expected.map(|gsi| (gsi, false)));
                    lines.extend(got);
                }
                Step::Reserve(gsi) => {
                    let possible = (first..first + count).contains(&gsi) && holders(&held, gsi) == 0;
                    let got = allocator.reserve(gsi).ok();
                    prop_assert_eq!(got.as_ref().map(IrqLine::gsi), possible.then_some(gsi));
                    held.extend(got.as_ref().map(|line| (line.gsi(), true)));
                    lines.extend(got);
                }
                Step::Drop(index) if !lines.is_empty() => {
                    let index = index.index(lines.len());
                    lines.swap_remove(index);
                    held.swap_remove(index);
                }
                Step::Drop(_) => {}
            }
            for line in &lines {
                prop_assert_eq!(line.is_shared(), holders(&held, line.gsi()) > 1);
            }
        }
    }
}
