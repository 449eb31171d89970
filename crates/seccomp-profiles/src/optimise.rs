//! Shorter programs that mean the same. Serves the compiler, which the build script includes with this file.
//!
//! seccompiler tests for one system call after the other and jumps to jumps. The kernel runs a new program once for each
//! number there is, to learn which calls it always allows, and translates each instruction; most of what a start of the
//! monitor pays for its filters is that. Here jumps lead straight to where they end, each result is there once, nothing is
//! loaded twice in a row, and one of many values is found by bisection.

use std::collections::{BTreeMap, BTreeSet};

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use seccompiler::sock_filter;

const LOAD: u16 = (BPF_LD | BPF_W | BPF_ABS) as u16;
const MASK: u16 = (BPF_ALU | BPF_AND | BPF_K) as u16;
const JUMP: u16 = (BPF_JMP | BPF_JA) as u16;
const RETURN: u16 = (BPF_RET | BPF_K) as u16;
const EQUAL: u16 = (BPF_JMP | BPF_JEQ | BPF_K) as u16;
const AT_LEAST: u16 = (BPF_JMP | BPF_JGE | BPF_K) as u16;

/// Values that are compared one after the other at the end of a bisection.
const IN_A_ROW: usize = 3;

/// An instruction, with the steps to go on with. Steps are known by their position among all that were made; a step only
/// leads to steps that were made before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Return(u32),
    /// The value under test becomes four bytes of the system call, from here on.
    Load(u32, usize),
    /// Only these bits of it remain.
    Mask(u32, usize),
    /// Goes on with the first step if the comparison with this value holds, else with the second.
    Branch(u16, u32, usize, usize),
}

/// The same program in fewer instructions; as it was, where it is none of seccompiler's or would become too long for its
/// jumps.
pub fn optimise(program: Vec<sock_filter>) -> Vec<sock_filter> {
    match Steps::of(&program).and_then(Steps::emit) {
        Some(shorter) if shorter.len() < program.len() => shorter,
        _ => program,
    }
}

#[derive(Default)]
struct Steps {
    all: Vec<Step>,
    known: BTreeMap<Step, usize>,
    /// What [`Steps::loaded`] has found, by what it was asked.
    loaded: BTreeMap<(u32, usize), usize>,
}

impl Steps {
    /// The steps of a program, its first step last.
    fn of(program: &[sock_filter]) -> Option<Self> {
        let mut steps = Self::default();
        // The step of each instruction, from the last one on: jumps only lead forwards.
        let mut at = BTreeMap::new();
        for (index, instruction) in program.iter().enumerate().rev() {
            let target = |distance: usize| at.get(&index.checked_add(distance)?.checked_add(1)?).copied();
            let sock_filter { code, k, .. } = *instruction;
            let step = match code {
                RETURN => steps.add(Step::Return(k)),
                JUMP => target(k as usize)?,
                LOAD => {
                    let next = steps.loaded(k, target(0)?)?;
                    steps.add(Step::Load(k, next))
                }
                MASK => steps.add(Step::Mask(k, target(0)?)),
                code if u32::from(code) & 7 == BPF_JMP => {
                    let (yes, no) = (target(instruction.jt.into())?, target(instruction.jf.into())?);
                    steps.add(Step::Branch(code, k, yes, no))
                }
                _ => return None,
            };
            at.insert(index, step);
        }
        let first = steps.bisect(*at.get(&0)?, &mut BTreeMap::new())?;
        let first = *steps.all.get(first)?;
        steps.all.push(first);
        Some(steps)
    }

    /// The position of `step`, which is made if it is new.
    fn add(&mut self, step: Step) -> usize {
        *self.known.entry(step).or_insert_with(|| {
            self.all.push(step);
            self.all.len().saturating_sub(1)
        })
    }

    /// The step at `position`, for when the value under test is known to be that of `offset`.
    fn loaded(&mut self, offset: u32, position: usize) -> Option<usize> {
        if let Some(found) = self.loaded.get(&(offset, position)) {
            return Some(*found);
        }
        let found = match *self.all.get(position)? {
            Step::Load(same, next) if same == offset => self.loaded(offset, next)?,
            Step::Branch(code, k, yes, no) => {
                let (yes, no) = (self.loaded(offset, yes)?, self.loaded(offset, no)?);
                self.add(Step::Branch(code, k, yes, no))
            }
            _ => position,
        };
        self.loaded.insert((offset, position), found);
        Some(found)
    }

    /// The step at `position` and all behind it, with rows of comparisons made into trees.
    fn bisect(&mut self, position: usize, done: &mut BTreeMap<usize, usize>) -> Option<usize> {
        if let Some(done) = done.get(&position) {
            return Some(*done);
        }
        let step = match *self.all.get(position)? {
            step @ Step::Return(_) => step,
            Step::Load(offset, next) => Step::Load(offset, self.bisect(next, done)?),
            Step::Mask(mask, next) => Step::Mask(mask, self.bisect(next, done)?),
            Step::Branch(EQUAL, ..) => {
                let mut row = BTreeMap::new();
                let mut rest = position;
                while let Step::Branch(EQUAL, value, yes, no) = *self.all.get(rest)? {
                    // A value that was asked for before is not found here.
                    row.entry(value).or_insert(yes);
                    rest = no;
                }
                let otherwise = self.bisect(rest, done)?;
                let mut cases = Vec::new();
                for (value, yes) in row {
                    cases.push((value, self.bisect(yes, done)?));
                }
                let tree = self.tree(&cases, otherwise);
                *self.all.get(tree)?
            }
            Step::Branch(code, value, yes, no) => {
                Step::Branch(code, value, self.bisect(yes, done)?, self.bisect(no, done)?)
            }
        };
        let new = self.add(step);
        done.insert(position, new);
        Some(new)
    }

    /// Finds the step for a value among `cases`, which are in order.
    fn tree(&mut self, cases: &[(u32, usize)], otherwise: usize) -> usize {
        if cases.len() <= IN_A_ROW {
            return cases
                .iter()
                .rev()
                .fold(otherwise, |no, (value, yes)| self.add(Step::Branch(EQUAL, *value, *yes, no)));
        }
        let (low, high) = cases.split_at(cases.len().div_euclid(2));
        let middle = high.first().map_or(0, |(value, _)| *value);
        let (high, low) = (self.tree(high, otherwise), self.tree(low, otherwise));
        self.add(Step::Branch(AT_LEAST, middle, high, low))
    }

    /// The instructions; `None` when a jump is too long.
    fn emit(self) -> Option<Vec<sock_filter>> {
        let mut order = Vec::new();
        self.visit(self.all.len().checked_sub(1)?, &mut BTreeSet::new(), &mut order)?;
        order.reverse();
        // Only a branch says where it goes on: what comes elsewhere behind another step needs a jump.
        let needs_jump = |place: usize, step: Step| match step {
            Step::Load(_, next) | Step::Mask(_, next) => order.get(place.saturating_add(1)) != Some(&next),
            Step::Return(_) | Step::Branch(..) => false,
        };
        let mut places = BTreeMap::new();
        let mut len: usize = 0;
        for (place, position) in order.iter().enumerate() {
            places.insert(*position, len);
            let jump = needs_jump(place, *self.all.get(*position)?);
            len = len.saturating_add(1).saturating_add(jump.into());
        }
        let mut program = Vec::new();
        for (place, position) in order.iter().enumerate() {
            let step = *self.all.get(*position)?;
            let statement = |code, k| sock_filter { code, jt: 0, jf: 0, k };
            let distance = |program: &Vec<sock_filter>, target: usize| {
                places.get(&target)?.checked_sub(program.len())?.checked_sub(1)
            };
            let instruction = match step {
                Step::Return(k) => statement(RETURN, k),
                Step::Load(k, _) => statement(LOAD, k),
                Step::Mask(k, _) => statement(MASK, k),
                Step::Branch(code, k, yes, no) => sock_filter {
                    code,
                    jt: u8::try_from(distance(&program, yes)?).ok()?,
                    jf: u8::try_from(distance(&program, no)?).ok()?,
                    k,
                },
            };
            program.push(instruction);
            if let Step::Load(_, next) | Step::Mask(_, next) = step
                && needs_jump(place, step)
            {
                program.push(statement(JUMP, u32::try_from(distance(&program, next)?).ok()?));
            }
        }
        Some(program)
    }

    /// Puts all steps that are reached from `position` in an order in which each comes before those that lead to it.
    fn visit(&self, position: usize, seen: &mut BTreeSet<usize>, order: &mut Vec<usize>) -> Option<()> {
        if seen.insert(position) {
            match *self.all.get(position)? {
                Step::Return(_) => {}
                Step::Load(_, next) | Step::Mask(_, next) => self.visit(next, seen, order)?,
                Step::Branch(_, _, yes, no) => {
                    self.visit(no, seen, order)?;
                    self.visit(yes, seen, order)?;
                }
            }
            order.push(position);
        }
        Some(())
    }
}
