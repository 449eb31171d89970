//! Random bytes, and memory that the guest gives up and takes back.

use std::fs;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::{Guest, scaled};

use super::{output, power_off, ready};

const MIB: u64 = 1 << 20;

/// Bytes of the monitor's memory that are resident.
fn resident(guest: &Guest) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", guest.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Waits until `condition` holds of the resident bytes; returns them.
pub fn wait_resident(guest: &Guest, what: &str, condition: impl Fn(u64) -> bool) -> u64 {
    let end = Instant::now() + scaled(Duration::from_secs(60));
    loop {
        let bytes = resident(guest);
        if condition(bytes) {
            return bytes;
        }
        assert!(Instant::now() < end, "{what}: {} MiB are resident", bytes / MIB);
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until the KiB that are free in the guest are as a condition of test(1) has it.
pub fn wait_free(guest: &mut Guest, condition: &str) {
    let free = "awk '/MemFree/ {print $2}' /proc/meminfo";
    output(guest, &format!("until [ $({free}) {condition} ]; do sleep 0.1; done"));
}

/// Has the guest write to as much memory, and free it.
pub fn touch(guest: &mut Guest, mebibytes: u64) {
    fill(guest, mebibytes);
    free(guest);
}

/// Has the guest write to as much memory, and keep it until it shall [`free`] it.
fn fill(guest: &mut Guest, mebibytes: u64) {
    let command = format!(
        "mkdir -p /tmp/full && mount -t tmpfs -o size=100% none /tmp/full && \
         dd if=/dev/zero of=/tmp/full/file bs=1M count={mebibytes} 2>/dev/null"
    );
    let filled = guest.run_within(&command, Duration::from_secs(300)).unwrap();
    assert_eq!(filled.code, 0, "{filled:?}");
}

fn free(guest: &mut Guest) {
    output(guest, "umount /tmp/full");
}

#[test]
fn hwrng_reads_random_bytes() {
    let mut guest = ready(Guest::builder().modules(&["virtio_mmio", "virtio_rng"]).arg("--rng"));
    let current = output(&mut guest, "cat /sys/class/misc/hw_random/rng_current");
    assert!(current.starts_with("virtio_rng"), "{current}");
    let count = output(
        &mut guest,
        "dd if=/dev/hwrng bs=4096 count=16 iflag=fullblock 2>/dev/null | tee /tmp/r | wc -c",
    );
    assert_eq!(count, "65536");
    // Random bytes do not get smaller.
    let packed: u32 = output(&mut guest, "gzip -c /tmp/r | wc -c").parse().unwrap();
    assert!(packed > 65_000, "{packed}");
    power_off(&mut guest);
}

#[test]
fn a_balloon_of_half_the_memory_is_the_hosts_until_the_guest_takes_it_back() {
    let mut guest =
        ready(Guest::builder().memory("256M").modules(&["virtio_mmio"]).arg("--balloon").arg("128M"));
    touch(&mut guest, 150);
    let full = wait_resident(&guest, "after much memory was touched", |bytes| bytes > 150 * MIB);
    output(&mut guest, "modprobe virtio_balloon");
    let inflated = wait_resident(&guest, "with the balloon", |bytes| bytes + 100 * MIB < full);
    println!("{} MiB, with the balloon {} MiB", full / MIB, inflated / MIB);
    let total = "awk '/MemTotal/ {print $2}' /proc/meminfo";
    let smaller: u64 = output(&mut guest, total).parse().unwrap();
    assert!(smaller < 128 << 10, "{smaller}");

    output(&mut guest, "cd /sys/bus/virtio/drivers/virtio_balloon && ls | grep ^virtio > unbind");
    touch(&mut guest, 150);
    wait_resident(&guest, "after the balloon was gone", |bytes| bytes + 30 * MIB > full);

    output(&mut guest, "rmmod virtio_balloon && modprobe virtio_balloon");
    wait_resident(&guest, "with the second driver", |bytes| bytes + 100 * MIB < full);
    power_off(&mut guest);
}

/// So many of the host's pages of 2 MiB set aside, until it is dropped. Needs root.
struct HugePages(String);

impl HugePages {
    const COUNT: &str = "/proc/sys/vm/nr_hugepages";

    fn set_aside(count: u64) -> Self {
        let before = fs::read_to_string(Self::COUNT).unwrap().trim().to_owned();
        let pages = Self(before);
        let wanted = pages.0.parse::<u64>().unwrap() + count;
        fs::write(Self::COUNT, wanted.to_string()).unwrap();
        assert_eq!(fs::read_to_string(Self::COUNT).unwrap().trim(), wanted.to_string());
        pages
    }

    fn free() -> u64 {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(Self::COUNT, &self.0);
    }
}

#[test]
fn free_huge_pages_are_reported_to_the_host() {
    const COUNT: u64 = 128;
    let _pages = HugePages::set_aside(COUNT);
    let mut guest = ready(
        Guest::builder()
            .memory("256M")
            .modules(&["virtio_mmio", "virtio_balloon"])
            .arg("--huge-pages")
            .arg("2M")
            .arg("--balloon")
            .arg("0,reporting"),
    );
    fill(&mut guest, 120);
    let full = HugePages::free();
    free(&mut guest);
    // The guest has freed 60 such pages, and not all of them as a whole.
    let end = Instant::now() + scaled(Duration::from_secs(60));
    while HugePages::free() < full + 30 {
        assert!(Instant::now() < end, "{} of {COUNT} pages are free, {full} before", HugePages::free());
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("{} of {COUNT} pages free after reporting, {full} before", HugePages::free());
    touch(&mut guest, 120);
    power_off(&mut guest);
}

#[test]
fn a_balloon_gives_way_when_the_guest_runs_out_of_memory() {
    let mut guest = ready(
        Guest::builder().memory("256M").modules(&["virtio_mmio"]).arg("--balloon").arg("160M,deflate-on-oom"),
    );
    // What the balloon takes counts as the guest's, with this feature, but is not free.
    output(&mut guest, "modprobe virtio_balloon");
    wait_free(&mut guest, "-lt 90000");
    // More than is left beside the balloon.
    touch(&mut guest, 120);
    power_off(&mut guest);
}

#[test]
fn free_pages_are_reported_to_the_host() {
    let mut guest = ready(
        Guest::builder()
            .memory("512M")
            .modules(&["virtio_mmio", "virtio_balloon"])
            .arg("--balloon")
            .arg("0,reporting"),
    );
    touch(&mut guest, 300);
    let free = wait_resident(&guest, "after the memory was freed", |bytes| bytes < 200 * MIB);
    println!("{} MiB resident after reporting", free / MIB);
    power_off(&mut guest);
}
