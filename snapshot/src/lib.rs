//! What a frozen machine is.
//!
//! * [`Stateful`]: the contract of every part of a machine that has guest-visible state.
//! * [`Writer`] writes a snapshot, [`Snapshot`] opens one, and [`PageSource`] is how memory comes
//!   out of it again, page by page and verified.
//! * [`pager`] loads a machine's memory from there, lazily.
//! * `docs/snapshot-format.md` describes the files.
//!
//! Every byte that is read is taken for hostile: nothing here panics, loops, recurses or allocates
//! because a number in a file says so, but within the limits of [`layout`].

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod compact;
mod cpu;
mod diff;
mod disk_base;
mod id;
mod image_reader;
mod inspect;
pub mod layout;
pub mod manifest;
mod memory_source;
mod name;
mod pack;
mod page_set;
pub mod pager;
mod prune;
mod record;
mod report;
mod section;
mod snapshot;
mod source;
pub mod storage;
mod verify;
mod wire;
mod writer;

pub use compact::{Compaction, compact};
pub use cpu::{CpuFeature, CpuMismatch, CpuRule, compare};
pub use diff::{BlockDifference, Change, Difference, ImageDifference, SectionDifference, diff};
pub use disk_base::DiskBase;
pub use id::{Digest, PackId, SnapshotId};
pub use image_reader::ImageReader;
pub use inspect::{ImageInspection, Inspection, LayerInspection, SectionInspection};
pub use layout::{BlockIndex, ChunkIndex, PageIndex};
pub use manifest::{
    Architecture, Image, ImageKind, MachineSection, Manifest, ManifestError, MemoryRegion, PageRun,
};
pub use memory_source::MemorySource;
pub use name::{Name, NameError};
pub use pack::{Pack, PackError, PackSearch, ReadAt};
pub use page_set::PageSet;
pub use prune::{PruneError, Pruned, prune};
pub use record::{Codec, Piece, RecordError};
pub use report::report;
pub use section::{LoadError, Section, Stateful, Tag};
pub use snapshot::{OpenError, Snapshot};
pub use source::{Fault, PageSource, Place, SourceError};
pub use storage::{HostStorage, MemfdStorage, Storage};
pub use verify::{FAULTS_LISTED_MAX, Progress, Verification, verify};
pub use wire::Truncated;
pub use writer::{
    Committed, Compare, Description, Options, Staging, Statistics, WriteError, Writer,
    commit_manifest,
};

#[cfg(test)]
mod tests;
