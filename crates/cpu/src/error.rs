//! What can be wrong with a request for processors, or with the host that should provide them.

/// Why the processors asked for cannot be described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of vCPUs is outside what one package with 8-bit APIC ids can hold.
    #[error("the number of vCPUs must be between 1 and {max}, not {vcpus}")]
    VcpuCount {
        /// The number asked for.
        vcpus: u8,
        /// The most there can be.
        max: u8,
    },
    /// A core has one thread or two.
    #[error("the number of threads per core must be 1 or 2, not {threads_per_core}")]
    ThreadsPerCore {
        /// The number asked for.
        threads_per_core: u8,
    },
    /// KVM's table of supported CPUID leaves lacks one without which no guest can run.
    #[error("the host's supported CPUID lacks leaf {leaf:#x}")]
    MissingLeaf {
        /// The leaf, the value of EAX.
        leaf: u32,
    },
    /// The host processor is neither Intel's nor AMD's (or a licensed copy of it).
    #[error("the host's CPU vendor \"{}\" is not known", vendor.escape_ascii())]
    UnknownVendor {
        /// The twelve characters of leaf 0, as they are.
        vendor: [u8; 12],
    },
    /// The finished table is longer than KVM takes.
    #[error("the guest's CPUID has {count} entries, more than KVM's limit of {max}")]
    TooManyEntries {
        /// Entries in the table.
        count: usize,
        /// Entries KVM takes.
        max: usize,
    },
}
