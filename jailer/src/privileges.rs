//! Giving up rights: limits, capabilities, groups, user.
//!
//! Capabilities go in two steps. Before `execve` every set that could hand any of them on is emptied for good: inheritable,
//! ambient and bounding, with root's special treatment turned off. So `execve` itself takes the rest, whoever the
//! user is. Until then the process keeps them, because an `execve` that fails is followed by removing the jail.

use std::io;
use std::ptr;

use crate::cli::{Limit, Resource};
use crate::error::Error;
use crate::folders::Owner;
use crate::sys::{check, prctl};

// linux/capability.h
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Securebits for good: user 0 is nobody special to `execve`, a change of user leaves capabilities alone (until `execve`),
/// they are not kept on any other ground, and none becomes ambient again.
const SECUREBITS: libc::c_int = libc::SECBIT_NOROOT
    | libc::SECBIT_NOROOT_LOCKED
    | libc::SECBIT_NO_SETUID_FIXUP
    | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
    | libc::SECBIT_KEEP_CAPS_LOCKED
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE
    | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

/// Sets limits on what the process may use.
pub(crate) fn set_limits(limits: &[Limit]) -> Result<(), Error> {
    for Limit { resource, value } in limits {
        let (resource, doing) = match resource {
            Resource::FileSize => (libc::RLIMIT_FSIZE, "set the limit fsize"),
            Resource::Descriptors => (libc::RLIMIT_NOFILE, "set the limit no-file"),
        };
        let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
        // SAFETY: the pointer is to one `rlimit`.
        check(unsafe { libc::setrlimit(resource, &raw const limit) }).map_err(Error::process(doing))?;
    }
    Ok(())
}

/// Gives up groups, user and every way to rights; what is left goes with `execve`.
pub(crate) fn drop_all(owner: Owner) -> Result<(), Error> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(Error::process("forbid new privileges"))?;
    // While there still is the capability to.
    drop_bounding_set().map_err(Error::process("empty the bounding set of capabilities"))?;
    prctl(libc::PR_SET_SECUREBITS, SECUREBITS as libc::c_ulong, 0)
        .map_err(Error::process("set the securebits"))?;
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    prctl(libc::PR_CAP_AMBIENT, clear, 0).map_err(Error::process("empty the ambient set of capabilities"))?;
    drop_inheritable_set().map_err(Error::process("empty the inheritable set of capabilities"))?;
    // SAFETY: no group is read from the pointer.
    check(unsafe { libc::setgroups(0, ptr::null()) }).map_err(Error::process("drop supplementary groups"))?;
    let Owner { uid, gid } = owner;
    // SAFETY: the call takes numbers.
    check(unsafe { libc::setresgid(gid, gid, gid) }).map_err(Error::process("become the group of --gid"))?;
    // SAFETY: as above.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map_err(Error::process("become the user of --uid"))?;
    Ok(())
}

fn drop_bounding_set() -> io::Result<()> {
    for capability in 0.. {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(()) => {}
            // The kernel has no capability of such a number.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn drop_inheritable_set() -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: the kernel reads and writes one header and, with this version, two of the other structure.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    for half in &mut sets {
        half.inheritable = 0;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) }).map(drop)
}
