//! `boot-source`: the kernel, its initial RAM file system and its command line.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::file::{self, Kind};
use super::{BootSource, Drive, Error};

/// The command line of a configuration that gives none: Firecracker's, less what only x86 knows.
pub const DEFAULT_ARGS: &str = "panic=1 nomodule 8250.nr_uarts=0 swiotlb=noforce";

/// The kernel keeps this many bytes of command line, the closing NUL among them
/// (arm64 `COMMAND_LINE_SIZE`).
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;

/// What is booted.
#[derive(Debug)]
pub struct Boot {
    /// The kernel's path, for messages.
    pub kernel_path: PathBuf,
    /// The kernel, open for reading, a regular file and not empty.
    pub kernel: File,
    /// The initial RAM file system's path, for messages, and the open file.
    pub initrd: Option<(PathBuf, File)>,
    /// Printable ASCII, shorter than [`COMMAND_LINE_BYTES_MAX`], the root device included.
    pub command_line: String,
}

impl BootSource {
    /// Checks the section as it is before the root drive is known.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.open(None).map(drop)
    }

    /// Checks the section and opens its files. `root` is the drive to mount as `/`.
    pub(super) fn open(&self, root: Option<&Drive>) -> Result<Boot, Error> {
        let kernel = open_image("boot-source.kernel_image_path", &self.kernel_image_path)?;
        let initrd = match &self.initrd_path {
            None => None,
            Some(path) => Some((path.clone(), open_image("boot-source.initrd_path", path)?)),
        };
        let args = self.boot_args.as_deref().unwrap_or(DEFAULT_ARGS);
        let command_line = command_line(args, root)?;
        Ok(Boot { kernel_path: self.kernel_image_path.clone(), kernel, initrd, command_line })
    }
}

fn open_image(path: &str, file_path: &Path) -> Result<File, Error> {
    let failed = |source| Error::File {
        path: path.into(),
        file: file_path.into(),
        attempt: "open for reading",
        source,
    };
    let file = file::open_for_reading(file_path).map_err(failed)?;
    let refuse = |reason: String, remedy: &str| {
        Err(Error::invalid(path, file_path.display(), reason, remedy))
    };
    match file::kind(&file).map_err(failed)? {
        Kind::Regular => {}
        Kind::BlockDevice => return refuse("a block device".into(), "give a regular file"),
        Kind::Other(kind) => return refuse(kind.into(), "give a regular file"),
    }
    if file.metadata().map_err(failed)?.len() == 0 {
        return refuse("the file is empty".into(), "was it built or copied completely?");
    }
    Ok(file)
}

/// The user's arguments, with the root device's put before any ` -- `, behind which the
/// arguments are no longer the kernel's but init's.
fn command_line(args: &str, root: Option<&Drive>) -> Result<String, Error> {
    const PATH: &str = "boot-source.boot_args";
    if let Some(bad) = args.chars().find(|c| !matches!(c, ' '..='~')) {
        let reason = format!("contains {bad:?}, which is not a printable ASCII character");
        return Err(Error::invalid(PATH, args, reason, "remove it"));
    }
    let (kernel_args, init_args) = match args.split_once(" -- ") {
        None => (args.trim(), None),
        Some((kernel_args, init_args)) => (kernel_args.trim(), Some(init_args.trim())),
    };
    let mut line = String::from(kernel_args);
    if let Some(drive) = root {
        let access = if drive.read_only() { "ro" } else { "rw" };
        let root = match &drive.partuuid {
            Some(partuuid) => format!(" root=PARTUUID={partuuid} {access}"),
            None => format!(" root=/dev/vda {access}"),
        };
        line.push_str(&root);
    }
    if let Some(init_args) = init_args {
        line.push_str(" -- ");
        line.push_str(init_args);
    }
    let line = line.trim_start();
    if line.len() >= COMMAND_LINE_BYTES_MAX {
        let reason = format!(
            "the command line has {} bytes with the root device's arguments, and the kernel \
             keeps at most {}",
            line.len(),
            COMMAND_LINE_BYTES_MAX - 1
        );
        return Err(Error::invalid(PATH, args, reason, "shorten it"));
    }
    Ok(line.into())
}
