//! How a run of the monitor ends: the ways out of a guest, and the exit code that tells them apart.
//!
//! The codes 1, 148, 152 and 153 are the ones that supervisors of Firecracker already know. The codes from 160 on are
//! Kindling's own; 128 + N after a signal is the shell's convention. `docs/exit-codes.md` is the operator's table.

use std::fmt;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::EventFd;

/// Why the guest stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off (ACPI S5), or the operator left the console by its escape key.
    PowerOff,
    /// The guest asked for a reset, through the ACPI reset register or the keyboard controller.
    Reset,
    /// A vCPU triple-faulted.
    TripleFault {
        /// Index of the vCPU.
        vcpu: u8,
    },
    /// KVM could not go on running a vCPU; the registers are in the log.
    KvmInternalError {
        /// Index of the vCPU.
        vcpu: u8,
        /// What KVM said.
        detail: String,
    },
    /// A vCPU's thread could not be confined, and did not run its guest.
    Unconfined {
        /// Index of the vCPU.
        vcpu: u8,
        /// What the host said.
        detail: String,
    },
    /// The monitor received a signal that asks it to end.
    Signal(i32),
}

/// The guest ended by itself, or was ended by its console: nothing went wrong.
pub const EXIT_OK: u8 = 0;
/// The host failed while it set up or ran the guest (a system call, a file, memory).
pub const EXIT_HOST_ERROR: u8 = 1;
/// A thread made a system call that its filter forbids.
pub const EXIT_FORBIDDEN_CALL: u8 = kindling_seccomp_profiles::EXIT_FORBIDDEN;
/// The configuration (file or options) asks for something that cannot be.
pub const EXIT_BAD_CONFIGURATION: u8 = 152;
/// The command line could not be understood.
pub const EXIT_BAD_ARGUMENTS: u8 = 153;
/// The guest triple-faulted.
pub const EXIT_TRIPLE_FAULT: u8 = 160;
/// KVM reported an internal error or refused to enter the guest.
pub const EXIT_KVM_INTERNAL_ERROR: u8 = 161;
/// `/dev/kvm` is missing, not permitted, or lacks what the monitor needs.
pub const EXIT_KVM_UNAVAILABLE: u8 = 162;

impl Outcome {
    /// The process's exit code for this outcome.
    pub fn exit_code(&self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Reset => EXIT_OK,
            Outcome::TripleFault { .. } => EXIT_TRIPLE_FAULT,
            Outcome::KvmInternalError { .. } => EXIT_KVM_INTERNAL_ERROR,
            Outcome::Unconfined { .. } => EXIT_HOST_ERROR,
            // Only signals below 32 are ever watched, so the sum stays below 160.
            Outcome::Signal(number) => 128u8.saturating_add(u8::try_from(*number).unwrap_or(0)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PowerOff => f.write_str("the guest powered off"),
            Outcome::Reset => f.write_str("the guest asked for a reset"),
            Outcome::TripleFault { vcpu } => write!(f, "vCPU {vcpu} triple-faulted"),
            Outcome::KvmInternalError { vcpu, detail } => write!(f, "KVM cannot run vCPU {vcpu}: {detail}"),
            Outcome::Unconfined { vcpu, detail } => {
                write!(f, "cannot confine the thread of vCPU {vcpu}: {detail}")
            }
            Outcome::Signal(number) => write!(f, "ended by signal {number}"),
        }
    }
}

/// Where any thread reports that the guest has ended; the first report counts.
///
/// The event loop waits on [`OutcomeSlot::event`], vCPU threads look at [`OutcomeSlot::is_set`] after every exit.
#[derive(Debug)]
pub struct OutcomeSlot {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl OutcomeSlot {
    /// An empty slot; fails when no eventfd can be had.
    pub fn new() -> std::io::Result<Self> {
        Ok(OutcomeSlot {
            outcome: OnceLock::new(),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Records `outcome` unless another one came first, and wakes the event loop.
    pub fn report(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            // The counter goes from 0 to 1 once in its life, so this cannot fail for want of room.
            if let Err(error) = self.event.write(1) {
                log::error!("cannot wake the event loop: {error}");
            }
        }
    }

    /// Whether the guest has ended.
    pub fn is_set(&self) -> bool {
        self.outcome.get().is_some()
    }

    /// How the guest ended, once it has.
    pub fn get(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Readable once the guest has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_counts_and_wakes_the_loop_once() {
        let slot = OutcomeSlot::new().unwrap();
        assert!(!slot.is_set());
        slot.report(Outcome::TripleFault { vcpu: 3 });
        slot.report(Outcome::PowerOff);
        assert_eq!(slot.get(), Some(&Outcome::TripleFault { vcpu: 3 }));
        assert_eq!(slot.event().read().unwrap(), 1);
        assert!(slot.event().read().is_err());
    }

    #[test]
    fn every_way_out_has_its_documented_code() {
        let detail = String::new();
        for (outcome, code) in [
            (Outcome::PowerOff, 0),
            (Outcome::Reset, 0),
            (Outcome::TripleFault { vcpu: 0 }, 160),
            (Outcome::KvmInternalError { vcpu: 0, detail }, 161),
            (Outcome::Signal(libc::SIGINT), 130),
            (Outcome::Signal(libc::SIGTERM), 143),
        ] {
            assert_eq!(outcome.exit_code(), code, "{outcome}");
        }
    }
}
