//! What a failed build says and leaves behind: the only test in its process, so that nothing else maps or opens.

use std::fs;

use kindling_memory_layout::{Backing, Error, Layout, build};

const TIB: u64 = 1 << 40;

#[test]
fn failed_build_states_the_size_and_leaves_nothing_mapped_or_open() {
    // Mapped bytes and open files of this process.
    let footprint = || {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        (pages * 4096, fs::read_dir("/proc/self/fd").unwrap().count())
    };
    // The part below the gap can be mapped; the part above is more than any process can address.
    let layout = Layout::new(300 * TIB, 52).unwrap();
    let (mapped, open) = footprint();
    for backing in [Backing::Anonymous { transparent_huge: false }, Backing::Memfd] {
        let error = build(&layout, backing).unwrap_err();
        assert!(
            matches!(error, Error::Map { range, .. } if range == layout.ram()[1]),
            "{backing:?} failed otherwise: {error}"
        );
        let stated = "mapping 329850267107328 bytes of guest ram at 0x100000000..0x12c0040000000";
        assert_eq!(error.to_string(), stated);
        let (mapped_now, open_now) = footprint();
        assert!(mapped_now < mapped + (1 << 30), "{backing:?} left {mapped_now} bytes mapped, from {mapped}");
        assert_eq!(open_now, open);
    }
}
