//! What the kernel can do of Landlock, for tests that need it.

/// The first version of Landlock that restricts all that the monitor asks for at least.
const COMPLETE_ABI: libc::c_long = 6;

/// Among the errata: threads of a process may signal each other.
const SCOPED_SIGNALS: libc::c_long = 1 << 1;

/// Whether the kernel has a Landlock that the monitor calls complete; where it has not, says so, since tests are
/// left out then.
pub fn is_complete() -> bool {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    const LANDLOCK_CREATE_RULESET_ERRATA: u32 = 2;
    let ask = |flag: u32| {
        let attributes = std::ptr::null::<libc::c_void>();
        // SAFETY: with these flags, landlock_create_ruleset takes no attributes, creates nothing and gives a number.
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes, 0_usize, flag) }
    };
    let version = ask(LANDLOCK_CREATE_RULESET_VERSION);
    let errata = ask(LANDLOCK_CREATE_RULESET_ERRATA).max(0);
    let complete = version >= COMPLETE_ABI && errata & SCOPED_SIGNALS != 0;
    if !complete {
        eprintln!(
            "without Landlock: this kernel has none of ABI version {COMPLETE_ABI} that restricts signals"
        );
    }
    complete
}
