//! Snapshots of a machine: written while it stands still, and taken up again by another process.
//!
//! ```text
//!  create:  Paused ── state of its parts ──▶ manifest ┐
//!                  └─ RAM, overlays ───────▶ pack     ├─ and beside the manifest a host file
//!  open:    manifest, packs, host file ──▶ Origin ──▶ Machine::restore, with a pager for its RAM and
//!                                                      a layer for each disk below its overlay
//! ```
//! A snapshot knows no path. Where this host keeps what a machine needs (disks, sockets, packs) is
//! in the [`HostFile`], which may be replaced by another configuration, or be lost.

mod attach;
mod create;
mod disks;
mod host_file;
mod origin;
mod own_pages;
mod working_set;

pub use attach::attach;
pub use create::{Still, create};
pub use disks::DiskError;
pub use host_file::{HostFile, HostFileError};
pub use origin::{Origin, OriginError};
pub use working_set::record as record_working_set;

use std::io;
use std::path::PathBuf;

use rotifer_snapshot::pager::service::ServiceError;
use rotifer_snapshot::pager::{StartError, UserfaultError};
use rotifer_snapshot::{NameError, SourceError, WriteError};

/// What the image of guest RAM is called.
const RAM: &str = "ram";

/// Why a snapshot cannot be written or loaded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum SnapshotError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("read the manifest {}", path.display())]
    Manifest { path: PathBuf, source: io::Error },
    #[error("share memory through the host's pager")]
    Service(#[from] ServiceError),
    #[error("find out which pages of guest RAM are there")]
    Resident(#[source] io::Error),
    #[error("read the snapshot that the machine comes from")]
    Source(#[source] SourceError),
    #[error(
        "no working set is recorded: load a snapshot with record_working_set, let it answer, and ask again"
    )]
    NotRecording,
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("read guest RAM")]
    Memory(#[from] vm_memory::GuestMemoryError),
    #[error(transparent)]
    State(#[from] crate::machine_state::StateError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    HostFile(#[from] HostFileError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(
        "a snapshot of type Diff needs one that it is based on, and this machine comes from none; \
         write one of type Full first"
    )]
    NoParent,
    #[error("load memory lazily: {}", userfault_remedy())]
    Userfault(#[from] UserfaultError),
    #[error("load memory lazily")]
    Pager(#[from] StartError),
}

impl SnapshotError {
    /// Whether another request would help, on this host.
    pub fn is_users_mistake(&self) -> bool {
        matches!(
            self,
            Self::Origin(_)
                | Self::HostFile(_)
                | Self::NoParent
                | Self::NotRecording
                | Self::State(_)
                | Self::Service(_)
        )
    }
}

fn userfault_remedy() -> &'static str {
    "this user may need access to /dev/userfaultfd, or vm.unprivileged_userfaultfd = 1"
}
