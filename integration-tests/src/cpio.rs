//! A writer of `newc` cpio archives, the format in which Linux takes its initial RAM file system
//! (kernel documentation, "initramfs buffer format").
//!
//! Parent folders appear by themselves; owner, times and inode numbers do not depend on the machine, so that the same
//! contents give the same bytes.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Size of the ASCII header in front of every name.
const HEADER_LEN: u64 = 110;

/// Writes an archive to `W`; [`Writer::finish`] has to be called for the archive to be complete.
pub struct Writer<W: Write> {
    out: W,
    next_ino: u32,
    folders: BTreeSet<String>,
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    len: u64,
    device: (u32, u32),
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self { out, next_ino: 1, folders: BTreeSet::new() }
    }

    /// Adds a folder with mode 0755 (and those above it) unless the archive already has it.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.header(&Entry { path, mode: S_IFDIR | 0o755, len: 0, device: (0, 0) })?;
        self.folders.insert(path.to_owned());
        Ok(())
    }

    /// Adds a regular file of exactly `len` bytes; a source that holds fewer is an error.
    pub fn file(&mut self, path: &str, mode: u32, len: u64, source: impl Read) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.header(&Entry { path, mode: S_IFREG | (mode & 0o7777), len, device: (0, 0) })?;
        let copied = io::copy(&mut source.take(len), &mut self.out)?;
        if copied != len {
            let text = format!("{path} holds {copied} bytes instead of {len}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.pad(len)
    }

    /// Adds a regular file with the given contents.
    pub fn bytes(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.file(path, mode, contents.len() as u64, contents)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        let len = target.len() as u64;
        self.parents(path)?;
        self.header(&Entry { path, mode: S_IFLNK | 0o777, len, device: (0, 0) })?;
        self.out.write_all(target.as_bytes())?;
        self.pad(len)
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.parents(path)?;
        self.header(&Entry { path, mode: S_IFCHR | (mode & 0o7777), len: 0, device: (major, minor) })
    }

    /// Ends the archive and gives the sink back.
    pub fn finish(mut self) -> io::Result<W> {
        self.header(&Entry { path: "TRAILER!!!", mode: 0, len: 0, device: (0, 0) })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn header(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let len = u32::try_from(entry.len).map_err(|_| {
            let text = format!("{} has {} bytes, more than cpio can hold", entry.path, entry.len);
            io::Error::new(io::ErrorKind::FileTooLarge, text)
        })?;
        let name_size = entry.path.len() as u64 + 1;
        let fields = [
            self.next_ino,
            entry.mode,
            0, // owner
            0, // group
            1, // links: one, so that the kernel looks for no hard links
            0, // time
            len,
            0, // device the archive was made from, major and minor
            0,
            entry.device.0,
            entry.device.1,
            name_size as u32,
            0, // checksum, not used by this variant
        ];
        self.next_ino += 1;
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(entry.path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(HEADER_LEN + name_size)
    }

    fn pad(&mut self, len: u64) -> io::Result<()> {
        let padding = (4 - len % 4) % 4;
        self.out.write_all(&[0_u8; 3][..padding as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, modes and contents of an archive, read back by the rules of the format.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                u32::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
            };
            let (mode, len, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode, archive[data..data + len].to_vec()));
            at = (data + len).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_can_be_read_back_with_its_folders() {
        let mut writer = Writer::new(Vec::new());
        writer.bytes("/a/b/three", 0o755, b"abc").unwrap();
        writer.bytes("a/b/empty", 0o600, b"").unwrap();
        writer.symlink("bin/sh", "busybox").unwrap();
        writer.char_device("dev/console", 0o600, 5, 1).unwrap();
        let archive = writer.finish().unwrap();
        assert_eq!(
            entries(&archive),
            [
                ("a".to_owned(), 0o040_755, vec![]),
                ("a/b".to_owned(), 0o040_755, vec![]),
                ("a/b/three".to_owned(), 0o100_755, b"abc".to_vec()),
                ("a/b/empty".to_owned(), 0o100_600, vec![]),
                ("bin".to_owned(), 0o040_755, vec![]),
                ("bin/sh".to_owned(), 0o120_777, b"busybox".to_vec()),
                ("dev".to_owned(), 0o040_755, vec![]),
                ("dev/console".to_owned(), 0o020_600, vec![]),
            ]
        );
    }

    #[test]
    fn a_source_that_is_too_short_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        let error = writer.file("short", 0o644, 10, &b"abc"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_longer_source_is_cut_at_the_announced_length() {
        let mut writer = Writer::new(Vec::new());
        writer.file("cut", 0o644, 2, &b"abcdef"[..]).unwrap();
        assert_eq!(entries(&writer.finish().unwrap())[0].2, b"ab");
    }
}
