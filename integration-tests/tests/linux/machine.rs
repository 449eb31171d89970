//! What a stock kernel finds: processors, memory, clocks.

use kindling_integration_tests::harness::Guest;

use super::{output, ready};

/// The values of `key` in /proc/cpuinfo, one per processor.
fn cpuinfo(guest: &mut Guest, key: &str) -> Vec<String> {
    let text = output(guest, &format!("grep '^{key}' /proc/cpuinfo"));
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    };
    text.lines().filter_map(value).collect()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// All processors are online, each a core of its own in one package, with APIC ids from 0 on.
fn processors_are_cores(count: u32) -> Guest {
    let mut guest = ready(Guest::builder().cpus(count).memory("512M"));
    assert_eq!(output(&mut guest, "nproc"), count.to_string());
    let all = count as usize;
    assert_eq!(cpuinfo(&mut guest, "processor"), numbers(0..count));
    assert_eq!(cpuinfo(&mut guest, "apicid"), numbers(0..count));
    assert_eq!(cpuinfo(&mut guest, "initial apicid"), numbers(0..count));
    assert_eq!(cpuinfo(&mut guest, "core id"), numbers(0..count));
    assert_eq!(cpuinfo(&mut guest, "physical id"), vec!["0"; all]);
    assert_eq!(cpuinfo(&mut guest, "siblings"), vec![count.to_string(); all]);
    assert_eq!(cpuinfo(&mut guest, "cpu cores"), vec![count.to_string(); all]);
    guest
}

#[test]
fn two_processors_are_online_as_two_cores() {
    processors_are_cores(2);
}

#[test]
fn eight_processors_are_online_as_eight_cores() {
    processors_are_cores(8);
}

#[test]
fn with_smt_two_processors_share_a_core() {
    let mut guest = ready(Guest::builder().cpus(4).arg("--smt"));
    assert_eq!(cpuinfo(&mut guest, "siblings"), ["4"; 4]);
    assert_eq!(cpuinfo(&mut guest, "cpu cores"), ["2"; 4]);
    assert_eq!(cpuinfo(&mut guest, "core id"), ["0", "0", "1", "1"]);
    let siblings = output(&mut guest, "cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list");
    assert_eq!(siblings, "0-1\n0-1\n2-3\n2-3");
}

#[test]
fn one_processor_is_one_core_offers_no_virtualization_and_keeps_time_without_calibration() {
    let mut guest = processors_are_cores(1);
    let flags = cpuinfo(&mut guest, "flags").concat();
    let flags: Vec<&str> = flags.split(' ').collect();
    assert!(!flags.contains(&"svm") && !flags.contains(&"vmx"), "{flags:?}");
    assert!(flags.contains(&"tsc_deadline_timer") && flags.contains(&"x2apic"), "{flags:?}");
    assert!(flags.contains(&"hypervisor"), "{flags:?}");
    let clock = output(&mut guest, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert!(clock == "kvm-clock" || clock == "tsc", "{clock}");
    // The kernel says at least this of its delay loop.
    let calibrations = output(&mut guest, "dmesg | grep -i calibrat");
    assert!(calibrations.lines().all(|line| line.contains("skipped")), "{calibrations}");
}

/// Physical ranges of RAM in /proc/iomem.
fn ram(guest: &mut Guest) -> Vec<(u64, u64)> {
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let text = output(guest, "grep 'System RAM' /proc/iomem");
    let ranges = text.lines().filter_map(|line| line.trim().split_once(" : ")?.0.split_once('-'));
    ranges.map(|(first, last)| (number(first), number(last) + 1)).collect()
}

/// MemTotal, in MiB.
fn total_mib(guest: &mut Guest) -> u64 {
    let line = output(guest, "grep MemTotal /proc/meminfo");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The first MiB as every guest sees it: RAM up to the EBDA, where Linux itself sets the first page aside.
const LOW: (u64, u64) = (0x1000, 0x9_fc00);

#[test]
fn guest_of_128_mib_sees_all_of_it() {
    let mut guest = ready(Guest::builder().memory("128M"));
    assert_eq!(ram(&mut guest), [LOW, (MIB, 128 * MIB)]);
    // What is missing is the kernel itself and its tables.
    assert!((70..128).contains(&total_mib(&mut guest)));
}

#[test]
fn guest_of_1_gib_sees_all_of_it() {
    let mut guest = ready(Guest::builder().memory("1G"));
    assert_eq!(ram(&mut guest), [LOW, (MIB, GIB)]);
    assert!((940..1024).contains(&total_mib(&mut guest)));
}

#[test]
fn guest_of_5_gib_sees_ram_on_both_sides_of_the_gap() {
    let mut guest = ready(Guest::builder().memory("5G"));
    assert_eq!(ram(&mut guest), [LOW, (MIB, 3 * GIB), (4 * GIB, 6 * GIB)]);
    assert!((4880..5120).contains(&total_mib(&mut guest)));
}

#[test]
fn kernel_finds_nothing_to_complain_about() {
    let mut guest = ready(Guest::builder().cpus(2));
    // Level 3 and above: errors. There is no PCI, and the kernel thinks that fatal.
    let errors =
        output(&mut guest, "dmesg -r | grep '^<[0-3]>' | grep -v 'No config space access function' || true");
    assert_eq!(errors, "");
    let complaints =
        output(&mut guest, "dmesg | grep -E 'ACPI BIOS Error|Firmware Bug|spurious|nobody cared' || true");
    assert_eq!(complaints, "");
}
