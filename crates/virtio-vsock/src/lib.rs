//! A virtio socket device whose host side is Unix sockets.
