//! Snapshots of a machine: taken while it stands still, written then or after it goes on, and taken
//! up again by another process.
//!
//! ```text
//!  take:    Paused ── state of its parts, pages of its own RAM and overlays ──▶ Taken
//!  create:  Taken ── state ──▶ manifest ┐
//!                 └─ pages ──▶ pack     ├─ and beside the manifest a host file
//!  fork:    the same three files, held in memory
//!  open:    manifest, packs, host file ──▶ Origin ──▶ Machine::restore, with a pager for its RAM and
//!                                                      a layer for each disk below its overlay
//! ```
//! A snapshot knows no path. Where this host keeps what a machine needs (disks, sockets, packs) is
//! in the [`HostFile`], which may be replaced by another configuration, or be lost.

mod attach;
mod create;
mod disks;
mod forks;
mod host_file;
mod origin;
mod own_pages;
mod room;
mod take;
mod working_set;

pub use attach::attach;
pub use create::create;
pub use disks::DiskError;
pub use forks::{ForkDescription, ForkError, Forks};
pub use host_file::{HostFile, HostFileError};
pub use origin::{Origin, OriginError};
pub use room::Room;
pub use take::{Still, Taken};
pub use working_set::record as record_working_set;

use std::collections::TryReserveError;
use std::io;

use rotifer_snapshot::pager::service::ServiceError;
use rotifer_snapshot::pager::{LoadError, StartError, UserfaultError};
use rotifer_snapshot::{NameError, SourceError, WriteError};

/// What the image of guest RAM is called.
const RAM: &str = "ram";

/// Why a snapshot cannot be written or loaded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum SnapshotError {
    #[error(transparent)]
    Write(#[from] WriteError),
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
    #[error(
        "the snapshot that the machine comes from is a fork, which is held in memory: write a \
         snapshot of the machine first"
    )]
    NotDurable,
    #[error("look at the packs of the snapshot that the machine comes from")]
    Durable(#[source] io::Error),
    #[error("find out how much memory the host has available")]
    Available(#[source] io::Error),
    #[error(
        "copy {wanted_mib} MiB of guest memory: the host has {available_mib} MiB available, of which \
         {left_mib} have to be left; pause the machine and write a snapshot without \"live\", which \
         copies nothing"
    )]
    NoRoom { wanted_mib: u64, left_mib: u64, available_mib: u64 },
    #[error("make room for a copy of {bytes} bytes of guest memory")]
    Room { bytes: usize, source: TryReserveError },
    #[error("hold a fork in memory")]
    Fork(#[source] io::Error),
    #[error(transparent)]
    Forks(#[from] ForkError),
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
    #[error("load all memory before the machine runs")]
    Eagerly(#[from] LoadError),
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
                | Self::NotDurable
                | Self::Forks(_)
                | Self::State(_)
                | Self::Service(_)
        )
    }
}

fn userfault_remedy() -> &'static str {
    "this user may need access to /dev/userfaultfd, or vm.unprivileged_userfaultfd = 1"
}
