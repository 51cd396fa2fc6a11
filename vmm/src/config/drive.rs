//! `drives`: raw disk images and block devices.

use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rotifer_devices::virtio::block::Engine;

use super::document::RateLimiter;
use super::file::{self, Kind};
use super::{CacheType, Drive, Error, IoEngine};

/// How many drives a machine may have.
pub const DRIVES_MAX: usize = 16;
/// The longest drive id, in bytes; also the longest serial number a virtio-block guest can read.
pub const DRIVE_ID_BYTES_MAX: usize = 64;
/// The largest disk, in bytes.
pub const DISK_BYTES_MAX: u64 = 32 << 30;
/// The unit in which guests count a disk.
pub const SECTOR_BYTES: u64 = 512;
/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, or `xxxxxxxx-pp` of an MBR.
const PARTUUID_BYTES_MAX: usize = 36;

/// A disk, checked and open.
#[derive(Debug)]
pub struct Disk {
    /// The name the API uses: letters, digits and `_`.
    pub id: String,
    /// Where the file was found, for messages.
    pub path: PathBuf,
    /// Open for reading, and for writing unless `read_only`; a regular file or a block device.
    pub file: File,
    /// At least [`SECTOR_BYTES`]; what is beyond the last whole sector is invisible to the guest.
    pub size_bytes: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether the guest mounts it as `/`. The first disk of a plan, if any.
    pub root: bool,
    /// Whether the guest can flush.
    pub cache: CacheType,
    /// How the host does its I/O.
    pub engine: Engine,
    /// What takes the writes in place of `file`, which is then open for reading only.
    pub overlay: Option<PathBuf>,
}

impl Drive {
    /// Whether the guest may only read it.
    pub fn read_only(&self) -> bool {
        self.is_read_only.unwrap_or(false)
    }

    fn check_overlay(&self, at: &str) -> Result<(), Error> {
        let Some(path) = &self.overlay_path else { return Ok(()) };
        let refuse = |reason: &str, remedy| Err(Error::invalid(at, path.display(), reason, remedy));
        if self.read_only() {
            refuse("the drive is read-only, so there is nothing to take", "leave the key out")
        } else if self.engine() == Engine::Async {
            refuse("io_engine Async has no overlays", "use \"Sync\"")
        } else {
            Ok(())
        }
    }

    fn engine(&self) -> Engine {
        match self.io_engine.unwrap_or_default() {
            IoEngine::Sync => Engine::Sync,
            IoEngine::Async => Engine::Async,
        }
    }

    /// Checks what does not need the file; `index` is its place in `drives`.
    pub(super) fn check(&self, index: usize) -> Result<&Path, Error> {
        let at = |field: &str| format!("drives[{index}].{field}");
        check_id(&self.drive_id, &at("drive_id"))?;
        if self.socket.is_some() {
            return Err(Error::Unsupported {
                path: at("socket"),
                reason: "there is no vhost-user-block device",
                remedy: "use path_on_host with a raw disk image",
            });
        }
        refuse_rate_limiter(self.rate_limiter.as_ref(), at("rate_limiter"))?;
        self.engine().probe().map_err(|cause| {
            Error::invalid(
                at("io_engine"),
                "Async",
                format!(
                    "drive {} cannot have it: this host has no io_uring for us ({cause})",
                    self.drive_id
                ),
                "use \"Sync\" or leave the key out",
            )
        })?;
        if let Some(partuuid) = &self.partuuid {
            check_partuuid(partuuid, &at("partuuid"))?;
        }
        self.check_overlay(&at("overlay_path"))?;
        self.path_on_host.as_deref().ok_or_else(|| Error::Missing { path: at("path_on_host") })
    }

    /// Checks the section and opens its file.
    pub(super) fn open(&self, index: usize) -> Result<Disk, Error> {
        let path = self.check(index)?;
        let read_only = self.read_only();
        let at = format!("drives[{index}].path_on_host");
        let only_read = read_only || self.overlay_path.is_some();
        let (file, size_bytes) = open_disk(&at, path, only_read)?;
        Ok(Disk {
            id: self.drive_id.clone(),
            path: path.into(),
            file,
            size_bytes,
            read_only,
            root: self.is_root_device,
            cache: self.cache_type,
            engine: self.engine(),
            overlay: self.overlay_path.clone(),
        })
    }
}

/// Checks the drives together, and the one at `index` by itself.
pub(crate) fn check_drives(drives: &[Drive], index: usize) -> Result<(), Error> {
    check_together(drives)?;
    drives.get(index).map_or(Ok(()), |drive| drive.open(index).map(drop))
}

/// Checks what concerns the drives together: their number, their ids, the one root device.
pub(super) fn check_together(drives: &[Drive]) -> Result<(), Error> {
    if drives.len() > DRIVES_MAX {
        let reason = format!("a machine has at most {DRIVES_MAX} drives");
        return Err(Error::invalid("drives", drives.len(), reason, "remove some"));
    }
    for (index, drive) in drives.iter().enumerate() {
        let before = &drives[..index];
        if let Some(first) = before.iter().position(|other| other.drive_id == drive.drive_id) {
            return Err(Error::invalid(
                format!("drives[{index}].drive_id"),
                &drive.drive_id,
                format!("drives[{first}] has the same id"),
                "give each drive an id of its own",
            ));
        }
        let root = before.iter().position(|other| other.is_root_device);
        if let (true, Some(first)) = (drive.is_root_device, root) {
            return Err(Error::invalid(
                format!("drives[{index}].is_root_device"),
                "true",
                format!("drives[{first}] is the root device already"),
                "a machine has at most one",
            ));
        }
    }
    Ok(())
}

/// Checks an identifier as it appears in files and in the API's paths.
pub(super) fn check_id(id: &str, path: &str) -> Result<(), Error> {
    let reason = if id.is_empty() {
        "an id cannot be empty".into()
    } else if id.len() > DRIVE_ID_BYTES_MAX {
        format!("an id has at most {DRIVE_ID_BYTES_MAX} characters")
    } else if let Some(bad) = id.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '_') {
        format!("an id cannot contain {bad:?}")
    } else {
        return Ok(());
    };
    Err(Error::invalid(path, id, reason, "use ASCII letters, digits and underscores"))
}

/// A partition id goes into the kernel's command line: it must be one word of it.
fn check_partuuid(partuuid: &str, path: &str) -> Result<(), Error> {
    let fits = (1..=PARTUUID_BYTES_MAX).contains(&partuuid.len())
        && partuuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if fits {
        return Ok(());
    }
    let reason = "not a partition id of hexadecimal digits and dashes";
    Err(Error::invalid(path, partuuid, reason, "see `blkid -s PARTUUID` or leave the key out"))
}

pub(super) fn refuse_rate_limiter(
    limiter: Option<&RateLimiter>,
    path: String,
) -> Result<(), Error> {
    match limiter {
        Some(RateLimiter { bandwidth: None, ops: None }) | None => Ok(()),
        Some(_) => Err(Error::Unsupported {
            path,
            reason: "only network interfaces have rate limiters yet",
            remedy: "leave the key out",
        }),
    }
}

fn open_disk(at: &str, path: &Path, read_only: bool) -> Result<(File, u64), Error> {
    let attempt = if read_only { "open for reading" } else { "open for reading and writing" };
    let failed = |source| Error::File { path: at.into(), file: path.into(), attempt, source };
    let refuse =
        |reason: String, remedy: &str| Err(Error::invalid(at, path.display(), reason, remedy));
    // Opening a directory for writing says only EISDIR; look before.
    if path.is_dir() {
        return refuse("a directory".into(), "give a raw disk image or a block device");
    }
    let opened =
        if read_only { file::open_for_reading(path) } else { file::open_for_writing(path) };
    let mut file = opened.map_err(|source| match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            if !read_only && file::open_for_reading(path).is_ok() =>
        {
            not_writable(at, path, &source.to_string())
        }
        _ => failed(source),
    })?;
    if let Kind::Other(kind) = file::kind(&file).map_err(failed)? {
        return refuse(kind.into(), "give a raw disk image or a block device");
    }
    // root may write what nobody is meant to write.
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if !read_only && mode & 0o222 == 0 {
        return Err(not_writable(at, path, &format!("its mode is {:04o}", mode & 0o7777)));
    }
    // The metadata of a block device has no size; its end does.
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.rewind().map_err(failed)?;
    match size_bytes {
        0 => refuse("the file is empty".into(), "create it with the size the disk should have"),
        size if size < SECTOR_BYTES => refuse(
            format!("the file has {size} bytes, less than one sector of {SECTOR_BYTES}"),
            "was it written completely?",
        ),
        size if size > DISK_BYTES_MAX => refuse(
            format!("the file has {size} bytes, and a disk has at most {DISK_BYTES_MAX}"),
            "use a smaller one",
        ),
        size => Ok((file, size)),
    }
}

fn not_writable(at: &str, path: &Path, cause: &str) -> Error {
    let reason = format!("the file is read-only and the drive is not ({cause})");
    Error::invalid(at, path.display(), reason, "set is_read_only to true, or make it writable")
}
