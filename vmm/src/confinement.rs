//! What every thread is bound to before guest code can run.

use std::io;

use kindling_seccomp_profiles::{Filters, Thread};

use crate::landlock::Ruleset;

/// Which files and sockets threads can reach, and which system calls each kind of them can make. A copy is cheap.
#[derive(Clone)]
pub struct Confinement {
    filters: Filters,
    ruleset: Ruleset,
}

impl Confinement {
    /// Confinement by both.
    pub fn new(filters: Filters, ruleset: Ruleset) -> Self {
        Confinement { filters, ruleset }
    }

    /// Confines the calling thread, which is one of this kind, and all that it starts from now on, for good.
    ///
    /// # Errors
    ///
    /// What the kernel said. Landlock may restrict the thread already.
    pub fn apply(&self, thread: Thread) -> io::Result<()> {
        // In this order: no filter allows the calls that restrict a thread.
        self.ruleset.restrict()?;
        self.filters.install(thread).map_err(io::Error::other)
    }
}
