//! Has the linker put next to each other what a start of `vmm` runs (docs/benchmarks.md, "Start").

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=start-order.ld");
    // Without optimisation there are other functions.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bin=vmm=-Wl,-T,{folder}/start-order.ld");
    }
}
