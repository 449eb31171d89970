//! How a virtio device is shown to its guest: virtio-mmio, over a part that other transports can share.
