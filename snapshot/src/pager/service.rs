//! The host's pager process: it keeps the images that machines share, is the only one that can write
//! them, and serves the faults of all.
//!
//! ```text
//!  a machine's process                                 the pager's process
//!  connect, Open ────────digest of the manifest──────▶ finds the image
//!          ◀─────────────────────────── Bring           or has none yet
//!  Files ───────────manifest, packs (descriptors)────▶ makes it
//!          ◀──────────────image (descriptor)── Opened
//!  maps it, registers what is missing; if nothing is, that was all
//!  Serve ─────────userfaultfd, where RAM lies────────▶ loads, verifies, unregisters block by block
//!          ◀───────────────── Claim, Complete, Failed
//!          ◀─────────────────────────── Bring           the files that it has are not in order
//!  Files ───────────manifest, packs (descriptors)────▶ goes on with them
//! ```
//! The machine keeps its userfaultfd open and ends itself when the pager is gone: a fault may wait,
//! but never reads a page of zeroes. It hands over descriptors and no paths, so the pager needs no
//! right to open files, and opens none that the machine could not.
//!
//! **Who may have an image** is who can name the digest of its manifest: 256 bits that nobody guesses, and
//! that a machine learns by reading the manifest, or by being told. Of the files the pager keeps those that
//! were brought first. They need not be good ones, whoever brought them: what cannot be loaded from them,
//! or is not what the manifest says, is loaded from those of the machine that wants it, which are kept instead.

mod client;
mod host;
mod wire;

use std::{io, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use self::{
    client::{Image, Service},
    host::{Host, Keep},
};
use super::{
    plan::{ChunkRun, Reach},
    shared_image::SharedImageError,
    space::{Region, SpaceError},
};
use crate::{id::SnapshotId, layout::BlockIndex, snapshot::OpenError};

/// What both sides must agree on.
const VERSION: u32 = 2;
/// Runs of a working set that are told. What comes later is no head start.
const WORKING_SET_RUNS_MAX: usize = 4096;
/// Blocks that are not shared and are told: 4 GiB. Others are shared.
const WRITTEN_BLOCKS_MAX: usize = 2048;

/// What a machine asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// The image of the snapshot of which the manifest has this digest.
    Open { version: u32, snapshot: [u8; 32] },
    /// What was asked for with [`Answer::Bring`]. Descriptors: the manifest, and the packs.
    Files,
    /// To be served. Descriptor: the userfaultfd.
    Serve {
        regions: Vec<Region>,
        /// Offset and length in bytes of what was registered.
        pieces: Vec<(u64, u64)>,
        /// First chunk and number of chunks.
        working_set: Vec<(u32, u32)>,
        /// Blocks that are not shared.
        written: Vec<u32>,
        reach: Reach,
    },
}

/// How a machine wants its memory; see [`super::Options`].
#[derive(Debug)]
pub(super) struct Wishes {
    pub working_set: Vec<ChunkRun>,
    pub written: Vec<BlockIndex>,
    pub reach: Reach,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The pager lacks the files of the snapshot, or those that it has are not in order.
    Bring,
    /// Descriptor: the image.
    Opened { image_bytes: u64 },
    /// A block that is not shared is there. The machine's process puts a copy in its place, and wakes
    /// who waits for it: it is registered until then.
    Claim { block: u32 },
    /// It gets nothing.
    Refused { reason: String },
    /// It cannot go on.
    Failed { reason: String },
    /// All is there: it needs the pager no more.
    Complete,
}

/// Why machine and pager do not come together.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no pager, or no place for one.
    #[error("{attempt} the pager's socket {}", path.display())]
    Socket {
        /// What was attempted.
        attempt: &'static str,
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another pager lives there.
    #[error("another pager listens at {}", path.display())]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// The other side cannot be talked to.
    #[error("{attempt} the other side of the pager's socket")]
    Talk {
        /// What was attempted.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The other side is gone.
    #[error("the other side of the pager's socket is gone")]
    Gone,
    /// It says what makes no sense here.
    #[error("the other side of the pager's socket is no partner: {reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
    /// The pager says no.
    #[error("the pager refuses: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The manifest is another one, or was changed meanwhile.
    #[error("a machine that wants snapshot {expected} brings the files of {found}")]
    OtherSnapshot {
        /// What it asked for.
        expected: SnapshotId,
        /// What was found.
        found: SnapshotId,
    },
    /// Content that is in no file cannot be handed over.
    #[error("the manifest and the packs of the snapshot are not in files of this host")]
    NoFile,
    /// The snapshot is none.
    #[error("open the snapshot that a machine handed over")]
    Open(#[from] OpenError),
    /// A read could take for ever, and all who share the image would wait.
    #[error(
        "the {what} is on a file system that a process serves (FUSE): copy it to another one, or do not \
         share its memory"
    )]
    Fuse {
        /// Which file.
        what: String,
    },
    /// A machine's memory cannot be loaded; it was told.
    #[error("a machine ends: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
    /// There is no image.
    #[error(transparent)]
    Image(#[from] SharedImageError),
    /// The machine's RAM is nowhere.
    #[error("find the machine's memory")]
    Space(#[from] SpaceError),
    /// The host has no thread for it.
    #[error("start a thread for a machine")]
    Thread(#[source] io::Error),
}
