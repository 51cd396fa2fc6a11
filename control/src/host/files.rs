//! Directories and small files, off the threads that serve.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::machines::MachineError;

/// The unit of `st_blocks` (stat(3type)).
const BLOCK_BYTES: u64 = 512;

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MachineError {
    let path: PathBuf = path.into();
    move |source| MachineError::File { attempt, path, source }
}

/// Waits for work that blocks.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Removes a directory and all that is in it; one that is not there is as good.
pub async fn remove(path: &Path) -> Result<(), MachineError> {
    let gone = path.to_path_buf();
    let removed = blocking(move || fs::remove_dir_all(gone)).await;
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed("remove", path)),
    }
}

/// An empty directory, for the daemon's user alone.
pub async fn empty(path: &Path) -> Result<(), MachineError> {
    remove(path).await?;
    let mut builder = tokio::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).await.map_err(failed("create", path))
}

/// Removes a file; one that is not there is as good.
pub fn remove_file(path: &Path) -> Result<(), MachineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed("remove", path)),
    }
}

/// What is in a directory.
pub fn list(path: &Path) -> Result<Vec<PathBuf>, MachineError> {
    let entries = fs::read_dir(path).map_err(failed("list", path))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<io::Result<_>>().map_err(failed("list", path))
}

/// What the files of a directory take on the disk, holes left out. It is missing in records of usage if the disk
/// does not say.
pub fn stored_bytes(directory: &Path) -> Option<u64> {
    let blocks = |path: PathBuf| {
        let found = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        Ok(found.blocks() * BLOCK_BYTES)
    };
    let bytes: Result<u64, MachineError> =
        list(directory).and_then(|paths| paths.into_iter().map(blocks).sum());
    let warn = |error: &MachineError| tracing::warn!("usage lacks: {}", crate::report(error));
    bytes.inspect_err(warn).ok()
}

/// Has all of a directory on the disk, and then gives it its name.
pub async fn commit(new: PathBuf, name: PathBuf) -> Result<(), MachineError> {
    blocking(move || {
        for path in list(&new)? {
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path))?;
        }
        sync(&new)?;
        fs::rename(&new, &name).map_err(failed("name", &name))?;
        name.parent().map_or(Ok(()), sync)
    })
    .await
}

/// What was named or removed in a directory stays so.
pub fn sync(directory: &Path) -> Result<(), MachineError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", directory))
}

/// Reads a small file of ours as JSON.
pub fn read_json(path: &Path) -> Result<serde_json::Value, MachineError> {
    let bytes = fs::read(path).map_err(failed("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| failed("understand", path)(error.into()))
}

/// Writes a small file that may be lost.
pub fn write(path: &Path, text: &str) -> Result<(), MachineError> {
    fs::write(path, text).map_err(failed("write", path))
}

/// Copies a small file that may be lost.
pub fn copy(from: &Path, to: &Path) -> Result<(), MachineError> {
    fs::copy(from, to).map(drop).map_err(failed("copy", from))
}
