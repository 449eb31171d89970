//! The metadata service as programs in a guest use it, and as the host changes it meanwhile.

use std::time::Duration;

use kindling_api::client::Client;
use kindling_integration_tests::harness::{Guest, Tap, default_cmdline, files, image};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::console::sha256;
use super::{output, power_off, ready};

const HOST: &str = "10.0.0.1";
const SERVICE: &str = "http://169.254.169.254";

/// A guest whose interface leads to the service, the API's socket being in the folder.
fn start(version: &str, document: &Value) -> (Guest, Client, Tap, TempDir) {
    let folder = files::scratch().unwrap();
    let tap = Tap::new(&format!("{HOST}/24"), &[]).unwrap();
    let image = image().unwrap();
    let write = |name: &str, value: &Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, value.to_string()).unwrap();
        path
    };
    let config = json!({
        "boot-source": {
            "kernel_image_path": image.vmlinux(),
            "initrd_path": image.initramfs(),
            "boot_args": format!(
                "{} kindling.root=/dev/vda kindling.modules=virtio_mmio,virtio_blk,virtio_net", default_cmdline()
            ),
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 512 },
        "drives": [{
            "drive_id": "root", "is_root_device": false, "is_read_only": true,
            "path_on_host": files::root_image().unwrap(),
        }],
        "network-interfaces": [{ "iface_id": "net0", "host_dev_name": Tap::NAME }],
        "mmds-config": { "network_interfaces": ["net0"], "version": version },
    });
    let socket = folder.path().join("api");
    let arguments = [
        "--config-file".as_ref(),
        write("vm.json", &config).as_os_str(),
        "--metadata".as_ref(),
        write("metadata.json", document).as_os_str(),
        "--api-sock".as_ref(),
        socket.as_os_str(),
    ]
    .map(std::ffi::OsStr::to_owned);
    let mut guest = ready(Guest::builder().arguments(arguments).tap(&tap));
    output(
        &mut guest,
        "ip link set eth0 up && ip address add 10.0.0.2/24 dev eth0 && ip route add 169.254.169.254 dev eth0",
    );
    (guest, Client::new(&socket), tap, folder)
}

/// Status and body of what curl is answered.
fn curl(guest: &mut Guest, arguments: &str) -> (String, String) {
    let text = output(guest, &format!("curl -s --max-time 20 -w '\\n%{{http_code}}' {arguments}"));
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    (status.to_owned(), body.to_owned())
}

fn document() -> Value {
    json!({"latest": {
        "meta-data": {"ami-id": "ami-12345678", "placement": {"availability-zone": "eu-1a"}},
        "user-data": "#!/bin/sh\necho hello\n",
    }})
}

#[test]
fn version_2_answers_who_asked_for_a_token_before() {
    let (mut guest, client, _tap, _folder) = start("V2", &document());
    let guest = &mut guest;
    let path = format!("{SERVICE}/latest/meta-data/ami-id");
    assert_eq!(curl(guest, &path).0, "401");
    for name in ["X-aws-ec2-metadata-token", "X-metadata-token"] {
        let ask = format!("-X PUT {SERVICE}/latest/api/token -H '{name}-ttl-seconds: 60'");
        let (status, token) = curl(guest, &ask);
        assert_eq!(status, "200", "{token}");
        let with_token = format!("-H '{name}: {token}'");
        assert_eq!(curl(guest, &format!("{with_token} {path}")), ("200".into(), "ami-12345678".into()));
        assert_eq!(
            curl(guest, &format!("{with_token} {SERVICE}/latest/meta-data/")),
            ("200".into(), "ami-id\nplacement/".into())
        );
        let user_data = curl(guest, &format!("{with_token} {SERVICE}/latest/user-data"));
        assert_eq!(user_data, ("200".into(), "#!/bin/sh\necho hello\n".into()));
        assert_eq!(curl(guest, &format!("{with_token} {SERVICE}/latest/nothing")).0, "404");
        let (status, body) =
            curl(guest, &format!("{with_token} -H 'Accept: application/json' {SERVICE}/latest/meta-data"));
        assert_eq!(status, "200");
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), document()["latest"]["meta-data"]);
        // What the host changes now, the guest reads next.
        let id = format!("ami-{name}");
        let patch = json!({"latest": {"meta-data": {"ami-id": id}}});
        client.patch("/mmds", &patch).unwrap().success().unwrap();
        assert_eq!(curl(guest, &format!("{with_token} {path}")).1, id);
        client.put("/mmds", &document()).unwrap().success().unwrap();
    }
    assert_eq!(curl(guest, &format!("-H 'X-metadata-token: forged' {path}")).0, "401");
    let forwarded = "-H 'X-metadata-token-ttl-seconds: 60' -H 'X-Forwarded-For: 10.0.0.9'";
    assert_eq!(curl(guest, &format!("-X PUT {SERVICE}/latest/api/token {forwarded}")).0, "400");

    let short = format!("-X PUT {SERVICE}/latest/api/token -H 'X-metadata-token-ttl-seconds: 1'");
    let (status, token) = curl(guest, &short);
    assert_eq!(status, "200", "{token}");
    output(guest, "sleep 2");
    assert_eq!(curl(guest, &format!("-H 'X-metadata-token: {token}' {path}")).0, "401");
    // Other traffic goes its way.
    output(guest, &format!("ping -c 3 -W 10 {HOST}"));
    power_off(guest);
}

#[test]
fn version_1_gives_a_large_document_to_many_at_once() {
    // With the rest as much as there can be: 50 KiB of JSON.
    let rest = json!({"large": "", "small": "x"}).to_string().len();
    let large: String = (0..).map(|at| char::from(b'a' + (at % 26) as u8)).take((50 << 10) - rest).collect();
    let (mut guest, client, _tap, _folder) = start("V1", &json!({"large": large, "small": "x"}));
    let guest = &mut guest;
    let expected = sha256(large.as_bytes());
    let sum = output(guest, &format!("curl -s --max-time 50 {SERVICE}/large | sha256sum"));
    assert_eq!(sum[..64], expected);
    let script = format!(
        "for i in $(seq 50); do (curl -s --max-time 280 {SERVICE}/large | sha256sum) > /tmp/sum$i 2>&1 & done; wait; \
         cat /tmp/sum* | sort | uniq -c"
    );
    let sums = guest.run_within(&script, Duration::from_secs(300)).unwrap().stdout;
    assert_eq!(sums.split_whitespace().take(2).collect::<Vec<_>>(), ["50", &expected], "{sums}");
    let refused = client.put("/mmds", &json!({"larger": "y".repeat(60_000)})).unwrap();
    assert_eq!(refused.status, 413);
    assert_eq!(client.get("/mmds").unwrap().json().unwrap()["small"], "x");
    let metrics = client.get("/metrics").unwrap().body;
    let requests = metrics.lines().find(|line| line.starts_with("kindling_mmds_requests_total "));
    assert_eq!(requests, Some("kindling_mmds_requests_total 51"), "{metrics}");
    power_off(guest);
}
