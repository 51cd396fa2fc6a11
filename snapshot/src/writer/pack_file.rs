//! A pack that is being written: large writes, and gone again unless it is committed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::id::PackId;
use crate::pack::encode_header;
use crate::storage::{Storage, StorageFile, directory_of};

use super::error::{WriteError, storage};

/// Bytes that are written at once.
const WRITE_BYTES: usize = 1 << 20;

pub(super) struct PackFile {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    file: Box<dyn StorageFile>,
    buffer: Vec<u8>,
    /// Bytes that are in the file or in the buffer.
    bytes: u64,
    failed: bool,
    kept: bool,
}

impl PackFile {
    pub(super) fn create(
        host: Arc<dyn Storage>,
        path: &Path,
        id: PackId,
    ) -> Result<Self, WriteError> {
        let file = host.create(path).map_err(storage("create the pack", path))?;
        let mut pack = Self {
            storage: host,
            path: path.into(),
            file,
            buffer: Vec::with_capacity(WRITE_BYTES.saturating_mul(2)),
            bytes: 0,
            failed: false,
            kept: false,
        };
        pack.append(&encode_header(id))?;
        Ok(pack)
    }

    /// Appends bytes; the result says where they begin.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u64, WriteError> {
        let offset = self.bytes;
        self.buffer.extend_from_slice(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.buffer.len() >= WRITE_BYTES {
            self.flush()?;
        }
        Ok(offset)
    }

    /// Makes the pack and its name survive a power cut; the result is its length.
    pub(super) fn sync(&mut self) -> Result<u64, WriteError> {
        self.flush()?;
        self.file.sync().map_err(storage("sync the pack", &self.path))?;
        let directory = directory_of(&self.path);
        self.storage
            .sync_directory(directory)
            .map_err(storage("sync the directory of packs", directory))?;
        Ok(self.bytes)
    }

    /// From now on the pack belongs to a snapshot.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        if self.failed {
            return Err(WriteError::Failed { path: self.path.clone() });
        }
        // Forgotten again when the write has succeeded.
        self.failed = true;
        self.file.append(&self.buffer).map_err(storage("write the pack", &self.path))?;
        self.buffer.clear();
        self.failed = false;
        Ok(())
    }
}

impl Drop for PackFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody refers to the file: whoever cleans up the directory may remove it as well.
            let _ = self.storage.remove(&self.path);
        }
    }
}
