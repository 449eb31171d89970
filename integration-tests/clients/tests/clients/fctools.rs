//! The crate `fctools`: it talks to the monitor over its standard streams as well as the API, and removes every file
//! that the monitor should have left.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::Vm;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::*;
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments, VmmLogLevel};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, Resource, ResourceType};
use kindling_integration_tests::harness::{Tap, scaled};

use super::{
    END_LIMIT, Monitor, SOON, Setup, Shell, boot_args, first_line, in_namespace, use_disk_and_network,
};

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

const MODULES: [&str; 3] = ["vmw_vsock_virtio_transport", "virtio_balloon", "virtio_rng"];

/// The machine that every test asks for, and that it reads back.
const MACHINE: MachineConfiguration = MachineConfiguration {
    vcpu_count: 1,
    mem_size_mib: 512,
    smt: Some(false),
    track_dirty_pages: Some(false),
    huge_pages: Some(HugePages::None),
};

fn limiter() -> RateLimiter {
    let bucket = || TokenBucket { size: 100_000_000, one_time_burst: Some(1000), refill_time: 100 };
    RateLimiter { bandwidth: bucket(), ops: bucket() }
}

fn drive(id: &str, file: Resource) -> Drive {
    Drive {
        drive_id: id.to_owned(),
        is_root_device: false,
        cache_type: None,
        partuuid: None,
        is_read_only: None,
        block: Some(file),
        rate_limiter: None,
        io_engine: None,
        socket: None,
    }
}

/// A machine with every device that the client knows and the monitor has.
fn configuration(setup: &Setup, file: impl FnMut(PathBuf, ResourceType) -> Resource) -> VmConfigurationData {
    let mut file = file;
    let there = ResourceType::Moved(MovedResourceType::HardLinked);
    let made = ResourceType::Created(CreatedResourceType::File);
    VmConfigurationData {
        boot_source: BootSource {
            kernel_image: file(setup.image.vmlinux(), there),
            boot_args: Some(boot_args(&MODULES)),
            initrd: Some(file(setup.image.initramfs(), there)),
        },
        drives: vec![
            Drive {
                cache_type: Some(DriveCacheType::Writeback),
                io_engine: Some(DriveIoEngine::Async),
                ..drive("data", file(setup.path("data.img"), there))
            },
            Drive {
                is_root_device: true,
                is_read_only: Some(true),
                rate_limiter: Some(limiter()),
                ..drive("rootfs", file(setup.root.clone(), there))
            },
        ],
        pmem_devices: vec![],
        machine_configuration: MACHINE,
        cpu_template: None,
        network_interfaces: vec![NetworkInterface {
            iface_id: "eth0".to_owned(),
            host_dev_name: Tap::NAME.to_owned(),
            guest_mac: None,
            rx_rate_limiter: Some(limiter()),
            tx_rate_limiter: None,
        }],
        balloon_device: Some(BalloonDevice {
            amount_mib: 0,
            deflate_on_oom: true,
            stats_polling_interval_s: Some(1),
            free_page_reporting: Some(true),
        }),
        vsock_device: Some(VsockDevice {
            guest_cid: 3,
            uds: file(setup.path("v.sock"), ResourceType::Produced),
        }),
        logger_system: Some(LoggerSystem {
            logs: Some(file(setup.path("log"), made)),
            level: Some(VmmLogLevel::Info),
            ..LoggerSystem::default()
        }),
        metrics_system: Some(MetricsSystem { metrics: file(setup.path("metrics"), made) }),
        memory_hotplug_configuration: None,
        mmds_configuration: None,
        entropy_device: Some(EntropyDevice::default()),
    }
}

/// Starts a machine; the client knows the monitor by the name `firecracker`.
async fn start(setup: &Setup, init_method: InitMethod) -> (Machine, Monitor) {
    let mut resources = ResourceSystem::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared);
    let data = configuration(setup, |path, kind| resources.create_resource(path, kind).unwrap());
    let socket = setup.path("api.sock");
    let arguments = VmmArguments::new(VmmApiSocket::Enabled(socket.clone()));
    let executor = UnrestrictedVmmExecutor::new(arguments).id(VmmId::new("a-guest").unwrap());
    // There are two more programs, which the client does not need for this.
    let installation =
        VmmInstallation::new(setup.path("firecracker"), "/nonexistent".into(), "/nonexistent".into());
    let configuration = VmConfiguration::New { init_method, data };
    let mut vm = Vm::prepare(executor, resources, installation, configuration).await.unwrap();
    vm.start(scaled(SOON)).await.unwrap();
    (vm, Monitor::behind(&socket).await)
}

/// The guest's console, which is the monitor's standard input and output.
fn shell(vm: &mut Machine) -> Shell {
    let pipes = vm.take_pipes().unwrap();
    let output = File::from(pipes.stdout.into_inner().into_owned_fd().unwrap());
    let input = File::from(pipes.stdin.into_inner().into_owned_fd().unwrap());
    Shell::new(output, input)
}

/// Ends a machine by `method`, and has the client remove what it and the monitor made. Returns the monitor's exit status.
async fn end(setup: &Setup, vm: &mut Machine, method: VmShutdownMethod) -> std::process::ExitStatus {
    let action = VmShutdownAction { method, timeout: Some(scaled(END_LIMIT)), graceful: true };
    let ended = vm.shutdown([action]).await.unwrap();
    assert!(ended.errors.is_empty(), "{ended:?}");
    // It fails if the sockets device's socket is not there.
    vm.cleanup().await.unwrap();
    for name in ["api.sock", "v.sock", "log", "metrics"] {
        assert!(!setup.path(name).exists(), "{name}");
    }
    ended.exit_status
}

/// Has the guest's program at port 5000, which says what it is told, told something, as soon as it listens.
fn talk_over_vsock(setup: &Setup) {
    let deadline = Instant::now() + scaled(SOON);
    loop {
        let mut stream = UnixStream::connect(setup.path("v.sock")).unwrap();
        stream.set_read_timeout(Some(scaled(SOON))).unwrap();
        stream.write_all(b"CONNECT 5000\n").unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut heard = String::new();
        reader.read_line(&mut heard).unwrap();
        if heard.starts_with("OK ") {
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            heard.clear();
            reader.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "hello");
            return;
        }
        // Nobody listens yet.
        assert!(heard.is_empty() && Instant::now() < deadline, "{heard}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Asks for the balloon's statistics until they are as wanted.
async fn wait_for_balloon(vm: &mut Machine, wanted: impl Fn(&BalloonStatistics) -> bool) {
    let deadline = Instant::now() + scaled(SOON);
    loop {
        let statistics = vm.get_balloon_statistics().await.unwrap();
        if wanted(&statistics) {
            return;
        }
        assert!(Instant::now() < deadline, "{statistics:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn fctools_runs_a_guest_with_all_devices_changes_it_and_presses_ctrl_alt_del() {
    let setup = Setup::new();
    let other = setup.disk("other.img", "from another disk");
    in_namespace(&setup.tap, async || {
        let (mut vm, _monitor) = start(&setup, InitMethod::ViaApiCalls).await;
        let mut shell = shell(&mut vm);
        use_disk_and_network(&mut shell, &setup.path("data.img"), &setup.tap);
        shell.output("socat VSOCK-LISTEN:5000,fork PIPE >/dev/null 2>&1 &");
        talk_over_vsock(&setup);
        assert_eq!(shell.output("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c"), "16");

        let info = vm.get_info().await.unwrap();
        assert_eq!(
            (info.id.as_str(), info.app_name.as_str(), info.is_paused),
            ("a-guest", "Firecracker", false)
        );
        assert!(vm.get_firecracker_version().await.unwrap().starts_with("1."));
        assert_eq!(vm.get_machine_configuration().await.unwrap(), MACHINE);

        assert_eq!(vm.get_balloon_device().await.unwrap().amount_mib, 0);
        vm.update_balloon_statistics(UpdateBalloonStatistics { stats_polling_interval_s: 2 }).await.unwrap();
        vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 64 }).await.unwrap();
        assert_eq!(vm.get_balloon_device().await.unwrap().amount_mib, 64);
        wait_for_balloon(&mut vm, |balloon| (balloon.target_mib, balloon.actual_mib) == (64, 64)).await;
        wait_for_balloon(&mut vm, |balloon| balloon.total_memory.is_some_and(|bytes| bytes > 400 << 20))
            .await;

        vm.pause().await.unwrap();
        assert!(vm.get_info().await.unwrap().is_paused);
        vm.resume().await.unwrap();
        shell.output("true");

        let there = ResourceType::Moved(MovedResourceType::HardLinked);
        let resources = vm.get_resource_system_mut();
        let file = resources.create_resource(&other, there).unwrap();
        file.start_initialization_with_same_path().unwrap();
        resources.synchronize().await.unwrap();
        let update =
            UpdateDrive { drive_id: "data".to_owned(), block: Some(file), rate_limiter: Some(limiter()) };
        vm.update_drive(update).await.unwrap();
        assert_eq!(first_line(&mut shell), "from another disk");
        let update = UpdateNetworkInterface {
            iface_id: "eth0".to_owned(),
            rx_rate_limiter: None,
            tx_rate_limiter: Some(limiter()),
        };
        vm.update_network_interface(update).await.unwrap();
        shell.output("ping -c 1 -W 10 10.0.0.1");

        vm.flush_metrics().await.unwrap();
        let metrics = fs::read_to_string(setup.path("metrics")).unwrap();
        let line: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        assert!(line["utc_timestamp_ms"].is_u64(), "{line}");

        // The guest's init ends in order, and resets the machine.
        let status = end(&setup, &mut vm, VmShutdownMethod::CtrlAltDel).await;
        assert_eq!(status.code(), Some(0));
        shell.wait_end();
    });
}

#[test]
fn fctools_starts_a_guest_from_a_file_and_kills_it_paused() {
    let setup = Setup::new();
    in_namespace(&setup.tap, async || {
        let config = setup.path("config.json");
        let (mut vm, _monitor) = start(&setup, InitMethod::ViaJsonConfiguration(config)).await;
        let mut shell = shell(&mut vm);
        use_disk_and_network(&mut shell, &setup.path("data.img"), &setup.tap);
        assert_eq!(vm.get_machine_configuration().await.unwrap(), MACHINE);
        let status = end(&setup, &mut vm, VmShutdownMethod::PauseThenKill).await;
        assert_eq!(status.signal(), Some(9));
    });
}
