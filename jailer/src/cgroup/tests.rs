//! The logic of files on a folder that stands for a mounted hierarchy; tests/cgroup.rs uses the kernel's.
