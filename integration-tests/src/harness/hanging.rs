//! A disk whose server can stop answering: a file in a FUSE file system of this process.
//!
//! Only what a monitor does with the file is served (Linux, include/uapi/linux/fuse.h, version 7.31). A server that hangs
//! does not take requests any more, as one that was stopped.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Context, Result};
use crate::terminal::check;

/// Bytes of the disk, all of them zero.
const SIZE: u64 = 1 << 20;
/// The root folder, and the file in it.
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// A file that can be read while it does not hang. Needs root.
pub struct HangingDisk {
    folder: PathBuf,
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    hangs: AtomicBool,
    ends: AtomicBool,
}

impl HangingDisk {
    /// A disk in a new folder in `folder`.
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = folder.join("fuse");
        fs::create_dir(&folder).doing(|| format!("cannot create {}", folder.display()))?;
        let channel = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let channel = channel.doing(|| "cannot open /dev/fuse".to_owned())?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", channel.as_raw_fd());
        mount(&folder, &options).doing(|| format!("cannot mount {}", folder.display()))?;
        let state = Arc::new(State::default());
        let server = std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                if let Err(error) = serve(channel, &state) {
                    eprintln!("the server of a disk ended: {error}");
                }
            }
        });
        let disk = Self { folder, state, server: Some(server) };
        // The kernel learns that closing needs no flush, which even a process that is killed would wait for.
        File::open(disk.path()).doing(|| format!("cannot open {}", disk.path().display()))?;
        Ok(disk)
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.join("disk")
    }

    /// Has no request answered from now on.
    pub fn hang(&self) {
        self.state.hangs.store(true, Ordering::SeqCst);
    }

    /// Has all requests answered, also those that wait.
    pub fn recover(&self) {
        self.state.hangs.store(false, Ordering::SeqCst);
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            // The channel is closed with it, which ends all requests that wait.
            let _ = server.join();
        }
        let folder = CString::new(self.folder.as_os_str().as_bytes()).unwrap_or_default();
        // SAFETY: the path is a C string.
        if let Err(error) = check(unsafe { libc::umount2(folder.as_ptr(), libc::MNT_DETACH) }) {
            eprintln!("cannot unmount {}: {error}", self.folder.display());
        }
    }
}

fn mount(folder: &Path, options: &str) -> io::Result<()> {
    let (folder, options) = (CString::new(folder.as_os_str().as_bytes())?, CString::new(options)?);
    let kind = c"fuse".as_ptr();
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: all are C strings.
    check(unsafe { libc::mount(kind, folder.as_ptr(), kind, flags, options.as_ptr().cast()) })
}

fn serve(mut channel: File, state: &State) -> io::Result<()> {
    let mut request = vec![0; 1 << 20];
    while !state.ends.load(Ordering::SeqCst) {
        let mut ready = libc::pollfd { fd: channel.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which the call writes.
        let count = unsafe { libc::poll(&raw mut ready, 1, 50) };
        if state.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        } else if count == 1 {
            let len = match channel.read(&mut request) {
                // A request that was taken back.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                read => read?,
            };
            if let Some(reply) = answer(&request[..len]) {
                channel.write_all(&reply)?;
            }
        }
    }
    Ok(())
}

/// The answer to a request, if it gets one.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    const LOOKUP: u32 = 1;
    const FORGET: u32 = 2;
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const RELEASE: u32 = 18;
    const INIT: u32 = 26;
    const INTERRUPT: u32 = 36;
    const BATCH_FORGET: u32 = 42;
    /// Bytes of the header of a request.
    const HEADER: usize = 40;

    let word = |at: usize| request.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let quad = |at: usize| request.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let (operation, unique, node) = (word(4)?, quad(8)?, quad(16)?);
    let result = match operation {
        FORGET | BATCH_FORGET | INTERRUPT => return None,
        INIT => {
            // Version, read-ahead, flags; background requests, largest write, granularity of time.
            let mut reply = [7_u32, 31, 1 << 17, 0, 0, 1 << 17, 1].map(u32::to_le_bytes).concat();
            reply.resize(64, 0);
            Ok(reply)
        }
        LOOKUP if request.get(HEADER..).is_some_and(|name| name.starts_with(b"disk\0")) => {
            // Node, generation, validity of both in seconds and nanoseconds.
            let mut reply = [FILE, 0, 3600, 3600, 0].map(u64::to_le_bytes).concat();
            reply.extend(attributes(FILE));
            Ok(reply)
        }
        LOOKUP => Err(libc::ENOENT),
        GETATTR => {
            let mut reply = [3600_u64, 0].map(u64::to_le_bytes).concat();
            reply.extend(attributes(node));
            Ok(reply)
        }
        // Nothing is cached: each read gets here.
        OPEN => Ok([0_u64, 1].map(u64::to_le_bytes).concat()),
        READ => {
            let (offset, size) = (quad(HEADER + 8)?, word(HEADER + 16)?);
            Ok(vec![0; SIZE.saturating_sub(offset).min(size.into()) as usize])
        }
        RELEASE => Ok(Vec::new()),
        _ => Err(libc::ENOSYS),
    };
    let (error, body) = result.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
    let len = 16 + u32::try_from(body.len()).ok()?;
    Some([&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes(), &body].concat())
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = match node {
        ROOT => (libc::S_IFDIR | 0o755, 0),
        _ => (libc::S_IFREG | 0o644, SIZE),
    };
    // Number, size, blocks, and three times.
    let mut bytes = [node, size, size / 512, 0, 0, 0].map(u64::to_le_bytes).concat();
    // Their nanoseconds, then mode, links, owner, group, device, block size, flags.
    bytes.extend([0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_le_bytes).concat());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_lengths_that_the_kernel_wants() {
        let request = |operation: u32, body: &[u8]| {
            let mut bytes = [(40 + body.len()) as u32, operation].map(u32::to_le_bytes).concat();
            bytes.extend([77_u64, FILE, 0, 0].map(u64::to_le_bytes).concat());
            bytes.extend(body);
            answer(&bytes).unwrap()
        };
        for (operation, body, len) in
            [(26, &[][..], 64), (1, b"disk\0", 128), (3, &[], 104), (14, &[], 16), (1, b"other\0", 0)]
        {
            let reply = request(operation, body);
            assert_eq!(reply.len(), 16 + len, "{operation}");
            assert_eq!(reply[..4], (16 + len as u32).to_le_bytes());
            assert_eq!(reply[8..16], 77_u64.to_le_bytes());
        }
        let mut read = vec![0; 24];
        read[8..16].copy_from_slice(&(SIZE - 100).to_le_bytes());
        read[16..20].copy_from_slice(&4096_u32.to_le_bytes());
        assert_eq!(request(15, &read).len(), 16 + 100);
        assert_eq!(request(9, &[])[4..8], (-libc::ENOSYS).to_le_bytes());
    }
}
