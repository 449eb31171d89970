//! `/init` of guests and of the nested host.

fn main() {
    // Anywhere but as process 1 this would mount over and power off a machine in use.
    if std::process::id() != 1 {
        eprintln!("guest-init is the first process of a guest and does nothing elsewhere");
        std::process::exit(1);
    }
    kindling_integration_tests::init::main()
}
