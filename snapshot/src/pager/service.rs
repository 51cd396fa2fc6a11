//! The host's pager process: it keeps the images that machines share, is the only one that can write
//! them, and serves the faults of all.
//!
//! ```text
//!  a machine's process                                 the pager's process
//!  connect, Open ───manifest, packs (descriptors)────▶ finds or makes the image
//!          ◀──────────────image (descriptor)── Opened
//!  maps it, registers what is missing
//!  Serve ─────────userfaultfd, where RAM lies────────▶ loads, verifies, unregisters block by block
//!          ◀───────────────── Claim, Complete, Failed
//! ```
//! The machine keeps its userfaultfd open and ends itself when the pager is gone: a fault may wait,
//! but never reads a page of zeroes. It hands over descriptors and no paths, so the pager needs no
//! right to open files, and opens none that the machine could not.

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
const VERSION: u32 = 1;
/// Runs of a working set that are told. What comes later is no head start.
const WORKING_SET_RUNS_MAX: usize = 4096;
/// Blocks that are not shared and are told: 4 GiB. Others are shared.
const WRITTEN_BLOCKS_MAX: usize = 2048;

/// What a machine asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// The image of a snapshot. Descriptors: the manifest, and the packs.
    Open { version: u32 },
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
    /// Descriptor: the image.
    Opened { snapshot: [u8; 32], image_bytes: u64 },
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
    /// The manifest was replaced meanwhile.
    #[error("the pager was handed snapshot {found} instead of {expected}: it was replaced")]
    Replaced {
        /// What was opened first.
        expected: SnapshotId,
        /// What was found.
        found: SnapshotId,
    },
    /// Content that is in no file cannot be handed over.
    #[error("the packs of the snapshot are not in files of this host")]
    NoFile,
    /// The snapshot is none.
    #[error("open the snapshot that a machine handed over")]
    Open(#[from] OpenError),
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
