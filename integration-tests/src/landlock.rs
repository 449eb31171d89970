//! What the kernel can do of Landlock, for tests that need it.

/// The first version of Landlock that restricts all that the monitor asks for at least.
const COMPLETE_ABI: libc::c_long = 6;

/// Whether the kernel has a Landlock that the monitor calls complete; where it has not, says that a test is left out.
pub fn is_complete() -> bool {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let attributes = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag, landlock_create_ruleset takes no attributes, creates nothing and gives a number.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes, 0_usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    let complete = version >= COMPLETE_ABI;
    if !complete {
        eprintln!("skipped: this kernel has no Landlock of ABI version {COMPLETE_ABI} or later");
    }
    complete
}
