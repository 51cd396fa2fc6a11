//! Storage that is memory, for snapshots that live no longer than processes which have them open.
//!
//! Every file is a memfd. What its writer has taken over nobody can change any more, the writer
//! included, and other processes open it as `/proc/PID/fd/N`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};

use super::{Storage, StorageFile};

/// The kernel's bound on the name of a memfd.
const NAME_BYTES_MAX: usize = 249;
/// Nothing of a file changes any more, and neither does this.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Storage that is memory. Its files are gone with it, but for those that were taken.
#[derive(Debug, Clone)]
pub struct MemfdStorage {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<PathBuf, Arc<File>>,
    /// How much may be written yet.
    left_bytes: u64,
}

struct MemfdFile {
    state: Arc<Mutex<State>>,
    file: Arc<File>,
}

impl MemfdStorage {
    /// With room for so many bytes; a file that wants more is told that the storage is full.
    pub fn new(bytes_max: u64) -> Self {
        let state = State { files: BTreeMap::new(), left_bytes: bytes_max };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Takes a file that is finished out of the storage, and seals it.
    ///
    /// # Errors
    /// There is no file of this name, or the kernel refuses.
    pub fn take(&self, path: &Path) -> io::Result<Arc<File>> {
        let file = lock(&self.state).files.remove(path).ok_or(io::ErrorKind::NotFound)?;
        fcntl_add_seals(&*file, SEALS)?;
        Ok(file)
    }
}

impl Storage for MemfdStorage {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut state = lock(&self.state);
        if state.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // What the kernel shows the file as; it means nothing.
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let name = name.get(..NAME_BYTES_MAX).unwrap_or(name);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(name, flags)?);
        // Memory holds secrets.
        fchmod(&file, Mode::RUSR | Mode::WUSR)?;
        let file = Arc::new(file);
        state.files.insert(path.into(), Arc::clone(&file));
        Ok(Box::new(MemfdFile { state: Arc::clone(&self.state), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        lock(&self.state).files.remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    /// Nothing of it survives a power cut.
    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl StorageFile for MemfdFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        let left = state.left_bytes.checked_sub(bytes.len() as u64);
        state.left_bytes = left.ok_or(io::ErrorKind::StorageFull)?;
        (&*self.file).write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_file_that_was_taken_is_read_through_its_descriptor_and_changed_by_nobody() {
        let storage = MemfdStorage::new(100);
        let (path, temporary) = (Path::new("vm.snap"), Path::new(".vm.snap.new"));
        storage.create(temporary).unwrap().append(b"content").unwrap();
        assert_eq!(storage.take(path).unwrap_err().kind(), io::ErrorKind::NotFound);
        storage.rename(temporary, path).unwrap();
        let file = storage.take(path).unwrap();
        let place = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(std::fs::read(&place).unwrap(), b"content");
        let refused = (&*file).write_all(b"more").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(file.set_len(0).is_err() && file.set_len(100).is_err());
        let opened = File::options().write(true).open(&place).unwrap();
        assert!((&opened).write_all(b"other").is_err(), "whoever opens it again");
        assert_eq!(storage.remove(path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let storage = MemfdStorage::new(10);
        let mut one = storage.create(Path::new("one")).unwrap();
        let taken = storage.create(Path::new("one")).err().unwrap();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        one.append(&[1; 6]).unwrap();
        let mut two = storage.create(Path::new("two")).unwrap();
        let full = two.append(&[2; 5]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        two.append(&[2; 4]).unwrap();
    }
}
