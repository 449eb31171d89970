//! Has the guest linked at a fixed address without anything of the host's C library.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rustc-link-arg-bins=-nostartfiles");
    println!("cargo:rustc-link-arg-bins=-Wl,--build-id=none");
    // Two arguments, because `-Wl,` would split a path at its commas.
    println!("cargo:rustc-link-arg-bins=-T");
    println!("cargo:rustc-link-arg-bins={directory}/link.ld");
}
