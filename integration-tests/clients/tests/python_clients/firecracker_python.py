"""Has firecracker-python describe a guest with disk and network, start it, pause it and resume it."""

import sys

from firecracker import Api
from firecracker.exceptions import APIError

socket, kernel, boot_args, disk, tap = sys.argv[1:]
api = Api(socket)


def state():
    return api.describe.get().json()["state"]


api.logger.put(level="Info", show_level=True)
api.boot.put(kernel_image_path=kernel, boot_args=boot_args, initrd_path=None)
try:
    api.drive.put(drive_id="data", path_on_host=disk + ".none", is_root_device=False)
    sys.exit("a disk that does not exist is taken")
except APIError as error:
    assert "path_on_host" in str(error), error
api.drive.put(drive_id="data", path_on_host=disk, is_root_device=False, is_read_only=False)
api.machine_config.put(vcpu_count=1, mem_size_mib=128)
api.network.put(iface_id="eth0", host_dev_name=tap)
api.vsock.put(guest_cid=3, uds_path=socket + ".vsock")
assert api.version.get().json()["firecracker_version"].startswith("1.")
assert state() == "Not started"

api.actions.put(action_type="InstanceStart")
# It keeps a connection for each path open; the eleventh would be refused, as Firecracker refuses it.
api.close()
api = Api(socket)
assert state() == "Running"
api.vm.patch(state="Paused")
assert state() == "Paused"
api.vm.patch(state="Resumed")
assert state() == "Running"
config = api.vm_config.get().json()
assert config["boot-source"]["boot_args"] == boot_args, config
assert [drive["drive_id"] for drive in config["drives"]] == ["data"], config
assert [interface["host_dev_name"] for interface in config["network-interfaces"]] == [tap], config
api.close()
