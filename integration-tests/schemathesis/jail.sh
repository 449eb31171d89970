#!/bin/sh
# Runs `vmm` where a fuzzer may have it open any path: with a root folder in memory, of which nothing is left, a network of its
# own, and no privileges outside of these.
#
# usage: jail.sh FOLDER VMM KERNEL
#
# The socket is FOLDER/api/api.sock; KERNEL is /srv/vmlinux inside.
mkdir "$1/root" "$1/api"
exec unshare --user --map-root-user --mount --net sh -ec '
    cd "$1/root"
    mount -t tmpfs -o size=64m,mode=755 jail .
    cd "$1/root"
    mkdir -p api dev/net run srv
    for device in null kvm net/tun; do
        if [ -e /dev/$device ]; then
            : >dev/$device
            mount --bind /dev/$device dev/$device
        fi
    done
    mount --bind "$1/api" api
    cp "$2" vmm
    cp "$3" srv/vmlinux
    echo initramfs >srv/initramfs.cpio
    truncate -s 1M srv/rootfs.ext4 srv/other.ext4
    exec setpriv --pdeathsig KILL chroot . /vmm --api-sock /api/api.sock
' sh "$1" "$2" "$3"
