//! What tests of the jailer have on the host for the probe in the jail to look for: things that have no path.

use std::ffi::CStr;

/// The description of a key of the type `user`.
pub const KEY: &CStr = c"kindling-jail-test";

/// The key of a segment of System V shared memory.
pub const SHARED_MEMORY: libc::key_t = 0x6a61_696c;

/// The name of a POSIX message queue.
pub const MESSAGE_QUEUE: &CStr = c"/kindling-jail-test";
