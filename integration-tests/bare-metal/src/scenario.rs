//! What the guest does, chosen by `scenario=NAME` on the kernel command line:
//!
//! | name | does |
//! |---|---|
//! | `hello` (default) | prints a greeting with the boot protocol, and its command line |
//! | `echo` | prints `ready`, then echoes console input until a line `q` |
//! | `flood` | prints `kib=N` KiB of numbered lines, see [`flood`] |
//! | `memory` | prints the memory map and checks RAM at both ends of each range |
//! | `sweep` | reads every port, and samples of the device address space |
//! | `spin` | prints `spinning` and does so for ever |
//! | `heartbeat` | prints `beat N GAP` every `ticks=N` time stamps, see [`heartbeat`] |
//! | `ports` | prints `reading` and reads a port for ever, each time through the monitor |
//! | `blk`, `net`, `vsock` | has that device do what it can and prints `measured WORK TICKS`, see [`load`](crate::load) |
//! | `reset-i8042`, `reset-acpi`, `triple-fault` | ends that way |
//!
//! A scenario that comes to its end powers the machine off through ACPI; one that fails says so and faults.

use core::fmt::Write;

use crate::boot_info::BootInfo;
use crate::console::{self, Console};
use crate::entry::MAPPED_GIB;
use crate::{load, machine, power};

macro_rules! print {
    ($($argument:tt)*) => {
        // The console's writer never fails.
        let _ = writeln!(Console, $($argument)*);
    };
}

/// Runs the scenario of the command line to the machine's end.
pub fn run(boot_info: &BootInfo) -> ! {
    console::enable_fifo();
    let result = match boot_info.option("scenario").unwrap_or("hello") {
        "hello" => hello(boot_info),
        "echo" => echo(),
        "flood" => boot_info.option("kib").and_then(|kib| kib.parse().ok()).ok_or("no kib=N").map(flood),
        "memory" => memory(boot_info),
        "sweep" => sweep(),
        "spin" => spin(),
        "heartbeat" => heartbeat(boot_info),
        "ports" => ports(),
        "blk" => load::blk(boot_info),
        "net" => load::net(boot_info),
        "vsock" => load::vsock(boot_info),
        "reset-i8042" => power::reset_by_keyboard_controller().map(drop),
        "reset-acpi" => power::reset_by_acpi(boot_info.rsdp).map(drop),
        "triple-fault" => power::triple_fault(),
        _ => Err("unknown scenario"),
    };
    let Err(failure) = result.and_then(|()| power::power_off(boot_info.rsdp));
    print!("guest: {failure}");
    power::triple_fault()
}

fn hello(boot_info: &BootInfo) -> Result<(), &'static str> {
    print!("hello by the {} boot protocol", boot_info.protocol);
    print!("command line: {}", boot_info.command_line());
    Ok(())
}

fn echo() -> Result<(), &'static str> {
    print!("ready");
    // The last two bytes: the line `q` is preceded by a line feed or nothing.
    let mut before = [b'\n', b'\n'];
    loop {
        let byte = console::read();
        console::write(&[byte]);
        if [before[0], before[1], byte] == *b"\nq\n" {
            return Ok(());
        }
        before = [before[1], byte];
    }
}

/// Prints `kib` KiB in lines of 64 bytes: the line's number in 8 hexadecimal digits, a space, 54 bytes that turn with
/// the number through `a` to `z`, a line feed. Ends at once, so that what the monitor still holds must come out after
/// the guest's end.
fn flood(kib: u32) {
    for line in 0..kib.saturating_mul(16) {
        let mut text = [b'\n'; 64];
        for (index, digit) in text.iter_mut().take(8).enumerate() {
            *digit = b"0123456789abcdef"[(line >> (28 - 4 * index) & 0xf) as usize];
        }
        text[8] = b' ';
        for (index, letter) in text.iter_mut().enumerate().take(63).skip(9) {
            *letter = b'a' + ((line as usize + index) % 26) as u8;
        }
        console::write(&text);
    }
}

fn memory(boot_info: &BootInfo) -> Result<(), &'static str> {
    const RAM: u32 = 1;
    const PATTERN: u64 = 0x5aa5_c33c_0ff0_9669;
    for range in boot_info.memory_map() {
        print!("{:#014x} {:#014x} {}", range.start, range.start + range.size, range.kind);
        if range.kind != RAM || range.size < 8 {
            continue;
        }
        if range.start + range.size > MAPPED_GIB << 30 {
            return Err("RAM goes beyond what the guest has mapped");
        }
        for address in [range.start, range.start + range.size - 8] {
            let old = machine::read(address);
            // SAFETY: the old value is put back at once; the guest's image and stack are inside of RAM, not at its ends
            // but for the first page table entry or code bytes, which are not used in between.
            let new = unsafe {
                machine::write(address, old ^ PATTERN);
                let new = machine::read(address);
                machine::write(address, old);
                new
            };
            if new != old ^ PATTERN {
                return Err("RAM does not keep what is written");
            }
        }
    }
    print!("memory is as described");
    Ok(())
}

/// Only reads: a write may reset the machine or turn the console off.
fn sweep() -> Result<(), &'static str> {
    for port in 0..=u16::MAX {
        machine::read_port(port);
    }
    for port in (0..u16::MAX).step_by(0x31) {
        machine::read_port_32(port);
    }
    // The last GiB below 4 GiB, where devices, I/O APIC and local APIC lie.
    for address in (0xc000_0000..0x1_0000_0000).step_by(0x4_0000) {
        machine::read(address);
    }
    print!("swept");
    Ok(())
}

fn spin() -> ! {
    print!("spinning");
    loop {
        core::hint::spin_loop();
    }
}

/// Prints `beat N GAP` every `ticks=N` time stamps for ever: the number of the line, and the most time stamps between two
/// looks at the counter since the line before, its printing included. Each time, it tells the monitor's boot timer, too.
fn heartbeat(boot_info: &BootInfo) -> Result<(), &'static str> {
    const BOOT_TIMER: u64 = 0xc000_0000;
    const BOOTED: u8 = 123;
    let ticks = load::number(boot_info, "ticks")?;
    let mut seen = machine::time_stamp();
    for beat in 1_u64.. {
        let (start, mut gap) = (seen, 0);
        while seen - start < ticks {
            core::hint::spin_loop();
            let now = machine::time_stamp();
            gap = gap.max(now - seen);
            seen = now;
        }
        print!("beat {beat} {gap}");
        machine::write_device(BOOT_TIMER, BOOTED);
    }
    Ok(())
}

fn ports() -> ! {
    print!("reading");
    loop {
        machine::read_port(console::LINE_STATUS);
    }
}
