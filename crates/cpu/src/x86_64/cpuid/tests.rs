//! Tables such as KVM gives on Intel and AMD hosts, cut down to what matters, and what becomes of them.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use proptest::prelude::*;

use super::*;

const ALL: u32 = u32::MAX;

/// A line of a table: function, index, and EAX to EDX.
type Line = (u32, u32, [u32; 4]);

/// An Intel host with every feature there is, 32 threads sharing its last-level cache and 64 ids for cores.
const INTEL: &[Line] = &[
    (0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
    (1, 0, [0x806f8, 0x1720_0800, ALL, ALL]),
    (2, 0, [0x00fe_ff01, 0xf0, 0, 0]),
    (4, 0, [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
    (4, 1, [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
    (4, 2, [0xfc00_4143, 0x03c0_003f, 0x7ff, 0]),
    (4, 3, [0xfc07_c163, 0x0380_003f, 0x1_ffff, 4]),
    (4, 4, [0; 4]),
    (6, 0, [0x77, 2, 9, 3]),
    (7, 0, [2, ALL, ALL, ALL]),
    (7, 1, [0x30, 0, 0, 0]),
    (0xa, 0, [0x0830_0805, 0, 0xf, 0x8604]),
    (0xb, 0, [1, 2, 0x100, 0x17]),
    (0xb, 1, [6, 0x40, 0x201, 0x17]),
    (0xd, 0, [0xe7, 0xa80, 0xa80, 0]),
    (0x12, 0, [1, 0, 0, 0x241f]),
    (0x12, 2, [1, 2, 3, 4]),
    (0x14, 0, [1, 0xf, 7, 0]),
    (0x1c, 0, [0x4000_000b, 7, 7, 0]),
    (0x1f, 0, [1, 2, 0x100, 0x17]),
    (0x1f, 1, [6, 0x40, 0x201, 0x17]),
    (0x1f, 5, [7, 0x40, 0x605, 0x17]),
    (0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
    (0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
    (0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
    (0x8000_0007, 0, [0, 0, 0, 0x100]),
    (0x8000_0008, 0, [0x3028, 0, 0, 0]),
];

/// An AMD host of the Zen family, with nested virtualisation and encrypted memory, and no leaf 0xB.
const AMD: &[Line] = &[
    (0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
    (1, 0, [0x00a1_0f11, 0x0c20_0800, 0xfffa_3223, 0x178b_fbff]),
    (4, 0, [0; 4]),
    (7, 0, [1, 0xf1bf_97a9, 0x405f5e, 0x3000_0010]),
    (0xd, 0, [0x207, 0x988, 0x988, 0]),
    (0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
    (0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
    (0x8000_0000, 0, [0x8000_0026, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
    (0x8000_0001, 0, [0x00a1_0f11, 0x4000_0000, 0x75c2_37ff, 0x2fd3_fbff]),
    (0x8000_0007, 0, [0, 0, 0, 0x100]),
    (0x8000_0008, 0, [0x3030, 0x111e_f657, 0x7017, 0x1_0007]),
    (0x8000_000a, 0, [1, 0x8000, 0, 0x119b_9cff]),
    (0x8000_001b, 0, [0x3ff, 0, 0, 0]),
    (0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 0x3f, 0]),
    (0x8000_001d, 1, [0x0000_4122, 0x01c0_003f, 0x3f, 0]),
    (0x8000_001d, 2, [0x0000_4143, 0x01c0_003f, 0x7ff, 2]),
    (0x8000_001d, 3, [0x0003_c163, 0x03c0_003f, 0x7fff, 1]),
    (0x8000_001d, 4, [0; 4]),
    (0x8000_001e, 0, [0x17, 0x10b, 0x700, 0]),
    (0x8000_001f, 0, [0xf, 0x173, 0x1fd, 0x80]),
    (0x8000_0022, 0, [1, 0x46, 0, 0]),
    (0x8000_0026, 0, [0x8000_0001, 2, 0x100, 0x17]),
];

fn table(lines: &[Line]) -> CpuId {
    let entries: Vec<_> = lines
        .iter()
        .map(|&(function, index, [eax, ebx, ecx, edx])| {
            let indexed = [4, 7, 0xb, 0xd, 0x12, 0x14, 0x1f, 0x8000_001d, 0x8000_0026].contains(&function);
            let flags = if indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
        })
        .collect();
    CpuId::from_entries(&entries).unwrap()
}

/// What CPUID returns to the guest: KVM looks for the entry thus, and gives zeros for one that is missing.
fn read(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let matches = |entry: &&kvm_cpuid_entry2| {
        entry.function == function
            && (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || entry.index == index)
    };
    cpuid.as_slice().iter().find(matches).map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

fn template(lines: &[Line], vcpus: u8, threads_per_core: u8, options: CpuidOptions) -> CpuidTemplate {
    let topology = Topology { vcpus, threads_per_core };
    CpuidTemplate::new(&table(lines), &topology, &options).unwrap()
}

/// The first vCPU's table with default options.
fn plain(lines: &[Line], vcpus: u8, threads_per_core: u8) -> CpuId {
    template(lines, vcpus, threads_per_core, CpuidOptions::default()).for_vcpu(0)
}

#[test]
fn each_vcpu_reads_its_own_ids_and_nothing_else_differs() {
    for lines in [INTEL, AMD] {
        let template = template(lines, 6, 2, CpuidOptions::default());
        for index in 0..6 {
            let cpuid = template.for_vcpu(index);
            let id = u32::from(index);
            assert_eq!(read(&cpuid, 1, 0)[1] >> 24, id);
            for subleaf in 0..3 {
                assert_eq!(read(&cpuid, 0xb, subleaf)[3], id);
            }
            let first = template.for_vcpu(0);
            for (entry, other) in cpuid.as_slice().iter().zip(first.as_slice()) {
                let holds_ids = [1, 0xb, 0x1f, 0x8000_001e].contains(&entry.function);
                assert!(holds_ids || entry == other, "leaf {:#x}", entry.function);
            }
        }
    }
    let cpuid = template(AMD, 6, 2, CpuidOptions::default()).for_vcpu(5);
    assert_eq!(read(&cpuid, 0x8000_001e, 0), [5, 0x102, 0, 0], "thread 5 is one of two in core 2");
    let cpuid = template(INTEL, 6, 2, CpuidOptions::default()).for_vcpu(5);
    assert_eq!(read(&cpuid, 0x1f, 1)[3], 5);
}

#[test]
fn extended_topology_tells_threads_then_cores_then_ends() {
    for lines in [INTEL, AMD] {
        let cpuid = plain(lines, 6, 2);
        assert_eq!(read(&cpuid, 0xb, 0), [1, 2, 0x100, 0]);
        assert_eq!(read(&cpuid, 0xb, 1), [3, 6, 0x201, 0]);
        assert_eq!(read(&cpuid, 0xb, 2), [0, 0, 0x002, 0]);
        let cpuid = plain(lines, 254, 1);
        assert_eq!(read(&cpuid, 0xb, 0), [0, 1, 0x100, 0]);
        assert_eq!(read(&cpuid, 0xb, 1), [8, 254, 0x201, 0]);
    }
    let cpuid = plain(INTEL, 6, 2);
    assert_eq!(read(&cpuid, 0x1f, 1), [3, 6, 0x201, 0]);
    assert_eq!(read(&cpuid, 0x1f, 5), [0; 4], "the host's die level is gone");
    let cpuid = plain(AMD, 6, 2);
    assert_eq!(read(&cpuid, 0x1f, 0), [0; 4]);
    assert_eq!(read(&cpuid, 0x8000_0026, 0), [0; 4], "the host's own topology is gone");
}

#[test]
fn old_amd_processor_gains_leaf_0xb_and_announces_it() {
    let mut old: Vec<Line> = AMD.to_vec();
    old[0].2[0] = 7;
    assert_eq!(read(&plain(&old, 2, 1), 0, 0)[0], 0xb);
    assert_eq!(read(&plain(AMD, 2, 1), 0, 0)[0], 0xd);
}

#[test]
fn package_size_in_leaf_1_counts_ids_on_intel_and_processors_on_amd() {
    let leaf_1 = |lines, vcpus| {
        let [_, ebx, _, edx] = read(&plain(lines, vcpus, 1), 1, 0);
        ((ebx >> 16) & 0xff, edx >> 28 & 1)
    };
    assert_eq!(leaf_1(INTEL, 1), (1, 0));
    assert_eq!(leaf_1(INTEL, 5), (8, 1));
    assert_eq!(leaf_1(INTEL, 254), (255, 1), "256 does not fit the field");
    assert_eq!(leaf_1(AMD, 1), (1, 0));
    assert_eq!(leaf_1(AMD, 5), (5, 1));
    assert_eq!(leaf_1(AMD, 254), (254, 1));
}

#[test]
fn clflush_lines_are_64_bytes_when_the_host_does_not_say() {
    let mut silent: Vec<Line> = INTEL.to_vec();
    silent[1].2[1] = 0;
    assert_eq!(read(&plain(&silent, 1, 1), 1, 0)[1] & 0xff00, 0x0800);
}

#[test]
fn caches_are_shared_by_the_guests_threads_and_cores() {
    // Ids that share the cache, and ids of cores.
    let intel = |vcpus, threads, index| {
        let eax = read(&plain(INTEL, vcpus, threads), 4, index)[0];
        ((eax >> 14 & 0xfff) + 1, (eax >> 26) + 1)
    };
    assert_eq!(intel(6, 2, 0), (2, 4));
    assert_eq!(intel(6, 2, 2), (2, 4));
    assert_eq!(intel(6, 2, 3), (8, 4));
    assert_eq!(intel(8, 1, 2), (1, 8));
    assert_eq!(intel(1, 1, 3), (1, 1));
    assert_eq!(intel(254, 1, 3), (256, 64), "the core field ends at 64");
    assert_eq!(read(&plain(INTEL, 6, 2), 4, 4), [0; 4], "the end of the list stays the end");
    assert_eq!(read(&plain(INTEL, 6, 2), 4, 3)[1..], INTEL[6].2[1..], "sizes are the host's");

    let amd =
        |vcpus, threads, index| (read(&plain(AMD, vcpus, threads), 0x8000_001d, index)[0] >> 14 & 0xfff) + 1;
    assert_eq!((amd(6, 2, 0), amd(6, 2, 2), amd(6, 2, 3)), (2, 2, 6));
    assert_eq!((amd(6, 1, 0), amd(6, 1, 3)), (1, 6));
    assert_eq!(amd(1, 2, 0), 1, "a lone vCPU has no sibling");
    assert_eq!(read(&plain(AMD, 6, 2), 0x8000_001d, 4), [0; 4]);
}

#[test]
fn amd_sizes_and_legacy_bit_follow_the_guest() {
    let amd = |vcpus| {
        let cpuid = plain(AMD, vcpus, 2);
        let sizes = read(&cpuid, 0x8000_0008, 0);
        assert_eq!([sizes[0], sizes[1], sizes[3]], [0x3030, 0x111e_f657, 0x1_0007]);
        (sizes[2] & 0xff, sizes[2] >> 12 & 0xf, read(&cpuid, 0x8000_0001, 0)[2] >> 1 & 1)
    };
    assert_eq!(amd(1), (0, 1, 0));
    assert_eq!(amd(6), (5, 3, 1));
    assert_eq!(amd(254), (253, 8, 1));
    assert_eq!(read(&plain(INTEL, 6, 2), 0x8000_0008, 0), [0x3028, 0, 0, 0], "reserved on Intel");
    assert_eq!(read(&plain(INTEL, 6, 2), 0x8000_001e, 0), [0; 4]);
}

#[test]
fn amd_without_topology_extensions_gains_them_with_the_first_core_of_two_threads() {
    let mut old: Vec<Line> = AMD.to_vec();
    old.retain(|line| line.0 < 0x8000_001b);
    for line in old.iter_mut().filter(|line| line.0 == 0x8000_0001) {
        line.2[2] &= !(1 << 22);
    }
    let topology_extensions = |threads| read(&plain(&old, 4, threads), 0x8000_0001, 0)[2] & (1 << 22);
    assert_eq!(topology_extensions(1), 0);
    assert_eq!(read(&plain(&old, 4, 1), 0x8000_001e, 0), [0; 4]);
    assert_ne!(topology_extensions(2), 0);
    assert_eq!(read(&plain(&old, 4, 2), 0x8000_001e, 0), [0, 0x100, 0, 0]);
    // And one that has them, on a kernel whose table ends before, gets the leaf and a table that reaches it.
    for line in &mut old {
        match line.0 {
            0x8000_0000 => line.2[0] = 0x8000_001a,
            0x8000_0001 => line.2[2] |= 1 << 22,
            _ => {}
        }
    }
    let cpuid = plain(&old, 4, 2);
    assert_eq!(read(&cpuid, 0x8000_001e, 0), [0, 0x100, 0, 0]);
    assert_eq!(read(&cpuid, 0x8000_0000, 0)[0], 0x8000_001e);
}

#[test]
fn guest_cannot_nest_encrypt_or_trace_and_does_not_see_the_hosts_state() {
    let cpuid = plain(INTEL, 2, 1);
    let ecx = read(&cpuid, 1, 0)[2];
    assert_eq!(ecx >> 5 & 3, 0, "VMX and SMX");
    assert_eq!(ecx >> 27 & 1, 0, "OSXSAVE");
    assert_eq!(ecx >> 31, 1, "hypervisor");
    let [_, ebx, ecx, _] = read(&cpuid, 7, 0);
    assert_eq!(ebx, ALL & !(1 << 2) & !(1 << 25), "SGX and processor trace");
    assert_eq!(ecx, ALL & !(1 << 4) & !(1 << 30), "OSPKE and SGX launch control");
    assert_eq!(read(&cpuid, 7, 1), [0x30, 0, 0, 0], "further features are KVM's to say");
    for (leaf, index) in [(0x12, 0), (0x12, 2), (0x14, 0)] {
        assert_eq!(read(&cpuid, leaf, index), [0; 4], "leaf {leaf:#x}");
    }
    assert_eq!(read(&cpuid, 6, 0), [4, 0, 0, 0], "only the ever-running APIC timer");

    let cpuid = plain(AMD, 2, 1);
    assert_eq!(
        read(&cpuid, 0x8000_0001, 0)[2],
        0x75c2_37ff & !0x1980_1404,
        "SVM, SKINIT, sampling, counters"
    );
    for leaf in [0x8000_000a, 0x8000_001b, 0x8000_001f, 0x8000_0022] {
        assert_eq!(read(&cpuid, leaf, 0), [0; 4], "leaf {leaf:#x}");
    }
    assert_eq!(read(&cpuid, 0x8000_0007, 0)[3], 0x100, "the invariant TSC is KVM's to say");
    assert_eq!(read(&cpuid, 0xd, 0), [0x207, 0x988, 0x988, 0]);
}

#[test]
fn tsc_deadline_and_arch_capabilities_are_there_when_told_so() {
    for on in [false, true] {
        let options = CpuidOptions { tsc_deadline_timer: on, arch_capabilities: on, ..Default::default() };
        for lines in [INTEL, AMD] {
            let cpuid = template(lines, 1, 1, options).for_vcpu(0);
            assert_eq!(read(&cpuid, 1, 0)[2] >> 24 & 1, u32::from(on));
            assert_eq!(read(&cpuid, 7, 0)[3] >> 29 & 1, u32::from(on));
        }
    }
}

#[test]
fn performance_counters_are_there_when_wanted() {
    const INTEL_LEAVES: [u32; 2] = [0xa, 0x1c];
    let with = |lines, pmu| template(lines, 1, 1, CpuidOptions { pmu, ..Default::default() }).for_vcpu(0);
    let intel = with(INTEL, true);
    assert_eq!(read(&intel, 0xa, 0), INTEL[11].2);
    assert_eq!(read(&intel, 1, 0)[2] & 0x8014, 0x8014);
    let amd = with(AMD, true);
    assert_eq!(read(&amd, 0x8000_0022, 0), [1, 0x46, 0, 0]);
    assert_eq!(read(&amd, 0x8000_0001, 0)[2] & 0x1180_0000, 0x1180_0000 & 0x75c2_37ff);
    let intel = with(INTEL, false);
    for leaf in INTEL_LEAVES {
        assert_eq!(read(&intel, leaf, 0), [0; 4]);
    }
    let [_, _, ecx, edx] = read(&intel, 1, 0);
    assert_eq!((ecx & 0x8014, edx >> 21 & 1), (0, 0), "PDCM, DTES64, DS-CPL and DS");
    assert_eq!(read(&intel, 7, 0)[3] >> 19 & 1, 0, "branch records");
}

#[test]
fn known_tsc_frequency_is_told_in_kvms_leaf_and_in_intels() {
    let options = CpuidOptions { tsc_khz: Some(2_400_000), ..Default::default() };
    for lines in [INTEL, AMD] {
        let cpuid = template(lines, 1, 1, options).for_vcpu(0);
        assert_eq!(read(&cpuid, 0x4000_0000, 0), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(read(&cpuid, 0x4000_0001, 0), [0x0100_7efb, 0, 0, 0]);
        assert_eq!(read(&cpuid, 0x4000_0010, 0), [2_400_000, 1_000_000, 0, 0]);
    }
    let cpuid = template(INTEL, 1, 1, options).for_vcpu(0);
    assert_eq!(read(&cpuid, 0x15, 0), [500, 1200, 1_000_000_000, 0]);
    assert_eq!(read(&cpuid, 0x16, 0), [2400, 2400, 0, 0]);
    let mut short: Vec<Line> = INTEL.to_vec();
    short[0].2[0] = 0xd;
    assert_eq!(read(&template(&short, 1, 1, options).for_vcpu(0), 0, 0)[0], 0x16);
    assert_eq!(read(&template(AMD, 1, 1, options).for_vcpu(0), 0x15, 0), [0; 4], "reserved on AMD");

    for tsc_khz in [None, Some(0)] {
        let cpuid = template(INTEL, 1, 1, CpuidOptions { tsc_khz, ..Default::default() }).for_vcpu(0);
        assert_eq!(read(&cpuid, 0x4000_0000, 0)[0], 0x4000_0001);
        assert_eq!(read(&cpuid, 0x4000_0010, 0), [0; 4]);
        assert_eq!(read(&cpuid, 0x15, 0), [0; 4]);
    }
}

#[test]
fn hygon_is_treated_as_amd_and_strangers_are_named_in_the_error() {
    let named = |name: &[u8; 12]| {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        let mut lines = AMD.to_vec();
        lines[0].2 = [0xd, word(0), word(8), word(4)];
        let topology = Topology::new(2, 2).unwrap();
        CpuidTemplate::new(&table(&lines), &topology, &CpuidOptions::default())
    };
    let hygon = named(b"HygonGenuine").unwrap().for_vcpu(1);
    assert_eq!(read(&hygon, 0x8000_001e, 0), [1, 0x100, 0, 0]);
    let error = named(b"Transmeta\"\0\n").unwrap_err();
    assert_eq!(error.to_string(), r#"the host's CPU vendor "Transmeta\"\x00\n" is not known"#);
}

#[test]
fn tables_without_the_first_leaves_and_bad_topologies_are_refused() {
    let new = |lines: &[Line], vcpus| {
        let topology = Topology { vcpus, threads_per_core: 1 };
        CpuidTemplate::new(&table(lines), &topology, &CpuidOptions::default()).unwrap_err()
    };
    assert_eq!(new(&[], 1), Error::MissingLeaf { leaf: 0 });
    assert_eq!(new(&INTEL[..1], 1), Error::MissingLeaf { leaf: 1 });
    assert_eq!(new(INTEL, 0), Error::VcpuCount { vcpus: 0, max: 254 });
    assert_eq!(new(INTEL, 255), Error::VcpuCount { vcpus: 255, max: 254 });
}

#[test]
fn table_that_grows_beyond_kvms_limit_is_refused() {
    let mut lines = INTEL.to_vec();
    let filler = (0x2000_0000..).map(|function| (function, 0, [1; 4]));
    lines.extend(filler.take(KVM_MAX_CPUID_ENTRIES - INTEL.len()));
    let options = CpuidOptions { pmu: true, tsc_khz: Some(2_400_000), ..Default::default() };
    let result = CpuidTemplate::new(&table(&lines), &Topology::new(1, 1).unwrap(), &options);
    assert!(matches!(result, Err(Error::TooManyEntries { count: 257.., max: 256 })), "{result:?}");
}

proptest! {
    #[test]
    fn any_table_gives_a_sorted_one_without_duplicates_or_an_error(
        lines in prop::collection::vec(
            (
                prop_oneof![0..0x24_u32, 0x8000_0000..0x8000_0028_u32, 0x4000_0000..0x4000_0012_u32, any::<u32>()],
                0..4_u32,
                any::<[u32; 4]>(),
            ),
            0..150,
        ),
        amd: bool,
        vcpus: u8,
        threads_per_core in 0..4_u8,
        tsc_khz: Option<u32>,
        flags: [bool; 3],
    ) {
        let mut lines: Vec<Line> = lines;
        let vendor = if amd { AMD[0] } else { INTEL[0] };
        lines.insert(0, (1, 0, lines.first().map_or([0; 4], |line| line.2)));
        lines.push(vendor);
        let [tsc_deadline_timer, arch_capabilities, pmu] = flags;
        let options = CpuidOptions { tsc_khz, tsc_deadline_timer, arch_capabilities, pmu };
        let topology = Topology { vcpus, threads_per_core };
        let result = CpuidTemplate::new(&table(&lines), &topology, &options);
        prop_assert_eq!(result.is_ok(), topology.validate().is_ok());
        if let Ok(template) = result {
            let cpuid = template.for_vcpu(vcpus - 1);
            let keys: Vec<_> = cpuid.as_slice().iter().map(|entry| (entry.function, entry.index)).collect();
            prop_assert!(keys.is_sorted_by(|one, next| one < next));
            prop_assert_eq!(read(&cpuid, 1, 0)[1] >> 24, u32::from(vcpus) - 1);
        }
    }
}
