//! The crate `firepilot`: it starts the monitor with no standard streams, and ends it with SIGKILL.

use std::fs::{self, File};
use std::path::PathBuf;

use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::network_interface::NetworkInterfaceBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::{FirepilotError, Machine};
use kindling_integration_tests::harness::{Tap, on_host, vmm_path};

use super::{Monitor, SOON, Setup, Shell, boot_args, in_namespace, names, use_disk_and_network};

/// Makes a folder with FIFOs, and a program `firecracker` that is the monitor with its console at them.
const MAKE_PROGRAM: &str = r#"mkdir "$1" && mkfifo "$1/in" "$1/out" && cd "$1" &&
    printf '#!/bin/sh\nexec "%s" "$@" <"%s/in" >"%s/out" 2>&1\n' "$2" "$1" "$1" >firecracker && chmod +x firecracker"#;

/// How often a monitor is started that does not serve in time.
const TRIES: u32 = 20;

/// A guest, and the program that is taken for the monitor.
fn configuration(setup: &Setup, program: PathBuf) -> Configuration {
    let text = |path: PathBuf| path.into_os_string().into_string().unwrap();
    let kernel = KernelBuilder::new()
        .with_kernel_image_path(text(setup.image.vmlinux()))
        .with_initrd_path(text(setup.image.initramfs()))
        .with_boot_args(boot_args(&[]));
    let root = DriveBuilder::new()
        .with_drive_id("rootfs".to_owned())
        .with_path_on_host(setup.root.clone())
        .as_root_device()
        .as_read_only();
    let data = DriveBuilder::new().with_drive_id("data".to_owned()).with_path_on_host(setup.path("data.img"));
    let network = NetworkInterfaceBuilder::new()
        .with_iface_id("eth0".to_owned())
        .with_guest_mac("06:00:00:00:00:02".to_owned())
        .with_host_dev_name(Tap::NAME.to_owned());
    let executor =
        FirecrackerExecutorBuilder::new().with_chroot(text(setup.path("machines"))).with_exec_binary(program);
    Configuration::new("vm1".to_owned())
        .with_kernel(kernel.try_build().unwrap())
        .with_drive(root.try_build().unwrap())
        .with_drive(data.try_build().unwrap())
        .with_interface(network.try_build().unwrap())
        .with_executor(executor.try_build().unwrap())
}

/// Has the client start a monitor. It gives that half a second, which may be too short for a machine that is emulated;
/// then it gets another try.
async fn create(setup: &Setup, program: PathBuf) -> (Machine, Monitor) {
    let socket = setup.path("machines/vm1/firecracker.socket");
    for _ in 0..TRIES {
        let mut machine = Machine::new();
        match machine.create(configuration(setup, program.clone())).await {
            Ok(()) => return (machine, Monitor::behind(&socket).await),
            Err(FirepilotError::Configure(why)) if why == "Socket didn't start on time" => {}
            Err(error) => panic!("{error:?}"),
        }
        Monitor::behind(&socket).await.kill();
        fs::remove_file(&socket).unwrap();
    }
    panic!("the monitor was not there within half a second {TRIES} times");
}

#[test]
fn firepilot_runs_a_guest_with_disk_and_network_and_presses_ctrl_alt_del() {
    let setup = Setup::new();
    let (bin, vmm) = (setup.path("bin"), vmm_path().unwrap());
    on_host("sh", &["-c", MAKE_PROGRAM, "sh", bin.to_str().unwrap(), vmm.to_str().unwrap()], SOON).unwrap();
    // The program waits for other ends, which this is for as long as it starts.
    let end = |name| File::options().read(true).write(true).open(bin.join(name)).unwrap();
    let (input, output) = (end("in"), end("out"));

    in_namespace(&setup.tap, async || {
        let (mut machine, _monitor) = create(&setup, bin.join("firecracker")).await;
        let folder = setup.path("machines/vm1");
        machine.start().await.unwrap();
        let mut shell = Shell::new(File::open(bin.join("out")).unwrap(), input);
        drop(output);
        use_disk_and_network(&mut shell, &folder.join("data"), &setup.tap);
        assert_eq!(shell.output("cat /sys/class/net/eth0/address"), "06:00:00:00:00:02");

        machine.pause().await.unwrap();
        machine.resume().await.unwrap();
        shell.output("true");

        machine.stop().await.unwrap();
        shell.wait_end();
        // Collects the process, and removes the socket, which has to be there.
        machine.kill().await.unwrap();
        assert_eq!(names(&folder), ["data", "initrd", "rootfs", "vmlinux"]);
    });
}

#[test]
fn firepilot_kills_a_guest_and_starts_another_in_its_place() {
    let setup = Setup::new();
    in_namespace(&setup.tap, async || {
        for _ in 0..2 {
            let (mut machine, _monitor) = create(&setup, setup.path("firecracker")).await;
            machine.start().await.unwrap();
            machine.kill().await.unwrap();
            assert!(!setup.path("machines/vm1/firecracker.socket").exists());
        }
    });
}
