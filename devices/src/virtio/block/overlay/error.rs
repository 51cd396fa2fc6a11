//! Why an overlay cannot be used.

use std::io;
use std::path::PathBuf;

use rotifer_snapshot::SnapshotId;

/// Why an overlay cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are in the texts
pub enum OverlayError {
    /// The host refuses.
    #[error("{attempt} overlay {}", path.display())]
    Io { path: PathBuf, attempt: &'static str, source: io::Error },
    /// Another machine writes it.
    #[error("overlay {} is being used by another drive or process", path.display())]
    InUse { path: PathBuf },
    /// The device could not write its table, and has said so when it tried.
    #[error(
        "overlay {} lacks some of what the guest wrote, because writing its block table failed; \
         make room for it, resume the machine and pause it again",
        path.display()
    )]
    Behind { path: PathBuf },
    /// What is in it cannot be trusted, or belongs elsewhere.
    #[error("overlay {} cannot be used", path.display())]
    Damaged { path: PathBuf, source: Damage },
}

/// What is wrong with the content of an overlay.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are in the texts
pub enum Damage {
    /// Some other file, or one whose making was cut off.
    #[error("it is not an overlay, or its making was interrupted")]
    NotAnOverlay,
    /// Made by another program than this.
    #[error("its format version {version} is unknown; this program knows 1 and 2")]
    Version { version: u32 },
    /// A checksum does not fit.
    #[error("its header is damaged")]
    Header,
    /// A checksum does not fit, or a state is none.
    #[error("unit {unit} of its block table is damaged")]
    Table { unit: usize },
    /// The base is not the one it was made for.
    #[error("it belongs to a disk of {overlay_bytes} bytes, and the base has {disk_bytes}")]
    OtherDisk { overlay_bytes: u64, disk_bytes: u64 },
    /// It is of no use without that snapshot, and that one's machines begin with an empty one.
    #[error(
        "it holds what a machine wrote that was restored from snapshot {snapshot}; restore that \
         one, which empties it, or use another file"
    )]
    OverSnapshot { snapshot: SnapshotId },
    /// The other way round.
    #[error("it lies on the base, and not on the snapshot that the machine was restored from")]
    OverBase,
    /// Somebody truncated it.
    #[error("it has {found_bytes} bytes instead of {expected_bytes}")]
    Length { found_bytes: u64, expected_bytes: u64 },
}
