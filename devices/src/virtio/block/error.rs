//! Why a disk cannot be used.

use std::io;
use std::path::PathBuf;

use rotifer_snapshot::SnapshotId;

use super::overlay::OverlayError;

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are in the texts
pub enum BlockError {
    /// Missing, or not allowed.
    #[error("open disk image {} for {purpose}", path.display())]
    Open { path: PathBuf, purpose: &'static str, source: io::Error },
    /// A read-only file for a drive that is not.
    #[error(
        "disk image {} is read-only, but drive {id:?} is not (set is_read_only, or make the file \
         writable)",
        path.display()
    )]
    NotWritable { path: PathBuf, id: String },
    /// A directory, FIFO, socket or terminal.
    #[error("disk image {} is {what}; it must be a file or a block device", path.display())]
    NotADisk { path: PathBuf, what: &'static str },
    /// Empty, or nearly so.
    #[error(
        "disk image {} has {size_bytes} bytes, less than one sector of 512", path.display()
    )]
    TooSmall { path: PathBuf, size_bytes: u64 },
    /// Somebody holds the lock: another virtual machine, or another drive of this one.
    #[error("disk image {} is being {by} by another drive or process", path.display())]
    InUse { path: PathBuf, by: &'static str },
    /// The host fails.
    #[error("{attempt} disk image {}", path.display())]
    Inspect { path: PathBuf, attempt: &'static str, source: io::Error },
    /// What takes the writes cannot be used.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// An overlay is served by the calling thread alone.
    #[error("drive {id:?} has an overlay, and io_engine Async, which it cannot have (use Sync)")]
    AsyncOverlay { id: String },
    /// A snapshot has what was written to the drive, and there is nowhere to go on writing.
    #[error(
        "drive {id:?} had an overlay when snapshot {snapshot} was made: give it an overlay_path"
    )]
    NoOverlay { id: String, snapshot: SnapshotId },
    /// The guest would find itself on another disk.
    #[error(
        "disk image {} of drive {id:?} is not the one that the machine of snapshot {snapshot} had \
         below its overlay{}",
        path.display(), other_size(*snapshot_bytes, *bytes)
    )]
    OtherBase { path: PathBuf, id: String, snapshot: SnapshotId, snapshot_bytes: u64, bytes: u64 },
    /// The kernel is older, or its administrator has switched io_uring off.
    #[error("set up io_uring for drive {id:?} (without it, set its io_engine to Sync)")]
    NoIoUring { id: String, source: io::Error },
}

fn other_size(snapshot_bytes: u64, bytes: u64) -> String {
    match snapshot_bytes == bytes {
        true => ": its content is another".into(),
        false => format!(": that disk had {snapshot_bytes} bytes, and this one has {bytes}"),
    }
}
