//! The disk of `RUN --mount=type=cache`, which outlives builds.

use crate::cancel::Cancel;
use crate::plan::{Action, Step};
use rotifer_build_worker::protocol::MountKind;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Its size. It is sparse.
const CACHES_BYTES: u64 = 8 << 30;
/// That of the disk which a build without such mounts has in its place.
const EMPTY_BYTES: u64 = 1 << 20;
/// How often a build that waits for another one's looks whether it was canceled.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The disk, which one build has at a time; an empty one of its own for a build that mounts none.
pub(crate) struct Caches {
    pub(crate) path: PathBuf,
    _lock: Option<File>,
}

impl Caches {
    /// Waits until no other build has it.
    pub(crate) fn open(
        store: &Path,
        work: &Path,
        steps: &[Step],
        cancel: &Cancel,
    ) -> io::Result<Self> {
        if !steps.iter().any(mounts_cache) {
            let path = work.join("no-caches");
            File::create(&path)?.set_len(EMPTY_BYTES)?;
            return Ok(Self { path, _lock: None });
        }
        let path = store.join("caches.ext4");
        let lock = File::create(store.join("caches.lock"))?;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK || cancel.why().is_some() {
                return Err(error.into());
            }
            thread::sleep(LOOK_INTERVAL);
        }
        let disk = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        if disk.metadata()?.len() == 0 {
            disk.set_len(CACHES_BYTES)?;
        }
        Ok(Self { path, _lock: Some(lock) })
    }
}

fn mounts_cache(step: &Step) -> bool {
    let Action::Run(run) = &step.action else { return false };
    run.mounts.iter().any(|it| matches!(it.kind, MountKind::Cache { .. }))
}
