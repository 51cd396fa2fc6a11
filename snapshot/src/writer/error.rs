//! Why a snapshot cannot be written.

use std::io;
use std::path::{Path, PathBuf};

use crate::layout::{BlockIndex, LAYERS_MAX};
use crate::manifest::ManifestError;
use crate::name::Name;
use crate::source::SourceError;

/// Why a snapshot cannot be written. Unless it says otherwise, there is no new snapshot then, and
/// older ones are as they were.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The host refuses.
    #[error("{attempt} {}", path.display())]
    Storage {
        /// What was tried.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The new snapshot is complete and in place, but a power cut may undo its appearance.
    #[error("make the snapshot {} survive a power cut; it is complete", path.display())]
    NotDurable {
        /// The manifest.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed, so the pack has a hole.
    #[error("go on with the pack {} after a write to it failed", path.display())]
    Failed {
        /// The pack.
        path: PathBuf,
    },
    /// The parent's content cannot be read. With [`Compare::Digests`](super::Compare::Digests) less
    /// of it is needed.
    #[error("read the parent's content")]
    Parent(#[from] SourceError),
    /// The manifest would be one that no reader accepts.
    #[error("describe the snapshot")]
    Manifest(#[from] ManifestError),
    /// The chain is too long.
    #[error("the parent consists of {LAYERS_MAX} packs: compact it first")]
    TooManyLayers,
    /// The same pack twice.
    #[error("the new pack has the name of a pack of the parent")]
    PackName,
    /// No such image.
    #[error("the new snapshot has no image called {name}")]
    NoImage {
        /// What was asked for.
        name: Name,
    },
    /// An image is not what it was.
    #[error("image {name} has {bytes} bytes and had {parent_bytes} in the parent")]
    ImageBytes {
        /// The image.
        name: Name,
        /// Its length now.
        bytes: u64,
        /// Its length in the parent.
        parent_bytes: u64,
    },
    /// Pages that the image does not have.
    #[error("pages of block {block} lie behind the end of image {name}")]
    OutOfImage {
        /// The image.
        name: Name,
        /// The block.
        block: BlockIndex,
    },
    /// More or fewer bytes than pages.
    #[error("{found} bytes were given for pages of block {block} that have {expected}")]
    ContentBytes {
        /// The block.
        block: BlockIndex,
        /// Bytes of the pages.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// The compressor refuses.
    #[error("compress pages")]
    Compress(#[source] io::Error),
}

/// Names the attempt and the file.
pub(super) fn storage(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_path_buf();
    move |source| WriteError::Storage { attempt, path, source }
}
