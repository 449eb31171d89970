//! Tests of built memory, through what the kernel says about the mappings of this process.

use std::{fs, os::unix::fs::FileExt, sync::Mutex, thread};

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, bitmap::AtomicBitmap};

use super::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const ANONYMOUS: Backing = Backing::Anonymous { transparent_huge: false };
const TRANSPARENT: Backing = Backing::Anonymous { transparent_huge: true };

fn memory(bytes: u64, backing: Backing) -> GuestMemoryMmap {
    build(&Layout::new(bytes, 46).unwrap(), backing).unwrap()
}

/// What /proc/self/smaps says about the mapping that holds `address`.
fn smaps(address: *mut u8) -> Vec<(String, String)> {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = Vec::new();
    let mut inside = false;
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap();
        if let Some((start, end)) = key.split_once('-') {
            let [start, end] = [start, end].map(|address| usize::from_str_radix(address, 16).unwrap());
            inside = (start..end).contains(&address.addr());
        } else if inside {
            found.push((key.trim_end_matches(':').to_owned(), value.trim().to_owned()));
        }
    }
    assert!(!found.is_empty(), "{address:?} is not mapped");
    found
}

fn smaps_entry(address: *mut u8, key: &str) -> String {
    smaps(address).into_iter().find(|entry| entry.0 == key).unwrap().1
}

fn kib(address: *mut u8, key: &str) -> u64 {
    smaps_entry(address, key).trim_end_matches(" kB").parse().unwrap()
}

fn has_flag(mapping: &MmapRegion, flag: &str) -> bool {
    smaps_entry(mapping.as_ptr(), "VmFlags").split(' ').any(|word| word == flag)
}

/// How often this host had to give small pages where huge ones were asked for.
fn huge_page_fallbacks() -> u64 {
    let counters = fs::read_to_string("/proc/vmstat").unwrap();
    let count = counters.lines().find_map(|line| line.strip_prefix("thp_fault_fallback "));
    count.map_or(0, |count| count.parse().unwrap())
}

/// Held by tests that reserve huge pages, of which there is one number for the whole host.
static HUGE_PAGES: Mutex<()> = Mutex::new(());

/// How many huge pages of 2 MiB the host has free, and how many of those are reserved.
fn huge_pages() -> (u64, u64) {
    let [free, reserved] = ["free_hugepages", "resv_hugepages"].map(|name| {
        fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"))
            .map_or(0, |text| text.trim().parse().unwrap())
    });
    (free, reserved)
}

#[test]
fn memory_has_the_regions_of_the_layout() {
    for backing in [ANONYMOUS, TRANSPARENT, Backing::Memfd] {
        for bytes in [MIB, 3 * GIB - 4096, 3 * GIB, 3 * GIB + 4096, 5 * GIB] {
            let layout = Layout::new(bytes, 46).unwrap();
            let memory = build(&layout, backing).unwrap();
            let regions: Vec<_> = memory
                .iter()
                .map(|region| Range { start: region.start_addr().0, size: region.len() })
                .collect();
            assert_eq!(regions, layout.ram());
        }
    }
}

#[test]
fn memory_is_zeroed_and_writable_from_end_to_end() {
    for backing in [ANONYMOUS, Backing::Memfd] {
        let memory = memory(3 * GIB + 4096, backing);
        for address in [0, 3 * GIB - 8, 4 * GIB, 4 * GIB + 4096 - 8] {
            assert_eq!(memory.read_obj::<u64>(GuestAddress(address)).unwrap(), 0);
            memory.write_obj(address | 1, GuestAddress(address)).unwrap();
        }
        for address in [0, 3 * GIB - 8, 4 * GIB, 4 * GIB + 4096 - 8] {
            assert_eq!(memory.read_obj::<u64>(GuestAddress(address)).unwrap(), address | 1);
        }
        assert!(memory.read_obj::<u64>(GuestAddress(3 * GIB)).is_err());
    }
}

#[test]
fn host_addresses_are_aligned_like_guest_addresses() {
    for backing in [ANONYMOUS, TRANSPARENT, Backing::Memfd] {
        for bytes in [2 * MIB, 2 * MIB + 4096, 127 * MIB + 4096, 256 * MIB, 3 * GIB + 5 * MIB + 4096] {
            for region in memory(bytes, backing).iter() {
                assert_eq!(
                    region.as_ptr().addr() as u64 % HUGE_PAGE_SIZE,
                    region.start_addr().0 % HUGE_PAGE_SIZE,
                    "{backing:?}, {bytes} bytes"
                );
            }
        }
    }
}

#[test]
fn transparent_huge_pages_apply() {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !setting.contains("[always]") && !setting.contains("[madvise]") {
        eprintln!("skipped: this host has no transparent huge pages");
        return;
    }
    let memory = memory(64 * MIB, TRANSPARENT);
    let region = memory.find_region(GuestAddress(0)).unwrap();
    assert!(has_flag(region, "hg"));
    let fallbacks = huge_page_fallbacks();
    memory.write_obj(1_u8, GuestAddress(32 * MIB)).unwrap();
    // A host that is short of huge pages gives small ones, and counts that.
    let huge = kib(region.as_ptr(), "AnonHugePages");
    assert!(huge == 2048 || huge == 0 && huge_page_fallbacks() > fallbacks, "{huge} KiB");
}

#[test]
fn memory_is_taken_from_the_host_only_when_touched() {
    for backing in [ANONYMOUS, TRANSPARENT, Backing::Memfd] {
        let memory = memory(1024 * GIB, backing);
        for region in memory.iter() {
            assert!(has_flag(region, "nr"), "{backing:?} is accounted for at once");
            assert_eq!(kib(region.as_ptr(), "Rss"), 0);
        }
        let last = memory.last_addr();
        memory.write_obj(1_u8, last).unwrap();
        let touched = memory.get_host_address(last).unwrap();
        assert!((4..=2048).contains(&kib(touched, "Rss")));
    }
}

#[test]
fn memory_stays_out_of_core_dumps() {
    for backing in [ANONYMOUS, TRANSPARENT, Backing::Memfd] {
        for region in memory(4 * GIB, backing).iter() {
            assert!(has_flag(region, "dd"), "{backing:?} is dumped");
        }
    }
}

#[test]
fn memfd_holds_the_parts_of_ram_one_behind_the_other() {
    let memory = memory(4 * GIB, Backing::Memfd);
    for (address, offset) in [(0x1000, 0x1000), (4 * GIB + 0x1000, 3 * GIB + 0x1000)] {
        memory.write_obj(address, GuestAddress(address)).unwrap();
        let region = memory.find_region(GuestAddress(address)).unwrap();
        assert_eq!(region.file_offset().unwrap().start(), offset - 0x1000);

        let mut seen = [0; 8];
        region.file_offset().unwrap().file().read_exact_at(&mut seen, offset).unwrap();
        assert_eq!(u64::from_ne_bytes(seen), address);
    }
}

#[test]
fn memfd_can_neither_shrink_nor_grow_nor_be_sealed_further() {
    let memory = memory(MIB, Backing::Memfd);
    let file = memory.find_region(GuestAddress(0)).unwrap().file_offset().unwrap().file();
    for size in [0, MIB - 4096, MIB + 4096] {
        let refused = file.set_len(size).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }
    // SAFETY: the call involves no memory.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) };
    assert_eq!((sealed, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
}

#[test]
fn too_few_huge_pages_are_an_error_that_says_how_many_it_takes() {
    let _alone = HUGE_PAGES.lock();
    let error = build(&Layout::new(64 << 40, 52).unwrap(), Backing::HugeTlb2M).unwrap_err();
    assert!(matches!(error, Error::HugePages { pages: 33_554_432, .. }), "failed otherwise: {error}");
    assert!(error.to_string().contains("33554432 huge pages of 2 MiB"), "{error}");
}

#[test]
fn ram_of_a_part_of_a_huge_page_is_refused() {
    for bytes in [MIB, 3 * MIB, 3 * GIB + 4096] {
        let refused = build(&Layout::new(bytes, 46).unwrap(), Backing::HugeTlb2M).unwrap_err();
        assert!(matches!(refused, Error::PartHugePage { bytes: named } if named == bytes));
    }
}

#[test]
fn huge_pages_are_reserved_at_once_and_given_back() {
    let _alone = HUGE_PAGES.lock();
    let (free, reserved) = huge_pages();
    if free - reserved < 8 {
        eprintln!("skipped: this host has no free huge pages");
        return;
    }
    let memory = memory(16 * MIB, Backing::HugeTlb2M);
    assert_eq!(huge_pages(), (free, reserved + 8));

    let region = memory.find_region(GuestAddress(0)).unwrap();
    assert_eq!(region.is_hugetlbfs(), Some(true));
    assert!(has_flag(region, "dd"));
    assert_eq!(region.as_ptr().addr() as u64 % HUGE_PAGE_SIZE, 0);
    for page in 0..8 {
        memory.write_obj(1_u8, GuestAddress(page * HUGE_PAGE_SIZE)).unwrap();
    }
    assert_eq!(huge_pages(), (free - 8, reserved));
    drop(memory);
    assert_eq!(huge_pages(), (free, reserved));
}

#[test]
fn dirty_pages_can_be_tracked() {
    let layout = Layout::new(4 * MIB, 46).unwrap();
    let memory = build_with_bitmap::<AtomicBitmap>(&layout, ANONYMOUS).unwrap();
    memory.write_obj(1_u8, GuestAddress(2 * MIB)).unwrap();
    let bitmap = memory.find_region(GuestAddress(0)).unwrap().bitmap();
    assert!(vm_memory::bitmap::Bitmap::dirty_at(&bitmap, 2 * MIB as usize));
    assert!(!vm_memory::bitmap::Bitmap::dirty_at(&bitmap, MIB as usize));
}

#[test]
fn memory_can_be_built_while_other_threads_map() {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for bytes in [2 * MIB + 4096, 16 * MIB, 3 * GIB + 4096] {
                    let memory = memory(bytes, Backing::Memfd);
                    memory.write_obj(1_u8, memory.last_addr()).unwrap();
                }
            });
        }
    });
}
