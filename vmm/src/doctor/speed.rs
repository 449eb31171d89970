//! Whether guest kernel code runs natively, found by running some.
//!
//! A KVM can answer every call and yet have no VT-x or AMD-V below it: guest code at CPL 0 is then interpreted, several
//! hundred times slower, and a stock kernel does not get through its boot. No capability says so. The probe therefore
//! times a counting loop in 64-bit mode at CPL 0.
//!
//! It ends whatever the guest does: the loop comes out for air after every `CHUNK` iterations, and a vCPU that does not
//! come out by itself is fetched by a signal.

use std::fmt;
use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMAX, register_signal_handler};

/// Iterations of two instructions each between two exits: 10 µs natively, 15 ms interpreted.
const CHUNK: u32 = 10_000;
/// Chunks of a measurement, unless [`BUDGET`] is used up first.
const CHUNKS: u32 = 20;
/// Time after which no further chunk is started.
const BUDGET: Duration = Duration::from_millis(50);
/// Time after which the vCPU is taken for hung.
const DEADLINE: Duration = Duration::from_secs(2);
/// Signals sent to a hung vCPU, [`SIGNAL_INTERVAL`] apart, before its thread is given up.
const SIGNALS: u32 = 50;
const SIGNAL_INTERVAL: Duration = Duration::from_millis(10);

/// Slowest iteration taken for native, in nanoseconds. Hardware needs below 1, an emulated machine that runs KVM about
/// 10, an interpreter in KVM more than 1,000.
const NATIVE_MAX_NS: f64 = 100.0;

/// Port that the loop writes to after each chunk.
const PORT: u8 = 0x80;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const ENTRY: u64 = 0x4000;
const MEMORY_SIZE: usize = 0x5000;

/// Page table entry flags: present, writable; and for a directory entry, a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Where KVM may keep the three pages that Intel hosts need for real mode: below 4 GiB, far from the guest's memory.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// Why guest kernel code could not be timed.
#[derive(Debug, Error)]
pub enum Error {
    /// A KVM call failed.
    #[error("cannot {doing}")]
    Kvm {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: errno::Error,
    },
    /// The guest's memory could not be had or written.
    #[error("cannot prepare the guest's memory")]
    Memory(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The thread that runs the vCPU could not be started.
    #[error("cannot start the vCPU thread")]
    Thread(#[source] io::Error),
    /// The guest did something other than count.
    #[error("the guest left its loop: {0}")]
    UnexpectedExit(String),
    /// The guest made no progress.
    #[error("the guest ran for {} s without finishing {CHUNK} iterations", DEADLINE.as_secs())]
    Hung,
}

impl From<GuestMemoryError> for Error {
    fn from(error: GuestMemoryError) -> Self {
        Error::Memory(Box::new(error))
    }
}

/// How fast guest code runs at CPL 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Nanoseconds that an iteration of a decrement and a branch takes, in the fastest stretch measured.
    pub ns_per_iteration: f64,
}

impl Speed {
    /// Whether the processor runs guest kernel code itself. If not, a stock kernel does not boot.
    #[must_use]
    pub fn is_native(self) -> bool {
        self.ns_per_iteration <= NATIVE_MAX_NS
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_native() { "native" } else { "emulated" };
        write!(f, "{kind}, {:.1} ns per loop iteration", self.ns_per_iteration)
    }
}

/// Times guest code at CPL 0 on a VM of its own. Takes about 1 ms natively, 60 ms interpreted, and never more than 3 s.
///
/// Sets the process's handler of the last real-time signal.
///
/// # Errors
///
/// If KVM cannot be used, or does not run the guest's few instructions.
pub fn guest_kernel_speed() -> Result<Speed, Error> {
    let signal = SIGRTMAX();
    register_signal_handler(signal, on_signal)
        .map_err(|source| Error::Kvm { doing: "set the handler of the vCPU's signal", source })?;
    let give_up = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    let vcpu_thread = thread::Builder::new()
        .name("speed probe".to_owned())
        .spawn({
            let give_up = Arc::clone(&give_up);
            // A send fails if the receiver has given up; there is nobody left to tell.
            move || drop(sender.send(Probe::new().and_then(|mut probe| probe.measure(&give_up))))
        })
        .map_err(Error::Thread)?;

    let mut result = receiver.recv_timeout(DEADLINE);
    give_up.store(true, Ordering::Release);
    // One signal may come just before the vCPU enters the guest and then does not keep it out: hence several.
    for _ in 0..SIGNALS {
        if !matches!(result, Err(mpsc::RecvTimeoutError::Timeout)) {
            break;
        }
        // Fails if the thread has ended in the meantime; then the result is there.
        let _ = vcpu_thread.kill(signal);
        result = receiver.recv_timeout(SIGNAL_INTERVAL);
    }
    if result.is_ok() {
        // It has sent its result and only drops the VM now.
        let _ = vcpu_thread.join();
    }
    result.unwrap_or(Err(Error::Hung))
}

/// Does nothing: arriving is enough to make `KVM_RUN` return.
extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// A VM with one vCPU at the start of the loop. Fields drop in order: the VM goes before its memory.
struct Probe {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl Probe {
    fn new() -> Result<Self, Error> {
        let failed = |doing| move |source| Error::Kvm { doing, source };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
            .map_err(|error| Error::Memory(Box::new(error)))?;
        load(&memory)?;

        let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
        let vm = super::kvm::create_vm(&kvm).map_err(failed("create a VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(failed("set the TSS address"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_SIZE as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        };
        // SAFETY: the region is exactly the mapping that `memory` owns, and `memory` outlives the VM: here it is the older
        // local, in a `Probe` the later field.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("give memory to the VM"))?;

        let vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("ask for the CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("set the vCPU's CPUID"))?;
        let mut sregs = vcpu.get_sregs().map_err(failed("read the vCPU's registers"))?;
        set_long_mode(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(failed("set the vCPU's system registers"))?;
        // RFLAGS has one bit that is always set.
        let regs = kvm_regs { rip: ENTRY, rflags: 1 << 1, ..Default::default() };
        vcpu.set_regs(&regs).map_err(failed("set the vCPU's registers"))?;
        Ok(Probe { vcpu, _vm: vm, _memory: memory })
    }

    /// Runs the loop chunk by chunk and keeps the fastest, which other load on the host disturbed least.
    fn measure(&mut self, give_up: &AtomicBool) -> Result<Speed, Error> {
        let start = Instant::now();
        let mut best = Duration::MAX;
        for _ in 0..CHUNKS {
            let chunk_start = Instant::now();
            self.run_chunk(give_up)?;
            best = best.min(chunk_start.elapsed());
            if start.elapsed() >= BUDGET {
                break;
            }
        }
        Ok(Speed { ns_per_iteration: best.as_secs_f64() * 1e9 / f64::from(CHUNK) })
    }

    fn run_chunk(&mut self, give_up: &AtomicBool) -> Result<(), Error> {
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, _)) if port == u16::from(PORT) => return Ok(()),
                Ok(exit) => return Err(Error::UnexpectedExit(format!("{exit:?}"))),
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                    if give_up.load(Ordering::Acquire) {
                        return Err(Error::Hung);
                    }
                }
                Err(source) => return Err(Error::Kvm { doing: "run the vCPU", source }),
            }
        }
    }
}

/// Writes the page tables, which map the first 2 MiB to themselves, and the code.
fn load(memory: &GuestMemoryMmap) -> Result<(), Error> {
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(PD | PRESENT_WRITABLE, GuestAddress(PDPT))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE_PAGE, GuestAddress(PD))?;
    memory.write_slice(&code(), GuestAddress(ENTRY))?;
    Ok(())
}

/// Counts [`CHUNK`] down to 0, writes to [`PORT`], and begins again.
fn code() -> [u8; 13] {
    let [c0, c1, c2, c3] = CHUNK.to_le_bytes();
    [
        0xb9, c0, c1, c2, c3, // mov ecx, CHUNK
        0xff, 0xc9, // dec ecx
        0x75, 0xfc, // jnz to dec
        0xe6, PORT, // out PORT, al
        0xeb, 0xf3, // jmp to mov
    ]
}

/// 64-bit mode at CPL 0 with flat segments (Intel SDM volume 3, 11.8.5).
fn set_long_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3, // data, writable, accessed
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    // Type 11: code, readable, accessed.
    sregs.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.cr0 = CR0_PE_ET_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_seen_on_real_hosts_fall_on_the_right_side() {
        for (ns_per_iteration, text) in [
            (0.3, "native, 0.3 ns per loop iteration"),
            (8.0, "native, 8.0 ns per loop iteration"),
            (1540.0, "emulated, 1540.0 ns per loop iteration"),
        ] {
            let speed = Speed { ns_per_iteration };
            assert_eq!(speed.to_string(), text);
            assert_eq!(speed.is_native(), text.starts_with("native"));
        }
    }

    #[test]
    fn the_branches_of_the_loop_lead_to_the_instructions_they_name() {
        let code = code();
        let target = |at: usize| at + 2 - usize::from(code[at + 1].wrapping_neg());
        assert_eq!(code[target(7)..][..2], [0xff, 0xc9]);
        assert_eq!(target(11), 0);
    }
}
