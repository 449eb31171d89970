//! The vCPU threads: each runs its guest processor, serves the exits that reach user space, and ends when the guest does.
//!
//! A thread is called out of the guest by [`Vcpu::kick`]: it makes the next `KVM_RUN` return at once and interrupts the
//! current one, so there is no moment at which the request could be missed. The [`Gate`] says what is wanted of it then.

use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::thread::JoinHandle;

use kindling_device_bus::Bus;
use kindling_seccomp_profiles::Thread;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::Killable;

use crate::confinement::Confinement;
use crate::error::one_line;
use crate::gate::Gate;
use crate::outcome::{Outcome, OutcomeSlot};
use crate::signals::kick_signal;

/// Room for the exits' handlers; nothing recurses there and nothing large lives on the stack.
const STACK_BYTES: usize = 256 << 10;

/// What every vCPU thread shares with the rest of the monitor.
#[derive(Clone)]
pub struct Shared {
    /// The port address space.
    pub ports: Arc<Bus>,
    /// The MMIO address space.
    pub mmio: Arc<Bus>,
    /// Where the end of the guest is reported.
    pub outcome: Arc<OutcomeSlot>,
    /// Whether they run.
    pub gate: Arc<Gate>,
    /// What they may do.
    pub confinement: Confinement,
}

/// A running vCPU thread.
pub struct Vcpu {
    thread: JoinHandle<VcpuFd>,
    immediate_exit: ImmediateExit,
}

impl Vcpu {
    /// Starts the thread of vCPU `index`, which runs until the guest has ended or the gate says so.
    pub fn start(index: u8, mut fd: VcpuFd, shared: Shared) -> io::Result<Self> {
        let immediate_exit = ImmediateExit::of(&mut fd);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu {index}"))
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // A panic that unwinds leaves it open: others may still kick this vCPU.
                let mut fd = ManuallyDrop::new(fd);
                match shared.confinement.apply(Thread::Vcpu) {
                    Ok(()) => {
                        let immediate_exit = ImmediateExit::of(&mut fd);
                        Runner { index, fd: &mut fd, immediate_exit, shared: &shared }.run();
                    }
                    Err(error) => {
                        let outcome = Outcome::Unconfined { vcpu: index, detail: one_line(&error) };
                        log::error!("{outcome}");
                        shared.outcome.report(outcome);
                        shared.gate.end();
                    }
                }
                ManuallyDrop::into_inner(fd)
            })?;
        Ok(Vcpu { thread, immediate_exit })
    }

    /// Has the thread leave the guest and look at the gate, which must be other than open by now.
    pub fn kick(&self) {
        self.immediate_exit.set(1);
        // Fails only for a thread that has ended already, which is what is wanted.
        let _ = self.thread.kill(kick_signal());
    }

    /// Waits for the thread's end.
    pub fn join(self) {
        // In a release build a panic aborts the process, so the only way for the thread to end is returning.
        let _ = self.thread.join();
    }
}

/// `kvm_run.immediate_exit` of a vCPU, reachable from outside of its thread.
struct ImmediateExit(NonNull<AtomicU8>);

impl ImmediateExit {
    fn of(fd: &mut VcpuFd) -> Self {
        // AtomicU8 has the layout of u8.
        ImmediateExit(NonNull::from(&mut fd.get_kvm_run().immediate_exit).cast())
    }

    fn set(&self, value: u8) {
        // SAFETY: the pointer leads into the `kvm_run` mapping of a `VcpuFd` that its thread owns, does not drop, and keeps
        // as its result until it is joined, and joining consumes the `Vcpu` that holds this value. All access to this byte
        // is atomic; KVM reads it when it enters the guest.
        unsafe { self.0.as_ref() }.store(value, Ordering::SeqCst);
    }
}

/// The loop of one vCPU thread.
struct Runner<'a> {
    index: u8,
    fd: &'a mut VcpuFd,
    immediate_exit: ImmediateExit,
    shared: &'a Shared,
}

/// An exit that cannot be finished while the exit still borrows the vCPU.
enum Rest {
    Nothing,
    Interrupted,
    Ports { port: u16, data: NonNull<[u8]>, input: bool },
    End(Outcome),
    InternalError,
}

impl Runner<'_> {
    fn run(mut self) {
        let shared = self.shared;
        while !shared.outcome.is_set() && shared.gate.pass(|| self.rest()) {
            if let Some(outcome) = self.enter() {
                // Before it is logged: whatever becomes of the log, the guest has ended.
                self.shared.outcome.report(outcome.clone());
                if matches!(outcome, Outcome::TripleFault { .. } | Outcome::KvmInternalError { .. }) {
                    log::error!("{outcome}");
                    self.log_registers();
                }
            }
        }
        // A guest that has ended rests no more: nobody shall wait for this thread at the gate.
        shared.gate.end();
    }

    /// The processor stops for a while: what its guest watches for stalls must not take it for one.
    fn rest(&mut self) {
        // Fails where the guest has no clock of KVM's, and so nothing to be told.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// `KVM_RUN` was interrupted, by a kick for all that is known. In this order, a kick that comes from now on is not
    /// lost: the gate, which it follows, is looked at afterwards.
    fn interrupted(&mut self) {
        self.immediate_exit.set(0);
        fence(Ordering::SeqCst);
    }

    /// Enters the guest once and serves its exit; tells how the guest ended if it did.
    fn enter(&mut self) -> Option<Outcome> {
        let rest = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => Rest::Ports { port, data: data.into(), input: true },
            Ok(VcpuExit::IoOut(port, data)) => Rest::Ports { port, data: data.into(), input: false },
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.shared.mmio.read(address, data);
                Rest::Nothing
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.shared.mmio.write(address, data);
                Rest::Nothing
            }
            Ok(VcpuExit::Shutdown) => Rest::End(Outcome::TripleFault { vcpu: self.index }),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Rest::End(Outcome::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Rest::End(Outcome::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                Rest::End(self.broken("the guest reported a crash"))
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => Rest::End(self.broken(&format!(
                "the processor refused to enter the guest on CPU {cpu}, reason {reason:#x}"
            ))),
            Ok(VcpuExit::InternalError) => Rest::InternalError,
            Ok(VcpuExit::Intr) => Rest::Interrupted,
            Ok(exit) => {
                let detail = format!("an exit that nothing here asks for: {exit:?}");
                Rest::End(self.broken(&detail))
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Rest::Interrupted,
            Err(error) => Rest::End(self.broken(&format!("KVM_RUN: {error}"))),
        };
        match rest {
            Rest::Nothing => None,
            Rest::Interrupted => {
                self.interrupted();
                None
            }
            Rest::Ports { port, data, input } => {
                self.ports(port.into(), data, input);
                None
            }
            Rest::End(outcome) => Some(outcome),
            Rest::InternalError => {
                let detail = self.internal_error();
                Some(self.broken(&detail))
            }
        }
    }

    fn broken(&self, detail: &str) -> Outcome {
        Outcome::KvmInternalError { vcpu: self.index, detail: detail.to_owned() }
    }

    /// Serves a port access. One exit of a string instruction (`REP OUTSB`) carries many accesses to one port.
    fn ports(&mut self, port: u64, data: NonNull<[u8]>, input: bool) {
        // SAFETY: KVM_EXIT_IO was the reason of the last exit, so `io` is the member that KVM filled in.
        let size = usize::from(unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io }.size);
        if size == 0 {
            return;
        }
        if input {
            // SAFETY: the data of the last exit lies in the mapping that KVM shares with us, behind `kvm_run`, which is what
            // the vCPU's descriptor keeps mapped; nothing else refers to it until the guest is entered again. The pointer
            // comes from the exclusive slice that came with the exit.
            for access in unsafe { &mut *data.as_ptr() }.chunks_exact_mut(size) {
                self.shared.ports.read(port, access);
            }
        } else {
            // SAFETY: as above, but for reading only.
            for access in unsafe { data.as_ref() }.chunks_exact(size) {
                self.shared.ports.write(port, access);
            }
        }
    }

    fn internal_error(&mut self) -> String {
        // SAFETY: KVM_EXIT_INTERNAL_ERROR was the reason of the last exit, so `internal` is the member in use.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let count = (internal.ndata as usize).min(internal.data.len());
        let data = internal.data.get(..count).unwrap_or_default();
        let name =
            if internal.suberror == KVM_INTERNAL_ERROR_EMULATION { " (instruction emulation)" } else { "" };
        format!("internal error {}{name}, data {data:x?}", internal.suberror)
    }

    fn log_registers(&self) {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(r), Ok(s)) => {
                log::error!(
                    "vCPU {}: rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} \
                     rdi {:#x} rbp {:#x} r8 {:#x} r9 {:#x} r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x} r14 {:#x} r15 {:#x}",
                    self.index,
                    r.rip,
                    r.rsp,
                    r.rflags,
                    r.rax,
                    r.rbx,
                    r.rcx,
                    r.rdx,
                    r.rsi,
                    r.rdi,
                    r.rbp,
                    r.r8,
                    r.r9,
                    r.r10,
                    r.r11,
                    r.r12,
                    r.r13,
                    r.r14,
                    r.r15,
                );
                log::error!(
                    "vCPU {}: cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} cs {:#x} base {:#x} ss {:#x} \
                     tr {:#x} gdt {:#x} limit {:#x} idt {:#x} limit {:#x}",
                    self.index,
                    s.cr0,
                    s.cr2,
                    s.cr3,
                    s.cr4,
                    s.efer,
                    s.cs.selector,
                    s.cs.base,
                    s.ss.selector,
                    s.tr.selector,
                    s.gdt.base,
                    s.gdt.limit,
                    s.idt.base,
                    s.idt.limit,
                );
            }
            (Err(error), _) | (_, Err(error)) => {
                log::error!("vCPU {}: cannot read its registers: {error}", self.index);
            }
        }
    }
}
