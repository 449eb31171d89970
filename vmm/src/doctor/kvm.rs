//! The part of `vmm doctor` that decides: is there a KVM, does it do what is needed, does it run guest kernels.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS, KVM_CAP_ENABLE_CAP_VM, KVM_CAP_EXT_CPUID, KVM_CAP_GET_TSC_KHZ,
    KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_KVMCLOCK_CTRL,
    KVM_CAP_NR_MEMSLOTS, KVM_CAP_PMU_CAPABILITY, KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SET_TSS_ADDR,
    KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY,
};
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::errno;

use super::{Check, Status, Verdict, speed};
use crate::error::{Error, one_line};
use crate::machine;

const DEVICE: &str = "/dev/kvm";

/// The one API version that KVM has had since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// A capability that the monitor uses.
struct Capability {
    cap: u32,
    name: &'static str,
    /// What it is used for.
    why: &'static str,
    /// Whether guests do not run without it.
    required: bool,
}

const fn required(cap: u32, name: &'static str, why: &'static str) -> Capability {
    Capability { cap, name, why, required: true }
}

const fn optional(cap: u32, name: &'static str, why: &'static str) -> Capability {
    Capability { cap, name, why, required: false }
}

const CAPABILITIES: &[Capability] = &[
    required(KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest memory"),
    required(KVM_CAP_NR_MEMSLOTS, "KVM_CAP_NR_MEMSLOTS", "guest memory"),
    required(KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupt controllers in the kernel"),
    required(KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "interrupts from device threads"),
    required(KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "what the guest tells virtio devices"),
    required(KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "the guest's CPUID"),
    required(KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", "real mode on Intel hosts"),
    required(KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "real mode on Intel hosts"),
    required(KVM_CAP_ENABLE_CAP_VM, "KVM_CAP_ENABLE_CAP_VM", "settings of a virtual machine"),
    required(
        KVM_CAP_DISABLE_QUIRKS,
        "KVM_CAP_DISABLE_QUIRKS",
        "a local interrupt that is masked after reset",
    ),
    required(KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "pausing vCPUs"),
    required(KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER", "the guest's only clock event"),
    optional(
        KVM_CAP_GET_TSC_KHZ,
        "KVM_CAP_GET_TSC_KHZ",
        "telling the guest its clock rate, which it has to measure otherwise",
    ),
    optional(
        KVM_CAP_KVMCLOCK_CTRL,
        "KVM_CAP_KVMCLOCK_CTRL",
        "telling the guest of a pause, which it may report as a stall otherwise",
    ),
    optional(
        KVM_CAP_PMU_CAPABILITY,
        "KVM_CAP_PMU_CAPABILITY",
        "keeping the processor's performance counters from the guest",
    ),
];

/// Runs the checks in order, up to the first that leaves nothing for the next to stand on.
pub(super) fn check(checks: &mut Vec<Check>) -> Verdict {
    let virtualization = Virtualization::of(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    checks.push(virtualization.check());

    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let advice = open_advice(error, virtualization, NodeAccess::read());
            checks.push(Check::with_advice(
                "kvm",
                Status::Fail,
                format!("cannot open {DEVICE}: {error}"),
                advice,
            ));
            return Verdict::Unusable;
        }
    };
    checks.push(Check::ok("kvm", format!("{DEVICE} opens for reading and writing")));

    let version = kvm.get_api_version();
    if version != API_VERSION {
        let detail = format!("API version {version}, not {API_VERSION}");
        checks.push(Check::with_advice(
            "kvm-api",
            Status::Fail,
            detail,
            "use a host with a mainline Linux kernel",
        ));
        return Verdict::Unusable;
    }
    checks.push(Check::ok("kvm-api", format!("version {version}")));

    let lacking = check_capabilities(checks, |capability| kvm.check_extension_raw(capability.cap.into()) > 0);
    let limits = format!(
        "{} vCPUs recommended, {} at most; {} memory slots",
        kvm.get_nr_vcpus(),
        kvm.get_max_vcpus(),
        kvm.get_nr_memslots()
    );
    checks.push(Check::ok("kvm-limits", limits));
    if lacking {
        return Verdict::Unusable;
    }

    if let Err(error) = build_vm(&kvm) {
        let detail = one_line(&error);
        let advice = "see the kernel's log (dmesg), and whether another hypervisor holds the processor's virtualization";
        checks.push(Check::with_advice("kvm-vm", Status::Fail, detail, advice));
        return Verdict::Unusable;
    }
    checks.push(Check::ok("kvm-vm", "a VM with interrupt controllers and a vCPU can be created"));

    let (check, verdict) = judge(speed::guest_kernel_speed());
    checks.push(check);
    verdict
}

/// `KVM_CREATE_VM`, which a signal can interrupt.
pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, errno::Error> {
    const ATTEMPTS: u32 = 10;
    let mut result = kvm.create_vm();
    for _ in 1..ATTEMPTS {
        match result {
            Err(error) if error.errno() == libc::EINTR => result = kvm.create_vm(),
            _ => break,
        }
    }
    result
}

/// What the monitor does for every guest.
fn build_vm(kvm: &Kvm) -> Result<(), Error> {
    let vm = machine::create_vm(kvm)?;
    vm.create_vcpu(0).map_err(Error::host("create a vCPU"))?;
    Ok(())
}

fn judge(speed: Result<speed::Speed, speed::Error>) -> (Check, Verdict) {
    const NAME: &str = "guest-kernel";
    match speed {
        Ok(speed) if speed.is_native() => (Check::ok(NAME, speed.to_string()), Verdict::Usable),
        Ok(speed) => {
            let advice = "stock Linux kernels will not boot here; use a host with VT-x or AMD-V, or the nested host: \
                          `cargo demo` in the source tree";
            (Check::with_advice(NAME, Status::Fail, speed.to_string(), advice), Verdict::Emulated)
        }
        Err(error) => {
            let mut detail = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                detail = format!("{detail}: {source}");
            }
            let advice = "see the kernel's log (dmesg); this KVM cannot run even a counting loop at CPL 0";
            (Check::with_advice(NAME, Status::Fail, detail, advice), Verdict::Unusable)
        }
    }
}

/// Adds a line for each capability that is missing, or one that says none is. Gives whether a required one is missing.
fn check_capabilities(checks: &mut Vec<Check>, mut has: impl FnMut(&Capability) -> bool) -> bool {
    const NAME: &str = "kvm-caps";
    let missing: Vec<&Capability> = CAPABILITIES.iter().filter(|capability| !has(capability)).collect();
    if missing.is_empty() {
        checks.push(Check::ok(NAME, format!("all {} capabilities in use are there", CAPABILITIES.len())));
    }
    for capability in &missing {
        let detail = format!("{} is missing, needed for {}", capability.name, capability.why);
        checks.push(if capability.required {
            Check::with_advice(NAME, Status::Fail, detail, "use a host with Linux 5.10 or later")
        } else {
            Check::with_advice(
                NAME,
                Status::Warn,
                detail,
                "guests run without it; a later host kernel may have it",
            )
        });
    }
    missing.iter().any(|capability| capability.required)
}

/// The hardware virtualization that the processor announces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Virtualization {
    Intel,
    Amd,
    None,
}

impl Virtualization {
    /// Reads the text of `/proc/cpuinfo`.
    fn of(cpuinfo: &str) -> Self {
        let mut flags = cpuinfo
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim_end() == "flags")
            .map(|(_, flags)| flags.split_ascii_whitespace())
            .into_iter()
            .flatten();
        flags
            .find_map(|flag| match flag {
                "vmx" => Some(Virtualization::Intel),
                "svm" => Some(Virtualization::Amd),
                _ => None,
            })
            .unwrap_or(Virtualization::None)
    }

    fn check(self) -> Check {
        let arch = std::env::consts::ARCH;
        match self {
            Virtualization::Intel => Check::ok("cpu", format!("{arch} with VT-x (vmx)")),
            Virtualization::Amd => Check::ok("cpu", format!("{arch} with AMD-V (svm)")),
            Virtualization::None => Check::with_advice(
                "cpu",
                Status::Warn,
                format!("{arch}, announces neither VT-x (vmx) nor AMD-V (svm)"),
                "enable it in the firmware; in a virtual machine, enable nested virtualization on its host",
            ),
        }
    }
}

/// Who may open the device node.
struct NodeAccess {
    mode: u32,
    /// Name of the group, or its number if it has no name.
    group: String,
}

impl NodeAccess {
    fn read() -> Option<Self> {
        let metadata = fs::metadata(DEVICE).ok()?;
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        Some(NodeAccess { mode: metadata.mode(), group: group_name(&groups, metadata.gid()) })
    }
}

/// Looks up a group in the text of `/etc/group`.
fn group_name(groups: &str, gid: u32) -> String {
    let gid = gid.to_string();
    groups
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == gid).then(|| name.to_owned())
        })
        .unwrap_or(gid)
}

/// What to do if the device cannot be opened.
fn open_advice(error: errno::Error, virtualization: Virtualization, node: Option<NodeAccess>) -> String {
    const GROUP_READ_WRITE: u32 = 0o060;
    match (io::Error::from(error).kind(), node) {
        (io::ErrorKind::PermissionDenied, Some(node))
            if node.mode & GROUP_READ_WRITE == GROUP_READ_WRITE && node.group != "root" =>
        {
            format!(
                "sudo usermod -aG {} $USER, then log in again; or for now: sudo setfacl -m u:$USER:rw {DEVICE}",
                node.group
            )
        }
        (io::ErrorKind::PermissionDenied, _) => {
            format!(
                "sudo setfacl -m u:$USER:rw {DEVICE}; in a container, pass the device in (--device {DEVICE})"
            )
        }
        // The node can be there without a module behind it: then ENODEV or ENXIO.
        _ => {
            let module = match virtualization {
                Virtualization::Intel => "sudo modprobe kvm_intel",
                Virtualization::Amd => "sudo modprobe kvm_amd",
                Virtualization::None => {
                    return "enable VT-x or AMD-V in the firmware, or nested virtualization on the host of this virtual \
                            machine; then sudo modprobe kvm_intel or kvm_amd"
                        .to_owned();
                }
            };
            format!("{module}; in a container, pass the device in (--device {DEVICE})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(mode: u32, group: &str) -> Option<NodeAccess> {
        Some(NodeAccess { mode, group: group.to_owned() })
    }

    #[test]
    fn virtualization_is_read_from_the_flags_and_nowhere_else() {
        let of = Virtualization::of;
        assert_eq!(of("model name\t: svm\nflags\t\t: fpu vmx sse\n"), Virtualization::Intel);
        assert_eq!(of("flags\t\t: fpu svm\nbugs\t: vmx\n"), Virtualization::Amd);
        assert_eq!(of("flags\t\t: fpu svme\nvmx flags\t: vnmi\nbugs\t: vmx\n"), Virtualization::None);
        assert_eq!(of(""), Virtualization::None);
        assert_eq!(Virtualization::None.check().status, Status::Warn);
    }

    #[test]
    fn a_user_without_access_is_told_the_group_that_has_it() {
        let denied = errno::Error::new(libc::EACCES);
        let advice = open_advice(denied, Virtualization::Amd, node(0o20660, "kvm"));
        assert!(advice.starts_with("sudo usermod -aG kvm $USER"), "{advice}");
        // Here joining the group would not help, or would be too much.
        for closed in [node(0o20600, "kvm"), node(0o20660, "root"), None] {
            let advice = open_advice(denied, Virtualization::Amd, closed);
            assert!(advice.starts_with("sudo setfacl -m u:$USER:rw /dev/kvm"), "{advice}");
        }
    }

    #[test]
    fn without_a_device_the_module_for_this_processor_is_named() {
        for errno in [libc::ENOENT, libc::ENODEV, libc::ENXIO] {
            let advice = |virtualization| open_advice(errno::Error::new(errno), virtualization, None);
            assert!(advice(Virtualization::Intel).starts_with("sudo modprobe kvm_intel;"));
            assert!(advice(Virtualization::Amd).starts_with("sudo modprobe kvm_amd;"));
            assert!(advice(Virtualization::None).starts_with("enable VT-x or AMD-V in the firmware"));
        }
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nkvm:x:104:alice,bob\nbad line\n";
        assert_eq!(group_name(groups, 104), "kvm");
        assert_eq!(group_name(groups, 105), "105");
    }

    #[test]
    fn only_a_missing_required_capability_makes_the_host_unusable() {
        let run = |absent: &str| {
            let mut checks = Vec::new();
            let lacking = check_capabilities(&mut checks, |capability| capability.name != absent);
            assert_eq!(checks.len(), 1);
            (checks[0].status, lacking)
        };
        assert_eq!(run(""), (Status::Ok, false));
        assert_eq!(run("KVM_CAP_GET_TSC_KHZ"), (Status::Warn, false));
        assert_eq!(run("KVM_CAP_IRQFD"), (Status::Fail, true));
    }

    #[test]
    fn the_verdict_follows_how_guest_kernel_code_ran() {
        let verdict = |ns_per_iteration| judge(Ok(speed::Speed { ns_per_iteration })).1;
        assert_eq!(verdict(0.5), Verdict::Usable);
        assert_eq!(verdict(1500.0), Verdict::Emulated);
        let (check, verdict) =
            judge(Err(speed::Error::Kvm { doing: "run the vCPU", source: errno::Error::new(libc::EINVAL) }));
        assert_eq!(verdict, Verdict::Unusable);
        assert_eq!(check.detail, "cannot run the vCPU: Invalid argument (os error 22)");
    }
}
