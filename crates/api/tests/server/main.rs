//! The server, as clients of every kind see it: well-behaved, slow, gone, and hostile. Needs no privileges.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod connections;
mod events;
mod lifetime;
mod limits;
mod malformed;
mod requests;
mod support;
