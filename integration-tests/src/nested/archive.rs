//! The RAM disk of a nested host: the guests' initial RAM file system, followed by an archive with what this host gets
//! in addition. The kernel unpacks one after the other.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Spec, path_in_host};
use crate::cpio;
use crate::error::{Context, Error, Result};
use crate::job::{JOB_PATH, Job};
use crate::workspace;

/// Writes the RAM disk to a file without a name, which is gone when it is closed.
pub fn build(spec: &Spec, job: &Job) -> Result<File> {
    let folder = workspace::target_dir();
    let file =
        tempfile::tempfile_in(&folder).doing(|| format!("cannot create a file in {}", folder.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let base = spec.image.initramfs();
    let mut base_file = File::open(&base).doing(|| format!("cannot open {}", base.display()))?;
    io::copy(&mut base_file, &mut out).doing(|| format!("cannot copy {}", base.display()))?;

    let mut archive = cpio::Writer::new(out);
    let write_error = || "cannot write the nested host's RAM disk".to_owned();
    archive.bytes(JOB_PATH, 0o600, &job.to_bytes()?).doing(write_error)?;
    let image = &spec.image;
    let guest = [image.vmlinux(), image.vmlinuz(), image.initramfs()];
    let modules = image.host_modules()?;
    let mut done = Vec::new();
    for path in guest.iter().chain(&modules).chain(&spec.files) {
        add(&mut archive, path, &mut done)?;
    }
    let out = archive.finish().doing(write_error)?;
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error).doing(write_error)?;
    file.flush().doing(write_error)?;
    Ok(file)
}

/// Adds a file under its path, and under the one without links if that is another. `done` holds the paths that the archive
/// already has.
pub fn add(archive: &mut cpio::Writer<impl Write>, path: &Path, done: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("cannot add {} to the nested host", path.display());
    let real = path_in_host(path)?;
    let text = |path: &Path| match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::Protocol(format!("{} is not UTF-8", path.display()))),
    };
    if !done.contains(&real) {
        let file = File::open(&real).doing(context)?;
        let metadata = file.metadata().doing(context)?;
        archive.file(&text(&real)?, metadata.permissions().mode(), metadata.len(), file).doing(context)?;
        done.push(real.clone());
    }
    let absolute = std::path::absolute(path).doing(context)?;
    if !done.contains(&absolute) {
        archive.symlink(&text(&absolute)?, &text(&real)?).doing(context)?;
        done.push(absolute);
    }
    Ok(())
}
