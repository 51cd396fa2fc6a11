//! Why a disk cannot be used.

use std::io;
use std::path::PathBuf;

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
    /// The kernel is older, or its administrator has switched io_uring off.
    #[error("set up io_uring for drive {id:?} (without it, set its io_engine to Sync)")]
    NoIoUring { id: String, source: io::Error },
}
