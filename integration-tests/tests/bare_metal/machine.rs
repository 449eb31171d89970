//! The machine that the guest finds: boot protocols, command line, processors, memory, and address spaces that answer
//! wherever the guest reads.

use std::time::{Duration, Instant};

use kindling_integration_tests::harness::scaled;

use crate::process::{Vmm, command, finish, finish_run, images, run};

#[test]
fn a_kernel_with_a_pvh_entry_is_entered_there() {
    let ended = finish_run("hello", &[], 0);
    assert!(ended.output.contains("hello by the PVH boot protocol\n"), "{ended:?}");
}

#[test]
fn the_linux_boot_protocol_can_be_chosen() {
    let ended = finish_run("hello", &["--boot-protocol", "linux64"], 0);
    assert!(ended.output.contains("hello by the Linux boot protocol\n"), "{ended:?}");
}

#[test]
fn both_protocols_carry_command_line_memory_map_and_acpi_tables() {
    for protocol in ["linux64", "pvh"] {
        let options = ["--boot-protocol", protocol];
        let ended = finish_run("hello  with='a word'", &options, 0);
        assert!(ended.output.contains("scenario=hello  with='a word'"), "{ended:?}");
        let ended = finish_run("memory", &options, 0);
        assert!(ended.output.contains("memory is as described"), "{ended:?}");
    }
}

#[test]
fn a_configuration_file_starts_the_same_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.json");
    let config = serde_json::json!({
        "boot-source": { "kernel_image_path": images().guest, "boot_args": "scenario=hello from=file" },
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 64 },
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let ended = finish(&mut command(&["--config-file".as_ref(), path.as_os_str(), "--no-api".as_ref()]), 0);
    assert!(ended.output.contains("scenario=hello from=file"), "{ended:?}");
}

#[test]
fn every_number_of_processors_starts() {
    for cpus in ["1", "2", "8", "254"] {
        let ended = finish_run("hello", &["--cpus", cpus], 0);
        assert!(ended.output.contains("hello by"), "{cpus}: {ended:?}");
    }
}

#[test]
fn every_processor_has_its_thread() {
    let mut vmm = Vmm::start(&mut run("spin", &["--cpus", "8"]));
    vmm.wait_for("spinning");
    // A thread gives itself its name, which may take it a moment.
    let deadline = Instant::now() + scaled(Duration::from_secs(10));
    let threads = || vmm.threads().into_iter().filter(|name| name.starts_with("vcpu ")).count();
    while threads() != 8 {
        assert!(Instant::now() < deadline, "{} threads of 8", threads());
        std::thread::sleep(Duration::from_millis(5));
    }
    vmm.signal(libc::SIGTERM);
    vmm.end(143);
}

#[test]
fn the_memory_map_adds_up_and_ram_is_there_at_both_ends_of_each_range() {
    for (memory, mebibytes) in [("32M", 32), ("128", 128), ("5G", 5 << 10)] {
        let ended = finish_run("memory", &["--memory", memory], 0);
        assert!(ended.output.contains("memory is as described"), "{memory}: {ended:?}");
        let ram: u64 = ended.output.lines().filter_map(ram_bytes).sum();
        // What lies below 1 MiB is partly for the firmware's tables.
        let short = (mebibytes << 20) - ram;
        assert!(short < 1 << 20, "{memory}: {short:#x} bytes missing: {}", ended.output);
    }
}

#[test]
fn a_guest_can_have_as_much_memory_as_the_machine() {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let kibibytes: u64 = total.split_whitespace().next().unwrap().parse().unwrap();
    // It is taken page by page, as the guest uses it.
    let ended = finish_run("hello", &["--memory", &format!("{}M", kibibytes >> 10)], 0);
    assert!(ended.output.contains("hello by the "), "{ended:?}");
}

/// The size of the range that a line of the memory map describes, if it is RAM.
fn ram_bytes(line: &str) -> Option<u64> {
    let mut words = line.split(' ').map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let (start, end, kind) = (words.next()??, words.next()??, words.next()??);
    (kind == 1).then_some(end - start)
}

#[test]
fn reads_of_every_port_and_all_over_the_device_space_do_no_harm() {
    let ended = finish_run("sweep", &["--memory", "64M"], 0);
    assert!(ended.output.contains("swept"), "{ended:?}");
}
