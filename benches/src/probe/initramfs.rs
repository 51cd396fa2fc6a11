//! An initramfs whose only process is this program.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// The major and minor number of /dev/console (Documentation/admin-guide/devices.txt of Linux).
const CONSOLE: (u32, u32) = (5, 1);

/// Makes it in a directory, unless it is there.
///
/// # Errors
/// The host refuses.
pub fn make(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("probe.cpio");
    if path.exists() {
        return Ok(path);
    }
    let own = env::current_exe().context("cannot tell which program we are")?;
    let program = fs::read(&own).with_context(|| format!("cannot read {}", own.display()))?;
    let archive = archive(&program).context("cannot make an initramfs")?;
    fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The console must be there before the process can say anything.
fn archive(program: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let entry = |name, mode, inode| newc::Builder::new(name).mode(mode).ino(inode).nlink(1);
    let console = entry("dev/console", CHARACTER_DEVICE, 2);
    let console = console.rdev_major(CONSOLE.0).rdev_minor(CONSOLE.1);
    let entries = [
        (entry("dev", DIRECTORY, 1), &[][..]),
        (console, &[]),
        (entry("init", PROGRAM, 3), program),
    ];
    for (entry, content) in entries {
        let mut writer = entry.write(&mut bytes, u32::try_from(content.len())?);
        writer.write_all(content)?;
        writer.finish()?;
    }
    newc::trailer(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_archive_holds_a_console_and_a_program() {
        let bytes = archive(b"program").unwrap();
        let first = newc::Reader::new(bytes.as_slice()).unwrap();
        assert_eq!(first.entry().name(), "dev");
        let second = newc::Reader::new(first.finish().unwrap()).unwrap();
        assert_eq!((second.entry().rdev_major(), second.entry().rdev_minor()), CONSOLE);
        let mut third = newc::Reader::new(second.finish().unwrap()).unwrap();
        assert_eq!((third.entry().name(), third.entry().mode()), ("init", PROGRAM));
        let mut content = Vec::new();
        third.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"program");
    }
}
