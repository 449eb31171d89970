//! The part of `vmm doctor` that tells what guests can have on this host: memory, huge pages, cgroups, devices.
//!
//! Readers of `/proc` and `/sys` take the text, so that they can be tested without the host it came from.

use std::fs::{self, OpenOptions};
use std::io;
use std::ptr;

use super::{Check, Status};
use crate::landlock::{COMPLETE_ABI, kernel_abi, not_restricted};

/// Free memory below which even a small guest is in doubt, in MiB.
const MEMORY_WANTED_MIB: u64 = 256;

pub(super) fn check(checks: &mut Vec<Check>) {
    checks.push(memory(&read("/proc/meminfo")));
    checks.push(transparent_huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")));
    checks.push(hugetlb_pages(
        &read("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
        &read("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"),
    ));
    checks.push(cgroups(&read("/proc/self/mounts")));
    checks.push(tun(open_device("/dev/net/tun")));
    checks.push(vhost("vhost-net", "network devices served by the kernel", open_device("/dev/vhost-net")));
    checks.push(vhost("vhost-vsock", "vsock served by the kernel", open_device("/dev/vhost-vsock")));
    checks.push(io_uring(&io_uring_errno(), &read("/proc/sys/kernel/io_uring_disabled")));
    checks.push(landlock(kernel_abi()));
}

/// A file that is absent or closed reads as empty, which every check takes for "not known" or "not there".
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn open_device(path: &str) -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(path).map(drop)
}

fn memory(meminfo: &str) -> Check {
    let available_kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    match available_kib.map(|kib| kib / 1024) {
        None => Check::with_advice("memory", Status::Warn, "free memory is not known", "mount /proc"),
        Some(mib) if mib < MEMORY_WANTED_MIB => Check::with_advice(
            "memory",
            Status::Warn,
            format!("{mib} MiB available"),
            "stop other programs, or give the guest less memory",
        ),
        Some(mib) => Check::ok("memory", format!("{mib} MiB available")),
    }
}

/// The mode in use is the word in brackets.
fn transparent_huge_pages(enabled: &str) -> Check {
    const NAME: &str = "thp";
    match enabled.split_ascii_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']')) {
        Some(mode @ ("always" | "madvise")) => Check::ok(NAME, format!("transparent huge pages: {mode}")),
        Some(mode) => Check::with_advice(
            NAME,
            Status::Warn,
            format!("transparent huge pages: {mode}; guests with huge_pages Transparent get small ones"),
            "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Check::with_advice(
            NAME,
            Status::Warn,
            "no transparent huge pages; guests with huge_pages Transparent get small ones",
            "use a host kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

fn hugetlb_pages(total: &str, free: &str) -> Check {
    const NAME: &str = "hugetlb-2M";
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (number(total), number(free)) {
        (Some(total), Some(free)) if free > 0 => Check::ok(NAME, format!("{free} of {total} pages free")),
        (Some(total), Some(free)) => Check::with_advice(
            NAME,
            Status::Info,
            format!("{free} of {total} pages free; a guest with huge_pages 2M cannot start"),
            "for 512 MiB: echo 256 | sudo tee /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        ),
        _ => Check::with_advice(
            NAME,
            Status::Info,
            "no pool of 2 MiB pages; a guest with huge_pages 2M cannot start",
            "use a host kernel with CONFIG_HUGETLBFS",
        ),
    }
}

/// Takes the text of `/proc/self/mounts`: device, mount point, type, options.
fn cgroups(mounts: &str) -> Check {
    let mounted = |kind: &str| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let place = fields.next()?;
            (fields.next()? == kind).then(|| place.to_owned())
        })
    };
    let detail = match (mounted("cgroup2"), mounted("cgroup")) {
        (Some(v2), None) => format!("version 2 at {v2}"),
        (None, Some(v1)) => format!("version 1, such as {v1}"),
        (Some(v2), Some(v1)) => format!("version 1, such as {v1}, and version 2 at {v2}"),
        (None, None) => {
            return Check::with_advice(
                "cgroups",
                Status::Warn,
                "none mounted; the resources of a guest cannot be limited",
                "sudo mount -t cgroup2 none /sys/fs/cgroup",
            );
        }
    };
    Check::ok("cgroups", detail)
}

fn tun(opened: io::Result<()>) -> Check {
    match opened {
        Ok(()) => Check::ok("tun", "/dev/net/tun opens"),
        Err(error) => {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => "sudo setfacl -m u:$USER:rw /dev/net/tun",
                _ => "sudo modprobe tun; in a container, pass the device in (--device /dev/net/tun)",
            };
            let detail = format!("/dev/net/tun: {error}; guests cannot have a network");
            Check::with_advice("tun", Status::Warn, detail, advice)
        }
    }
}

/// `name` is that of the device and, but for the hyphen, of its module.
fn vhost(name: &'static str, purpose: &str, opened: io::Result<()>) -> Check {
    match opened {
        Ok(()) => Check::ok(name, format!("/dev/{name} opens")),
        Err(error) => {
            let advice = match error.kind() {
                io::ErrorKind::PermissionDenied => format!("sudo setfacl -m u:$USER:rw /dev/{name}"),
                _ => format!("sudo modprobe {}", name.replace('-', "_")),
            };
            let detail = format!("/dev/{name}: {error}; needed only for {purpose}");
            Check::with_advice(name, Status::Info, detail, advice)
        }
    }
}

/// The error of an `io_uring_setup` that asks for nothing. A kernel that lets this process use io_uring looks at the
/// arguments and finds fault with them.
fn io_uring_errno() -> io::Error {
    let params = ptr::null_mut::<libc::c_void>();
    // SAFETY: io_uring_setup reads and writes only through `params`; the kernel checks the null pointer and gives EFAULT.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, params) };
    debug_assert!(fd < 0, "an io_uring without parameters was created");
    io::Error::last_os_error()
}

/// Takes the error of a probing call and the text of the sysctl `kernel.io_uring_disabled`.
fn io_uring(error: &io::Error, sysctl: &str) -> Check {
    const NAME: &str = "io_uring";
    const EFFECT: &str = "drives with the Async engine do not work";
    let (detail, advice) = match (error.raw_os_error(), sysctl.trim()) {
        (Some(libc::EFAULT | libc::EINVAL), _) => return Check::ok(NAME, "allowed"),
        (Some(libc::EPERM), "1") => (
            "only for members of the group kernel.io_uring_group",
            "sudo sysctl kernel.io_uring_disabled=0, or join the group",
        ),
        (Some(libc::EPERM), "2") => {
            ("disabled by kernel.io_uring_disabled", "sudo sysctl kernel.io_uring_disabled=0")
        }
        (Some(libc::EPERM), _) => {
            ("refused to this process", "allow io_uring_setup in the seccomp profile of the container")
        }
        _ => ("not in this kernel", "use a host kernel with CONFIG_IO_URING"),
    };
    Check::with_advice(NAME, Status::Warn, format!("{detail}; {EFFECT}"), advice)
}

fn landlock(abi: io::Result<i64>) -> Check {
    const NAME: &str = "landlock";
    match abi {
        Ok(version) => {
            let lacks = not_restricted(version);
            let but = if lacks.is_empty() { "" } else { ", which does not restrict " };
            let detail = format!("ABI version {version}{but}{lacks}");
            if version < COMPLETE_ABI {
                Check::with_advice(NAME, Status::Warn, detail, "use a host kernel from 6.12 on")
            } else {
                Check::ok(NAME, detail)
            }
        }
        Err(error) => Check::with_advice(
            NAME,
            Status::Warn,
            format!("not available ({error}); `vmm run` is not restricted to its files"),
            "use a host kernel from 6.12 on with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= list",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn little_memory_is_a_warning() {
        let check = memory("MemTotal: 8000000 kB\nMemAvailable:    4194304 kB\n");
        assert_eq!(check, Check::ok("memory", "4096 MiB available"));
        assert_eq!(memory("MemAvailable: 200000 kB\n").status, Status::Warn);
        assert_eq!(memory("MemAvailable: lots\n").detail, "free memory is not known");
    }

    #[test]
    fn the_mode_in_brackets_decides_on_transparent_huge_pages() {
        let enabled = transparent_huge_pages;
        assert_eq!(enabled("always [madvise] never\n").detail, "transparent huge pages: madvise");
        assert_eq!(enabled("[always] madvise never\n").status, Status::Ok);
        assert_eq!(enabled("always madvise [never]\n").status, Status::Warn);
        assert_eq!(enabled("").status, Status::Warn);
    }

    #[test]
    fn an_empty_pool_of_huge_pages_is_only_information() {
        assert_eq!(hugetlb_pages("512\n", "500\n"), Check::ok("hugetlb-2M", "500 of 512 pages free"));
        assert_eq!(hugetlb_pages("512\n", "0\n").status, Status::Info);
        assert_eq!(hugetlb_pages("", "").status, Status::Info);
    }

    #[test]
    fn both_versions_of_cgroups_are_seen() {
        let v1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        let v2 = "none /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroups(v2).detail, "version 2 at /sys/fs/cgroup/unified");
        assert_eq!(cgroups(v1).detail, "version 1, such as /sys/fs/cgroup/cpu");
        let both = "version 1, such as /sys/fs/cgroup/cpu, and version 2 at /sys/fs/cgroup/unified";
        assert_eq!(cgroups(&format!("{v1}{v2}")).detail, both);
        assert_eq!(cgroups("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n").status, Status::Warn);
    }

    #[test]
    fn a_device_that_is_closed_gets_other_advice_than_one_that_is_absent() {
        assert_eq!(tun(Ok(())).status, Status::Ok);
        let advice = |errno| tun(Err(error(errno))).advice.unwrap();
        assert_eq!(advice(libc::EACCES), "sudo setfacl -m u:$USER:rw /dev/net/tun");
        assert!(advice(libc::ENOENT).starts_with("sudo modprobe tun"));
        let absent = vhost("vhost-net", "speed", Err(error(libc::ENOENT)));
        assert_eq!(
            (absent.status, absent.advice.unwrap()),
            (Status::Info, "sudo modprobe vhost_net".to_owned())
        );
    }

    #[test]
    fn the_reason_why_io_uring_is_refused_is_found() {
        assert_eq!(io_uring(&error(libc::EFAULT), "0\n"), Check::ok("io_uring", "allowed"));
        let advice = |errno, sysctl| io_uring(&error(errno), sysctl).advice.unwrap();
        assert!(advice(libc::EPERM, "1\n").contains("join the group"));
        assert_eq!(advice(libc::EPERM, "2\n"), "sudo sysctl kernel.io_uring_disabled=0");
        assert!(advice(libc::EPERM, "0\n").contains("seccomp profile"));
        assert!(advice(libc::ENOSYS, "").contains("CONFIG_IO_URING"));
    }

    #[test]
    fn a_kernel_without_landlock_or_with_an_old_one_is_a_warning() {
        let full = "ABI version 10";
        assert_eq!(landlock(Ok(10)), Check::ok("landlock", full));
        let check = landlock(Ok(7));
        assert_eq!(check.status, Status::Ok);
        assert!(check.detail.ends_with("does not restrict connecting to Unix sockets, UDP"), "{check:?}");
        assert_eq!(landlock(Ok(5)).status, Status::Warn);
        assert_eq!(landlock(Err(error(libc::EOPNOTSUPP))).status, Status::Warn);
    }
}
