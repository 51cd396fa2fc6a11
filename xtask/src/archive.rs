//! Initramfs archives: cpio in the `newc` form.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};
use cpio::newc;

/// A directory that anybody may enter.
pub const DIRECTORY: u32 = 0o040_755;
/// A program.
pub const PROGRAM: u32 = 0o100_755;
/// Any other file.
pub const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in memory.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    /// Adds a directory or a file.
    pub fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.write_entry(newc::Builder::new(name).mode(mode), name, content)
    }

    /// Adds a character device.
    pub fn add_device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        let entry = newc::Builder::new(name).mode(CHARACTER_DEVICE);
        self.write_entry(entry.rdev_major(major).rdev_minor(minor), name, &[])
    }

    fn write_entry(&mut self, entry: newc::Builder, name: &str, content: &[u8]) -> Result<()> {
        self.count += 1;
        let length = u32::try_from(content.len()).context("a file of 4 GiB in an initramfs")?;
        let mut writer = entry.ino(self.count).nlink(1).write(&mut self.bytes, length);
        let written = writer.write_all(content).and_then(|()| writer.finish().map(|_| ()));
        written.with_context(|| format!("cannot pack {name}"))
    }

    /// The whole archive.
    pub fn into_bytes(mut self) -> Result<Vec<u8>> {
        newc::trailer(&mut self.bytes).context("cannot end the archive")?;
        Ok(self.bytes)
    }

    /// Writes the archive under a name that appears only when it is whole.
    pub fn write(self, path: &Path) -> Result<()> {
        write_whole(path, &self.into_bytes()?)
    }
}

/// Writes a file that appears under its name only when it is whole.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, bytes).with_context(|| format!("cannot write {partial:?}"))?;
    fs::rename(&partial, path).with_context(|| format!("cannot name {path:?}"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn an_archive_can_be_read_back() {
        let mut archive = Archive::default();
        archive.add("etc", DIRECTORY, &[]).unwrap();
        archive.add_device("dev/console", 5, 1).unwrap();
        archive.add("etc/hosts", FILE, b"hello").unwrap();
        let first = newc::Reader::new(Cursor::new(archive.into_bytes().unwrap())).unwrap();
        assert_eq!((first.entry().name(), first.entry().mode()), ("etc", DIRECTORY));
        let second = newc::Reader::new(first.finish().unwrap()).unwrap();
        assert_eq!((second.entry().rdev_major(), second.entry().rdev_minor()), (5, 1));
        let third = newc::Reader::new(second.finish().unwrap()).unwrap();
        assert_eq!((third.entry().name(), third.entry().file_size()), ("etc/hosts", 5));
    }
}
