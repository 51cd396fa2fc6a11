//! Snapshots that are held in memory, for children of a machine that goes on.
//!
//! ```text
//!  Taken ─▶ pack, manifest, host file: sealed memfds ◀─ /proc/PID/fd/N ── --restore of a child
//!  packs of what the machine comes from: open files  ◀─ /proc/PID/fd/N ───────┘
//! ```
//! A fork is there until it is let go of, or this process ends. Children that have it open by then
//! keep it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rotifer_snapshot::{MemfdStorage, Snapshot};
use serde::Serialize;

use super::create::{begin, describe, options};
use super::host_file::path_beside;
use super::{HostFile, Origin, SnapshotError, Taken};
use crate::config::Config;

/// So many forks of a machine may be held.
pub const FORKS_MAX: usize = 16;
/// What they may have together: as much as the largest machine.
pub const FORKS_BYTES_MAX: u64 = 32 << 30;
/// What the files of a fork are called; nobody sees it but in lists of descriptors.
const MANIFEST: &str = "rotifer-fork";
const PACK: &str = "rotifer-fork.pack";

/// The forks that are held.
#[derive(Debug, Default)]
pub struct Forks {
    held: Vec<Fork>,
    last_id: u64,
}

#[derive(Debug)]
struct Fork {
    description: ForkDescription,
    /// Open for as long as the fork is held, so that their paths lead somewhere.
    _files: [Arc<File>; 3],
    _origin: Option<Snapshot>,
}

/// Why there is no such fork, or none more.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ForkError {
    #[error("{FORKS_MAX} forks are held: let go of one with DELETE /fork/ID")]
    TooMany,
    #[error(
        "the forks that are held have {held_mib} MiB, and may have {} together with {more_mib} more: \
         let go of some with DELETE /fork/ID", FORKS_BYTES_MAX >> 20
    )]
    TooLarge { held_mib: u64, more_mib: u64 },
    #[error("there is no fork {id:?}; GET /forks lists those that are held")]
    Absent { id: String },
}

/// What a client is told of a fork.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForkDescription {
    /// Its name within this process.
    pub fork_id: String,
    /// Its manifest, for `--restore` or `/snapshot/load`.
    pub snapshot_path: PathBuf,
    /// Its host file, for `--host-file` or `/snapshot/load`.
    pub host_file_path: PathBuf,
    /// How much memory it takes.
    pub held_bytes: u64,
    /// How long the machine stood still.
    pub pause_us: u64,
}

impl Forks {
    /// Whether one more of so many bytes may be held.
    ///
    /// # Errors
    /// See [`ForkError`].
    pub fn check(&self, bytes: u64) -> Result<(), ForkError> {
        let held = self.held_bytes();
        if self.held.len() >= FORKS_MAX {
            return Err(ForkError::TooMany);
        }
        if held + bytes > FORKS_BYTES_MAX {
            return Err(ForkError::TooLarge { held_mib: held >> 20, more_mib: bytes >> 20 });
        }
        Ok(())
    }

    /// Holds what was taken of a machine that comes from `origin`, as one more fork.
    ///
    /// # Errors
    /// See [`SnapshotError`]; nothing more is held then.
    pub fn hold(
        &mut self,
        taken: Taken<'_>,
        origin: Option<&Origin>,
        config: &Config,
        pause: Duration,
    ) -> Result<&ForkDescription, SnapshotError> {
        self.check(taken.copied_bytes() as u64)?;
        let storage = MemfdStorage::new(FORKS_BYTES_MAX.saturating_sub(self.held_bytes()));
        let (manifest, pack) = (Path::new(MANIFEST), Path::new(PACK));
        let (options, parent) = (options(origin)?, origin.map(|origin| &origin.snapshot));
        let shared = Arc::new(storage.clone());
        let writer = begin(&taken, shared, pack, options, origin, parent)?;
        let committed = writer.commit(manifest, describe(taken)?)?;
        let take = |path: &Path| storage.take(path).map_err(SnapshotError::Fork);
        let pack = take(pack)?;

        let mut packs = BTreeMap::from([(options.pack.to_string(), path_of(&pack))]);
        for pack in parent.into_iter().flat_map(Snapshot::packs) {
            if let Some(file) = pack.descriptor() {
                packs.insert(pack.id.to_string(), path_of(&file));
            }
        }
        HostFile::of(config, packs).write(&storage, manifest)?;
        let files = [take(manifest)?, take(&path_beside(manifest))?, pack];
        let mut held_bytes = 0;
        for file in &files {
            held_bytes += file.metadata().map_err(SnapshotError::Fork)?.len();
        }
        self.last_id += 1;
        let description = ForkDescription {
            fork_id: self.last_id.to_string(),
            snapshot_path: path_of(&files[0]),
            host_file_path: path_of(&files[1]),
            held_bytes,
            pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
        };
        tracing::info!(fork = description.fork_id, snapshot = %committed.id, held_bytes, "a fork is held");
        self.held.push(Fork { description, _files: files, _origin: parent.cloned() });
        Ok(&self.held.last().expect("one was just pushed").description)
    }

    /// Those that are held, the oldest first.
    pub fn list(&self) -> impl Iterator<Item = &ForkDescription> {
        self.held.iter().map(|fork| &fork.description)
    }

    /// Holds this one no longer.
    ///
    /// # Errors
    /// [`ForkError::Absent`].
    pub fn let_go(&mut self, id: &str) -> Result<(), ForkError> {
        let found = self.held.iter().position(|fork| fork.description.fork_id == id);
        let index = found.ok_or_else(|| ForkError::Absent { id: id.into() })?;
        self.held.remove(index);
        tracing::info!(fork = id, "a fork is let go of");
        Ok(())
    }

    fn held_bytes(&self) -> u64 {
        self.list().map(|fork| fork.held_bytes).sum()
    }
}

/// Where other processes find a file that this one has open.
fn path_of(file: &impl AsRawFd) -> PathBuf {
    let fd: RawFd = file.as_raw_fd();
    format!("/proc/{}/fd/{fd}", std::process::id()).into()
}

#[cfg(test)]
mod tests;
