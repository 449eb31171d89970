//! A kernel file of any contents: it loads into RAM, or it does not load.

#![no_main]

use std::io::Cursor;
use std::sync::OnceLock;

use kindling_boot::{PreferredProtocol, Protocol, Request, load, registers};
use kindling_memory_layout::Range;
use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const RAM: u64 = 8 << 20;
const MIB: u64 = 1 << 20;

fuzz_target!(|kernel: &[u8]| {
    static MEMORY: OnceLock<GuestMemoryMmap> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)])
            .unwrap_or_else(|_| std::process::abort())
    });
    // The input is the file, whole, so that real kernels are seeds. Its length chooses the preference.
    let protocol = match kernel.len() % 4 {
        1 => PreferredProtocol::Linux64,
        3 => PreferredProtocol::Pvh,
        _ => PreferredProtocol::Auto,
    };
    let initrd: &[u8] = &[0xee; 5000];
    let request = Request {
        kernel: Cursor::new(kernel),
        initrd: Some(Cursor::new(initrd)),
        cmdline: "console=ttyS0",
        rsdp: None,
        protocol,
    };
    let Ok(loaded) = load(memory, &[Range { start: 0, size: RAM }], request) else { return };
    let kernel_end = loaded.kernel_end.0;
    assert!((MIB..kernel_end).contains(&loaded.entry.0) && kernel_end <= RAM);
    assert!(protocol != PreferredProtocol::Pvh || loaded.protocol == Protocol::Pvh);
    let initrd = loaded.initrd.unwrap_or(Range { start: 0, size: 0 });
    assert!(initrd.start >= MIB && initrd.end() <= RAM && initrd.size == 5000);
    assert_eq!(registers(&loaded).rip, loaded.entry.0);
});
