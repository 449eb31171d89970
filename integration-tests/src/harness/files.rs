//! Files for guests' disks: the root file system, and room for more.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use super::not_set;
use crate::error::{Context, Result};
use crate::root_image;

/// Names a folder on a disk with room for several GiB, where files can have holes and direct I/O works.
pub const SCRATCH_VARIABLE: &str = "KINDLING_SCRATCH";

/// A new empty folder on that disk, removed on drop.
pub fn scratch() -> Result<TempDir> {
    let base = scratch_base()?;
    tempfile::tempdir_in(&base).doing(|| format!("cannot create a folder in {}", base.display()))
}

/// The image of the root file system for `kindling.root`, from the environment `host-runner` makes. All tests share it:
/// a guest must not write to it.
pub fn root_image() -> Result<PathBuf> {
    /// Two tests at a time must not make the same copy.
    static COPYING: Mutex<()> = Mutex::new(());
    let path = variable(root_image::VARIABLE)?;
    let kind = fs::metadata(&path).doing(|| format!("cannot find {}", path.display()))?.file_type();
    if !kind.is_block_device() {
        return Ok(path);
    }
    // The nested host has it as a disk. A guest's disk has to be a file.
    let copy = scratch_base()?.join("root.ext4");
    let _copying = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    if !copy.exists() {
        let partial = copy.with_extension("partial");
        copy_with_holes(&path, &partial)?;
        fs::rename(&partial, &copy).doing(|| format!("cannot create {}", copy.display()))?;
    }
    Ok(copy)
}

/// A copy of that image in `folder`, for a guest that writes.
pub fn writable_root_image(folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("root.ext4");
    copy_with_holes(&root_image()?, &copy)?;
    Ok(copy)
}

fn scratch_base() -> Result<PathBuf> {
    variable(SCRATCH_VARIABLE)
}

fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from).ok_or_else(|| not_set(name))
}

fn copy_with_holes(from: &Path, to: &Path) -> Result<()> {
    copy_blocks(from, to).doing(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Copies a file or a disk; where it holds zeros, the copy has holes.
fn copy_blocks(from: &Path, to: &Path) -> io::Result<()> {
    const BLOCK: u64 = 64 << 10;
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let mut block = Vec::new();
    let mut len = 0;
    loop {
        block.clear();
        let count = (&mut from).take(BLOCK).read_to_end(&mut block)?;
        if count == 0 {
            return to.set_len(len);
        }
        len += count as u64;
        if block.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Start(len))?;
        } else {
            to.write_all(&block)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_holes_for_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let mut bytes = vec![0; 3 << 20];
        bytes[1_000_000..1_000_100].fill(7);
        bytes.extend_from_slice(&[0, 0, 1, 0, 0]);
        fs::write(&from, &bytes).unwrap();
        copy_with_holes(&from, &to).unwrap();
        assert!(fs::read(&to).unwrap() == bytes);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }
}
