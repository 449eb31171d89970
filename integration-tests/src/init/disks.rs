//! What init does with disks: a guest goes on in the root file system on one; the nested host takes programs from one
//! and makes a file system on another.

use std::fs;
use std::io;
use std::os::unix::fs::{chroot, symlink};
use std::process::Command;

use super::system::mount;

/// Loads modules and what they need.
pub fn load_modules(names: &[String]) -> io::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    run(Command::new("/sbin/modprobe").arg("-a").args(names))
}

/// Makes the file system on `device` the root, where we go on; writable, if the device is.
pub fn enter_root(device: &str) -> io::Result<()> {
    const NEW: &str = "/newroot";
    load_modules(&["virtio_mmio", "virtio_blk", "ext4"].map(str::to_owned))?;
    let flags = if is_read_only(device) { libc::MS_RDONLY } else { 0 };
    mount_ext4(device, NEW, flags)?;
    let kept = [
        ("/lib/modules", libc::MS_BIND),
        ("/proc", libc::MS_MOVE),
        ("/sys", libc::MS_MOVE),
        ("/dev", libc::MS_MOVE),
        ("/tmp", libc::MS_MOVE),
        ("/run", libc::MS_MOVE),
    ];
    for (folder, how) in kept {
        let target = format!("{NEW}{folder}");
        mount(folder, &target, "", how).map_err(|error| named(&format!("cannot keep {folder}"), &error))?;
    }
    // A RAM file system as root cannot be exchanged (pivot_root(2)), only covered.
    cover_root(NEW)
}

/// Covers the root with itself, so that there is one that can be exchanged, as jails do.
pub fn make_root_exchangeable() -> io::Result<()> {
    const NEW: &str = "/newroot";
    fs::create_dir_all(NEW)?;
    mount("/", NEW, "", libc::MS_BIND | libc::MS_REC)
        .and_then(|()| cover_root(NEW))
        .map_err(|error| named("cannot cover the root folder", &error))
}

/// Puts what is mounted at `folder` over the root, where we go on.
fn cover_root(folder: &str) -> io::Result<()> {
    std::env::set_current_dir(folder)?;
    mount(".", "/", "", libc::MS_MOVE)?;
    chroot(".")?;
    std::env::set_current_dir("/")
}

/// Gives the host the programs of the root file system on `device`; returns their `PATH`.
pub fn mount_tools(device: &str) -> io::Result<&'static str> {
    mount_ext4(device, "/tools", libc::MS_RDONLY)?;
    // Where programs look for the dynamic linker and for libraries. The RAM disk's own programs need neither.
    for (link, target) in [("/lib64", "/tools/usr/lib64"), ("/usr/lib", "/tools/usr/lib")] {
        symlink(target, link).map_err(|error| named(&format!("cannot create {link}"), &error))?;
    }
    Ok("/tools/usr/sbin:/tools/usr/bin:/sbin:/bin:/usr/sbin:/usr/bin")
}

/// Makes a file system on `device`, with a program of [`mount_tools`], and returns where it is.
///
/// It has no journal, and all its tables are written at once: what tests write to disks is all there is to write.
pub fn make_scratch(device: &str) -> io::Result<&'static str> {
    const SCRATCH: &str = "/scratch";
    let mut make = Command::new("/tools/usr/sbin/mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-N", "8192", "-m", "0", "-O", "^has_journal"]);
    run(make.args(["-E", "nodiscard,lazy_itable_init=0", device]))?;
    mount_ext4(device, SCRATCH, 0)?;
    Ok(SCRATCH)
}

fn is_read_only(device: &str) -> bool {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    fs::read_to_string(format!("/sys/class/block/{name}/ro")).is_ok_and(|text| text.trim() == "1")
}

fn mount_ext4(device: &str, target: &str, flags: libc::c_ulong) -> io::Result<()> {
    fs::create_dir_all(target)?;
    mount(device, target, "ext4", flags).map_err(|error| named(&format!("cannot mount {device}"), &error))
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let text = format!("{}: {}: {}", command.get_program().display(), output.status, said.trim());
    Err(io::Error::other(text))
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}
