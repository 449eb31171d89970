//! Builds the virtual machine that a configuration asks for: KVM, guest memory, devices, tables, kernel, vCPUs.
//!
//! Nothing runs yet when [`Machine::build`] returns. Everything that was built is owned by the [`Machine`] and released
//! with it, so a failed build leaves nothing behind and can be tried again.

use std::borrow::Cow;
use std::sync::Arc;

use kindling_acpi::{self as acpi, Aml, Com1, GenericEventDevice, Keyboard};
use kindling_api::{BootProtocol, BootSource, HugePages, MachineConfig, VmConfig};
use kindling_boot::{self as boot, PreferredProtocol};
use kindling_cpu::{CpuidOptions, CpuidTemplate, Topology, boot_msrs};
use kindling_device_bus::Bus;
use kindling_irq_allocator::IrqAllocator;
use kindling_memory_layout::{
    self as memory_layout, Backing, Layout,
    x86_64::{KVM_IDENTITY_MAP, KVM_TSS},
};
use kindling_serial::Console;
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_DISABLE_QUIRKS, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES,
    KVM_PMU_CAP_DISABLE, KVM_X86_QUIRK_LINT0_REENABLED, Msrs, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::backends::{self, Controls};
use crate::confinement::Confinement;
use crate::devices::{self, EVENT_GSI, EventDevice, I8042_GSI, IrqTrigger, KeyboardDevice, SERIAL_GSI};
use crate::error::{Error, one_line};
use crate::outcome::OutcomeSlot;
use crate::prepared::{Images, Prepared};
use crate::registry::{self, Registry};
use crate::regs;
use crate::vcpu::Shared;
use crate::{boot_timer, console};

const MIB: u64 = 1 << 20;

/// The command line of a guest whose configuration names none: a serial console, an end on panic, and no probing of
/// hardware that is not there.
const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd \
                               pci=off swiotlb=noforce";

/// Interrupt lines of KVM's I/O APIC.
const IOAPIC_PINS: u32 = 24;

/// The first line that is free for any device. Below are those of the devices that every machine has, and lines that
/// Linux keeps for a timer (0) and a second PIC (2).
const FIRST_FREE_GSI: u32 = 5;

/// A virtual machine that is ready to run.
pub struct Machine {
    /// The vCPUs, boot processor first.
    pub vcpus: Vec<VcpuFd>,
    /// What vCPU threads share.
    pub shared: Shared,
    /// The serial port's other end.
    pub console: Console<IrqTrigger>,
    /// The keyboard controller.
    pub keyboard: Arc<KeyboardDevice>,
    /// What tells the guest of events, such as its power button's.
    pub events: Arc<EventDevice>,
    /// What changes its devices.
    pub controls: Controls,
    /// What must live as long as the machine runs.
    pub keep: Keep,
}

/// What must live as long as the machine runs. Fields are dropped in their order: the virtual machine before its memory.
pub struct Keep {
    _vm: VmFd,
    /// The virtio devices.
    pub devices: Registry,
    _memory: Arc<GuestMemoryMmap>,
}

impl Machine {
    /// Builds the machine of `config`, which must be valid, with what is prepared of it. Its threads are confined so, and
    /// its end is reported to `outcome`.
    pub fn build(
        config: &VmConfig,
        prepared: &mut Prepared,
        confinement: &Confinement,
        outcome: &Arc<OutcomeSlot>,
    ) -> Result<Self, Error> {
        let boot_source = config.boot_source()?;
        let images = match prepared.images.take() {
            Some(images) => images,
            None => Images::open(boot_source)?,
        };

        let kvm = open_kvm()?;
        check_vcpu_count(&kvm, &config.machine_config)?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|cause| Error::kvm("ask KVM which CPUID it supports", cause))?;
        let layout = layout(&config.machine_config, phys_bits(&supported))?;
        let memory = Arc::new(memory(&config.machine_config, &layout)?);

        let vm = create_vm(&kvm)?;
        add_memory(&vm, &memory)?;

        let shared = Shared {
            ports: Arc::new(Bus::new()),
            mmio: Arc::new(Bus::new()),
            outcome: Arc::clone(outcome),
            gate: Arc::default(),
            confinement: confinement.clone(),
        };
        let backend = match prepared.serial.take() {
            Some(backend) => backend,
            None => console::backend(&config.serial.clone().unwrap_or_default())?,
        };
        let mut console = devices::add_serial(&shared.ports, irq_trigger(&vm, SERIAL_GSI)?, backend)?;
        if !prepared.has_escapes {
            console.disable_escapes();
        }
        if let Some(limit) = config.serial.as_ref().and_then(|serial| backends::bucket(serial.rate_limiter?))
        {
            console
                .limit_output(limit)
                .map_err(|cause| Error::configuration("serial.rate_limiter", cause))?;
        }
        let keyboard = devices::add_keyboard(&shared.ports, irq_trigger(&vm, I8042_GSI)?, &shared.outcome)?;
        devices::add_power_registers(&shared.ports, &shared.outcome)?;
        if let Some(started) = prepared.boot_timer {
            boot_timer::add(&shared.mmio, started)?;
        }
        let events = devices::add_event_device(&shared.ports, irq_trigger(&vm, EVENT_GSI)?)?;

        let mut devices = Registry::new(confinement.clone())?;
        let lines = IrqAllocator::new(FIRST_FREE_GSI, IOAPIC_PINS - FIRST_FREE_GSI)
            .map_err(Error::host("set up interrupt lines"))?;
        let place = registry::Machine { vm: &vm, mmio: &shared.mmio, lines: &lines, memory: &memory };
        let controls =
            backends::attach(&mut devices, &place, config, &mut prepared.devices, &mut prepared.metadata)?;

        let rsdp = write_acpi_tables(&memory, config.machine_config.vcpu_count, &devices)?;
        let loaded = boot::load(
            &*memory,
            layout.ram(),
            boot::Request {
                kernel: &images.kernel,
                initrd: images.initrd.as_ref(),
                cmdline: &cmdline(boot_source, config),
                rsdp: Some(rsdp),
                protocol: preferred_protocol(boot_source.boot_protocol),
            },
        )
        .map_err(|error| boot_error(&error))?;

        let vcpus = create_vcpus(&vm, &supported, &config.machine_config)?;
        if let Some(boot_processor) = vcpus.first() {
            regs::set(boot_processor, &boot::registers(&loaded))?;
        }
        let keep = Keep { _vm: vm, devices, _memory: memory };
        Ok(Machine { vcpus, shared, console, keyboard, events, controls, keep })
    }
}

/// The kernel's command line: what was asked for, and where the root file system is, unless that is said already.
fn cmdline<'c>(boot_source: &'c BootSource, config: &VmConfig) -> Cow<'c, str> {
    let cmdline = boot_source.boot_args.as_deref().unwrap_or(DEFAULT_CMDLINE);
    // What is behind is for the first process, not for the kernel.
    let init = if cmdline.starts_with("-- ") { Some(0) } else { cmdline.find(" -- ") };
    let (kernel, init) = cmdline.split_at(init.unwrap_or(cmdline.len()));
    match backends::root_parameter(config) {
        Some(root) if !kernel.split(' ').any(|word| word.starts_with("root=")) => {
            let space = if init.starts_with('-') { " " } else { "" };
            format!("{kernel} {root}{space}{init}").into()
        }
        _ => cmdline.into(),
    }
}

fn write_acpi_tables(memory: &GuestMemoryMmap, vcpus: u8, devices: &Registry) -> Result<GuestAddress, Error> {
    let virtio = devices.acpi();
    let fixed = [&Com1 as &dyn Aml, &Keyboard, &GenericEventDevice { gsi: EVENT_GSI }];
    let devices: Vec<&dyn Aml> =
        fixed.into_iter().chain(virtio.iter().map(|device| device as &dyn Aml)).collect();
    acpi::write_tables(memory, &acpi::Config { vcpus, devices: &devices })
        .map_err(Error::host("write the ACPI tables"))
}

fn open_kvm() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|cause| Error::kvm("open /dev/kvm (`vmm doctor` says more)", cause))?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(Error::kvm(
            "use /dev/kvm",
            format!("its API version is {version}, and {KVM_API_VERSION} is needed"),
        ));
    }
    if !kvm.check_extension(Cap::TscDeadlineTimer) {
        return Err(Error::kvm(
            "use /dev/kvm",
            "it offers no TSC deadline timer, the guest's only clock event",
        ));
    }
    Ok(kvm)
}

fn check_vcpu_count(kvm: &Kvm, config: &MachineConfig) -> Result<(), Error> {
    let most = kvm.get_max_vcpus();
    if usize::from(config.vcpu_count) > most {
        let cause = format!("KVM on this host runs at most {most} vCPUs, got {}", config.vcpu_count);
        return Err(Error::configuration("machine-config.vcpu_count", cause));
    }
    Ok(())
}

/// Width of guest-physical addresses: CPUID 0x8000_0008, EAX bits 7:0; 36 where the leaf is missing.
fn phys_bits(supported: &CpuId) -> u8 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax as u8)
}

fn layout(config: &MachineConfig, phys_bits: u8) -> Result<Layout, Error> {
    config
        .mem_size_mib
        .checked_mul(MIB)
        .ok_or_else(|| "more than 64 bits can count".into())
        .and_then(|bytes| Layout::new(bytes, phys_bits).map_err(Into::into))
        .map_err(|cause: Box<dyn std::error::Error + Send + Sync>| {
            Error::configuration("machine-config.mem_size_mib", cause)
        })
}

fn memory(config: &MachineConfig, layout: &Layout) -> Result<GuestMemoryMmap, Error> {
    let (backing, field) = match config.huge_pages {
        HugePages::None => (Backing::Anonymous { transparent_huge: false }, "machine-config.mem_size_mib"),
        HugePages::Transparent => {
            (Backing::Anonymous { transparent_huge: true }, "machine-config.mem_size_mib")
        }
        HugePages::Hugetlbfs2M => (Backing::HugeTlb2M, "machine-config.huge_pages"),
    };
    memory_layout::build(layout, backing).map_err(|cause| Error::configuration(field, cause))
}

/// Creates the virtual machine with its interrupt controllers.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let vm = loop {
        match kvm.create_vm() {
            // The kernel gives up waiting for a lock when a signal arrives, whatever the signal.
            Err(error) if error.errno() == libc::EINTR => {}
            result => break result.map_err(Error::host("create a virtual machine"))?,
        }
    };
    // Needed by Intel processors for guest code in real mode, which is where application processors start.
    vm.set_identity_map_address(KVM_IDENTITY_MAP.start).map_err(Error::host("place KVM's identity map"))?;
    vm.set_tss_address(KVM_TSS.start as usize).map_err(Error::host("place KVM's task state segment"))?;
    vm.create_irq_chip().map_err(Error::host("create the interrupt controllers"))?;
    mask_pic(&vm)?;
    disable_pmu(kvm, &vm)?;
    Ok(vm)
}

/// Shuts KVM's 8259 out. It raises every ISA interrupt too, KVM lets the boot processor's LINT0 pass it on after reset,
/// and a kernel with hardware-reduced ACPI never sets its vectors, which are those of exceptions until then. Without
/// this quirk of KVM's LINT0 is masked after reset, as the processor's manuals have it.
fn mask_pic(vm: &VmFd) -> Result<(), Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_DISABLE_QUIRKS, ..Default::default() };
    cap.args[0] = KVM_X86_QUIRK_LINT0_REENABLED.into();
    vm.enable_cap(&cap).map_err(Error::host("mask the boot processor's LINT0"))
}

/// Takes performance counters away from the guest, where KVM can: CPUID alone does not hide AMD's first ones.
fn disable_pmu(kvm: &Kvm, vm: &VmFd) -> Result<(), Error> {
    let offered = kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if u32::try_from(offered).is_ok_and(|offered| offered & KVM_PMU_CAP_DISABLE != 0) {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
        cap.args[0] = KVM_PMU_CAP_DISABLE.into();
        vm.enable_cap(&cap).map_err(Error::host("disable the guest's performance counters"))?;
    }
    Ok(())
}

fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let address = region.as_ptr() as u64;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address,
        };
        // SAFETY: the region is mapped in this process, belongs to the guest alone, and stays mapped for as long as the
        // virtual machine lives: `Machine` drops its memory last. Slots do not overlap, since regions do not.
        unsafe { vm.set_user_memory_region(slot) }.map_err(Error::host("give the guest its memory"))?;
    }
    Ok(())
}

/// A trigger whose eventfd raises the line `gsi`.
fn irq_trigger(vm: &VmFd, gsi: u32) -> Result<IrqTrigger, Error> {
    let trigger = IrqTrigger::new().map_err(Error::host("create an eventfd"))?;
    vm.register_irqfd(trigger.event(), gsi).map_err(Error::host("connect an interrupt line"))?;
    Ok(trigger)
}

fn preferred_protocol(protocol: BootProtocol) -> PreferredProtocol {
    match protocol {
        BootProtocol::Auto => PreferredProtocol::Auto,
        BootProtocol::Linux64 => PreferredProtocol::Linux64,
        BootProtocol::Pvh => PreferredProtocol::Pvh,
    }
}

fn create_vcpus(vm: &VmFd, supported: &CpuId, config: &MachineConfig) -> Result<Vec<VcpuFd>, Error> {
    let vcpus = (0..config.vcpu_count)
        .map(|index| vm.create_vcpu(index.into()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::host("create a vCPU"))?;
    let topology = Topology::new(config.vcpu_count, if config.smt { 2 } else { 1 })
        .map_err(|cause| Error::configuration("machine-config.vcpu_count", cause))?;
    let options = CpuidOptions {
        tsc_khz: vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()),
        tsc_deadline_timer: true,
        // KVM fills the register in by itself.
        arch_capabilities: true,
        pmu: false,
    };
    let template = CpuidTemplate::new(supported, &topology, &options)
        .map_err(Error::host("work out the guest's CPUID"))?;
    let msrs = boot_msrs();
    let entries = Msrs::from_entries(&msrs)
        .map_err(|cause| Error::host("list the MSRs to set")(format!("{} of them: {cause:?}", msrs.len())))?;
    for (index, vcpu) in (0..config.vcpu_count).zip(&vcpus) {
        vcpu.set_cpuid2(&template.for_vcpu(index)).map_err(Error::host("set the CPUID of a vCPU"))?;
        let set = vcpu.set_msrs(&entries).map_err(Error::host("set the MSRs of a vCPU"))?;
        if let Some(refused) = msrs.get(set) {
            let cause = format!("KVM refuses MSR {:#x} = {:#x}", refused.index, refused.data);
            return Err(Error::host("set the MSRs of a vCPU")(cause));
        }
    }
    Ok(vcpus)
}

/// What is wrong with the boot source, told of the field that it came from.
fn boot_error(error: &boot::Error) -> Error {
    use boot::{Error as E, Part};
    let (field, subject) = match error {
        E::CmdlineTooLong { .. } | E::CmdlineCharacter { .. } => ("boot-source.boot_args", "command line: "),
        E::Ram { .. } => ("machine-config.mem_size_mib", ""),
        E::InitrdTooLarge { .. } => ("boot-source.initrd_path", "initrd: "),
        E::Length { part, .. } | E::Read { part, .. } | E::Copy { part, .. } | E::Empty { part, .. }
            if *part == Part::Initrd =>
        {
            ("boot-source.initrd_path", "initrd: ")
        }
        _ => ("boot-source.kernel_image_path", "kernel: "),
    };
    // The field says it already.
    let text = one_line(error);
    Error::configuration(field, text.strip_prefix(subject).unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use kindling_api::DriveConfig;

    use super::*;

    #[test]
    fn the_kernel_is_told_of_the_root_device_unless_it_knows() {
        for (given, expected) in [
            ("quiet", "quiet root=/dev/vda rw"),
            ("quiet root=/dev/vdb", "quiet root=/dev/vdb"),
            ("quiet -- a root=b", "quiet root=/dev/vda rw -- a root=b"),
            ("-- a", " root=/dev/vda rw -- a"),
            ("root=/dev/vdb -- a", "root=/dev/vdb -- a"),
        ] {
            let source = BootSource {
                kernel_image_path: "/k".into(),
                initrd_path: None,
                boot_args: Some(given.to_owned()),
                boot_protocol: BootProtocol::Auto,
            };
            let root = DriveConfig { is_root_device: true, ..DriveConfig::new("r", "/r") };
            let config = VmConfig { drives: vec![root], ..VmConfig::default() };
            assert_eq!(cmdline(&source, &config), expected);
        }
    }

    #[test]
    fn lint0_of_every_processor_is_masked_after_reset() {
        if std::env::var_os("KINDLING_NO_KVM").is_some() {
            return;
        }
        let kvm = Kvm::new().expect("cannot open /dev/kvm; set KINDLING_NO_KVM=1 to skip what needs it");
        let vm = create_vm(&kvm).unwrap();
        for index in 0..2 {
            let registers = vm.create_vcpu(index).unwrap().get_lapic().unwrap().regs;
            // Bit 16 of the register at 0x350 (Intel SDM volume 3A, 12.5.1).
            assert_eq!(registers[0x352] & 1, 1, "vCPU {index}");
        }
    }
}
