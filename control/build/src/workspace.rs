//! The directories of builds, which are gone after them, also after those that were killed.
//!
//! A build holds the lock of its directory for as long as it lives; what nobody holds is left over.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const DIRECTORY: &str = "builds";
/// Held while directories are made or looked through.
const LOCK: &str = "lock";

/// A directory for one build. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Workspace {
    directory: TempDir,
    _lock: File,
}

impl Workspace {
    /// Makes one, in the file system of the store.
    pub(crate) fn new(store: &Path) -> io::Result<Self> {
        let all = store.join(DIRECTORY);
        let _one_at_a_time = lock(&all)?;
        let directory = TempDir::new_in(&all)?;
        let own = File::create(directory.path().join(LOCK))?;
        flock(&own, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { directory, _lock: own })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// Removes what builds that were killed have left; how many there were.
pub(crate) fn sweep(store: &Path) -> io::Result<usize> {
    let all = store.join(DIRECTORY);
    let _one_at_a_time = lock(&all)?;
    let mut count = 0;
    for entry in fs::read_dir(&all)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let is_left = match File::open(path.join(LOCK)) {
            Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // It was killed before it had its lock, which it makes while we cannot be here.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if is_left {
            fs::remove_dir_all(&path)?;
            count += 1;
        }
    }
    Ok(count)
}

fn lock(all: &Path) -> io::Result<File> {
    fs::create_dir_all(all)?;
    let lock = File::create(all.join(LOCK))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let store = TempDir::new().unwrap();
        let living = Workspace::new(store.path()).unwrap();
        fs::write(living.join("disk"), "x").unwrap();
        for name in ["killed", "killed-early"] {
            fs::create_dir(store.path().join(DIRECTORY).join(name)).unwrap();
        }
        fs::write(store.path().join(DIRECTORY).join("killed").join(LOCK), "").unwrap();
        assert_eq!(sweep(store.path()).unwrap(), 2);
        assert!(living.join("disk").exists());
        let path = living.path().to_path_buf();
        drop(living);
        assert!(!path.exists());
        assert_eq!(sweep(store.path()).unwrap(), 0);
    }
}
