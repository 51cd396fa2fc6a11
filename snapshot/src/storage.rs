//! Everything that writing a snapshot does to the host's file system, behind one small trait: so
//! that tests can let any single effect fail, and see that nothing is lost.

#[cfg(any(test, feature = "test-storage"))]
pub mod faulty;
#[cfg(any(test, feature = "test-storage"))]
pub mod in_memory;
mod memfd;

pub use memfd::MemfdStorage;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What writing a snapshot does to a file system.
pub trait Storage: Send + Sync {
    /// Creates a file that is not there yet.
    ///
    /// # Errors
    /// As the host says; `AlreadyExists` in particular.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// Gives a file another name in the same directory, in place of the file that had it.
    ///
    /// # Errors
    /// As the host says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the host says; `NotFound` in particular.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes what was created, renamed and removed in a directory survive a power cut.
    ///
    /// # Errors
    /// As the host says.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
}

/// A file that is being written from its beginning to its end.
pub trait StorageFile: Send {
    /// Appends all of these bytes.
    ///
    /// # Errors
    /// As the host says; some of the bytes may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the content survive a power cut.
    ///
    /// # Errors
    /// As the host says.
    fn sync(&mut self) -> io::Result<()>;
}

/// The file system of the host. Files are readable for their owner only: memory holds secrets. They
/// are locked until they are closed, so that nobody prunes them.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostStorage;

impl Storage for HostStorage {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        match file.try_lock() {
            // Some network file systems have no locks. Nobody prunes there: that needs one.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Box::new(Written(file))),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// A file that is locked while it is written.
struct Written(File);

impl StorageFile for Written {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// A process that another thread has just forked has the file, too, and with it the lock, until it executes
/// its program.
impl Drop for Written {
    fn drop(&mut self) {
        let _it_may_have_none = self.0.unlock();
    }
}

/// The directory of a file; `.` for a name alone.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
