//! Blobs: files that are written once, whole, and then only read or removed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use s3s::checksum::ChecksumHasher;
use s3s::dto::{Checksum, StreamingBlob};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::time::timeout;
use uuid::Uuid;

use crate::store::StoreError;

/// What is read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// What is read, and how long, of a body that is refused already: who sends it does not hear why before all is
/// sent. It is more than a part of an upload usually has.
const LISTEN_BYTES_MAX: usize = 64 << 20;
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A file of this name, of this length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    pub id: String,
    pub size: u64,
}

/// The directory of the blobs.
#[derive(Clone, Debug)]
pub struct Blobs {
    directory: PathBuf,
    used_bytes: Arc<AtomicU64>,
    limit_bytes: u64,
}

/// Why a blob cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BlobError {
    #[error("cannot {attempt} {path:?}")]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("all blobs together may have {limit} bytes")]
    Quota { limit: u64 },
    #[error("cannot read what is to be stored")]
    Body { source: Box<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    Catalog(StoreError),
}

impl BlobError {
    /// Whether room on the disk is what is missing.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::File { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl Blobs {
    pub fn open(directory: &Path, limit_bytes: u64) -> Result<Self, BlobError> {
        fs::create_dir_all(directory).map_err(at("create", directory))?;
        let used_bytes = Arc::default();
        Ok(Self { directory: directory.into(), used_bytes, limit_bytes })
    }

    /// Removes the files that are not in `used`, and counts those that are.
    pub fn remove_all_but(&self, used: &HashSet<String>) -> Result<(), BlobError> {
        let failed = || at("list", &self.directory);
        for entry in fs::read_dir(&self.directory).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let path = entry.path();
            if entry.file_name().to_str().is_some_and(|name| used.contains(name)) {
                let metadata = entry.metadata().map_err(at("look at", &path))?;
                self.used_bytes.fetch_add(metadata.len(), Ordering::Relaxed);
            } else {
                fs::remove_file(&path).map_err(at("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Writes a new blob. It is on the disk when this returns; what fails leaves nothing behind.
    pub async fn write(
        &self,
        body: Option<StreamingBlob>,
        mut hasher: ChecksumHasher,
    ) -> Result<(Blob, Checksum), BlobError> {
        let id = Uuid::new_v4().simple().to_string();
        let path = self.directory.join(&id);
        let mut written = Written { blobs: self, path: &path, size: 0, is_kept: false };
        let mut file = tokio::fs::File::create_new(&path).await.map_err(at("create", &path))?;
        if let Some(mut body) = body {
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|source| BlobError::Body { source })?;
                let written = match written.reserve(chunk.len() as u64) {
                    Ok(()) => file.write_all(&chunk).await.map_err(at("write", &path)),
                    Err(error) => Err(error),
                };
                if let Err(error) = written {
                    let _too_long = timeout(LISTEN_TIMEOUT, listen_on(&mut body)).await;
                    return Err(error);
                }
                hasher.update(&chunk);
            }
        }
        file.flush().await.map_err(at("write", &path))?;
        file.sync_all().await.map_err(at("sync", &path))?;
        let directory = tokio::fs::File::open(&self.directory).await;
        let directory = directory.map_err(at("open", &self.directory))?;
        directory.sync_all().await.map_err(at("sync", &self.directory))?;
        written.is_kept = true;
        Ok((Blob { id, size: written.size }, hasher.finalize()))
    }

    /// Removes a blob that nothing refers to any more. If it cannot be, the next start tries again.
    pub fn remove(&self, blob: &Blob) {
        let path = self.directory.join(&blob.id);
        match fs::remove_file(&path) {
            Ok(()) => {
                self.used_bytes.fetch_sub(blob.size, Ordering::Relaxed);
            }
            Err(error) => tracing::warn!("cannot remove {path:?}: {error}"),
        }
    }

    /// `length` bytes from `start` on of these blobs, one after the other. A blob that is removed
    /// before the reader comes to it breaks the stream; it never shortens it.
    pub fn read(
        &self,
        blobs: Vec<Blob>,
        start: u64,
        length: u64,
    ) -> impl Stream<Item = Result<Bytes, BlobError>> + Send + 'static {
        let reading = Reading {
            directory: self.directory.clone(),
            blobs: blobs.into_iter(),
            file: None,
            skip: start,
            length,
        };
        stream::try_unfold(reading, |mut reading| async move {
            let chunk = reading.next().await?;
            Ok(chunk.map(|chunk| (chunk, reading)))
        })
    }
}

/// Where a reader is.
struct Reading {
    directory: PathBuf,
    /// Those not begun.
    blobs: std::vec::IntoIter<Blob>,
    /// The one that is being read.
    file: Option<(tokio::fs::File, PathBuf)>,
    /// Bytes to pass over before the first.
    skip: u64,
    /// Bytes still to come.
    length: u64,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        while self.length > 0 {
            let Some((mut file, path)) = self.file.take() else {
                if !self.open_next().await? {
                    break;
                }
                continue;
            };
            let size = READ_BYTES.min(usize::try_from(self.length).unwrap_or(READ_BYTES));
            let mut chunk = vec![0; size];
            let count = file.read(&mut chunk).await.map_err(at("read", &path))?;
            if count > 0 {
                chunk.truncate(count);
                self.length -= count as u64;
                self.file = Some((file, path));
                return Ok(Some(chunk.into()));
            }
        }
        match self.length {
            0 => Ok(None),
            _ => {
                let source = io::ErrorKind::UnexpectedEof.into();
                let path = self.directory.clone();
                Err(BlobError::File { attempt: "read all that should be in", path, source })
            }
        }
    }

    /// False if there is none.
    async fn open_next(&mut self) -> Result<bool, BlobError> {
        for blob in self.blobs.by_ref() {
            if self.skip >= blob.size {
                self.skip -= blob.size;
                continue;
            }
            let path = self.directory.join(&blob.id);
            let mut file = tokio::fs::File::open(&path).await.map_err(at("open", &path))?;
            let place = io::SeekFrom::Start(std::mem::take(&mut self.skip));
            file.seek(place).await.map_err(at("seek in", &path))?;
            self.file = Some((file, path));
            return Ok(true);
        }
        Ok(false)
    }
}

/// Reads a body to its end for nothing.
async fn listen_on(body: &mut StreamingBlob) {
    let mut left = LISTEN_BYTES_MAX;
    while let Some(Ok(chunk)) = body.next().await {
        left = left.saturating_sub(chunk.len());
        if left == 0 {
            return;
        }
    }
}

fn at(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.into();
    move |source| BlobError::File { attempt, path, source }
}

/// A blob in the making: removed unless it is kept.
struct Written<'a> {
    blobs: &'a Blobs,
    path: &'a Path,
    size: u64,
    is_kept: bool,
}

impl Written<'_> {
    fn reserve(&mut self, bytes: u64) -> Result<(), BlobError> {
        let limit = self.blobs.limit_bytes;
        let before = self.blobs.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.size += bytes;
        if before.saturating_add(bytes) > limit {
            return Err(BlobError::Quota { limit });
        }
        Ok(())
    }
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.blobs.used_bytes.fetch_sub(self.size, Ordering::Relaxed);
            if let Err(error) = fs::remove_file(self.path) {
                tracing::debug!("nothing to remove at {:?}: {error}", self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    fn body(text: &'static str) -> Option<StreamingBlob> {
        Some(StreamingBlob::from_bytes(Bytes::from_static(text.as_bytes())))
    }

    async fn text(blobs: &Blobs, list: &[Blob], start: u64, length: u64) -> String {
        let chunks: Vec<Bytes> =
            blobs.read(list.to_vec(), start, length).try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn a_range_crosses_blobs() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path(), 100).unwrap();
        let mut list = Vec::new();
        for part in ["abc", "", "defg", "h"] {
            list.push(blobs.write(body(part), ChecksumHasher::default()).await.unwrap().0);
        }
        assert_eq!(text(&blobs, &list, 0, 8).await, "abcdefgh");
        assert_eq!(text(&blobs, &list, 2, 3).await, "cde");
        assert_eq!(text(&blobs, &list, 3, 4).await, "defg");
        assert_eq!(text(&blobs, &list, 7, 1).await, "h");
        assert_eq!(text(&blobs, &list, 5, 0).await, "");
        blobs.remove(&list[2]);
        let broken: Result<Vec<Bytes>, _> = blobs.read(list, 0, 8).try_collect().await;
        broken.unwrap_err();
    }

    #[tokio::test]
    async fn what_is_refused_leaves_no_file_and_takes_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path(), 5).unwrap();
        let write = |text| blobs.write(body(text), ChecksumHasher::default());
        let (kept, _) = write("abc").await.unwrap();
        assert!(matches!(write("def").await, Err(BlobError::Quota { limit: 5 })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        write("de").await.unwrap();
        blobs.remove(&kept);
        write("fgh").await.unwrap();
    }

    #[tokio::test]
    async fn a_start_removes_what_nothing_refers_to() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(directory.path(), 5).unwrap();
        let (kept, _) = blobs.write(body("abc"), ChecksumHasher::default()).await.unwrap();
        blobs.write(body("xy"), ChecksumHasher::default()).await.unwrap();
        let again = Blobs::open(directory.path(), 5).unwrap();
        again.remove_all_but(&HashSet::from([kept.id.clone()])).unwrap();
        assert_eq!(text(&again, std::slice::from_ref(&kept), 0, 3).await, "abc");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        again.write(body("de"), ChecksumHasher::default()).await.unwrap();
    }
}
