"""Has the client inside smolvm, in Rust, describe a guest with disk and network, start it, pause it and resume it."""

import sys

from smolvm_core.errors import FirecrackerAPIError
from smolvm_core.firecracker import FirecrackerClient

socket, kernel, boot_args, disk, tap = sys.argv[1:]
client = FirecrackerClient(socket)
client.wait_for_socket()


def put(path, **body):
    client.request("PUT", path, body=body)


def set_state(state, seen):
    client.request("PATCH", "/vm", body={"state": state})
    assert client.request("GET", "/")["state"] == seen


put("/boot-source", kernel_image_path=kernel, boot_args=boot_args)
try:
    put("/drives/data", drive_id="data", path_on_host=disk + ".none", is_root_device=False)
    sys.exit("a disk that does not exist is taken")
except FirecrackerAPIError as error:
    assert error.status_code == 400 and "path_on_host" in str(error), error
put("/drives/data", drive_id="data", path_on_host=disk, is_root_device=False, is_read_only=False)
put("/machine-config", vcpu_count=1, mem_size_mib=128)
put("/network-interfaces/eth0", iface_id="eth0", host_dev_name=tap)
put("/vsock", guest_cid=3, uds_path=socket + ".vsock")
put("/actions", action_type="InstanceStart")
set_state("Paused", "Paused")
set_state("Resumed", "Running")
config = client.request("GET", "/vm/config")
assert config["boot-source"]["boot_args"] == boot_args, config
