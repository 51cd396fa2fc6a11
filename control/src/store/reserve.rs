//! Room that is kept for changes which give more of it back: without, a disk that the daemon itself has filled could
//! not be cleared through its API.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Some hundred pages of the database's log.
const RESERVE_BYTES: u64 = 1 << 20;
/// The reserve is made when the disk has so much.
const PLENTY_BYTES: u64 = 4 * RESERVE_BYTES;

/// A file that holds nothing but its place.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Beside a database.
    pub fn beside(database: &Path) -> Self {
        Self { path: database.with_extension("reserve") }
    }

    /// Makes it, if it is missing and there is plenty of room.
    pub fn make(&self) {
        let is_missing = !self.path.exists();
        if is_missing && self.free_bytes().is_ok_and(|free| free >= PLENTY_BYTES) {
            let make = || {
                let file = File::create(&self.path)?;
                Ok::<_, io::Error>(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
            };
            if let Err(error) = make() {
                tracing::debug!("no room is reserved: {error}");
            }
        }
    }

    /// Gives it up, if there is hardly any other room.
    pub fn give_up(&self) {
        if self.free_bytes().is_ok_and(|free| free < RESERVE_BYTES) && self.path.exists() {
            tracing::warn!("the disk is full: what was reserved is used to give room back");
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::warn!("cannot give up {:?}: {error}", self.path);
            }
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let status = statvfs(directory)?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }
}
