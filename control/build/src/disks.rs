//! Disk files on the host: copies that stay sparse, and the cache of steps' results.

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const COPY_BYTES: usize = 1 << 20;
/// What `st_blocks` counts in.
pub(crate) const STAT_BLOCK_BYTES: u64 = 512;

/// A disk's file could not be handled.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} {}", path.display())]
pub struct DiskError {
    attempt: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl DiskError {
    /// Whether the host's disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_path_buf();
    move |source| DiskError { attempt, path, source }
}

/// Makes a sparse file of zeroes.
///
/// # Errors
/// What the host says.
pub fn make_empty(path: &Path, bytes: u64) -> Result<(), DiskError> {
    let file = File::create(path).map_err(failed("make", path))?;
    file.set_len(bytes).map_err(failed("size", path))
}

/// Makes `to` a copy of `from`: by reference where the file system can, else of what is not a hole. A
/// copy that is whole appears under its name at once; it grows beside it.
///
/// # Errors
/// What the host says.
pub fn copy(from: &Path, to: &Path) -> Result<(), DiskError> {
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let result = copy_content(from, &partial)
        .and_then(|()| fs::rename(&partial, to).map_err(failed("name", to)));
    if result.is_err() {
        // What there is of it is of no use.
        let _ = fs::remove_file(&partial);
    }
    result
}

fn copy_content(from: &Path, to: &Path) -> Result<(), DiskError> {
    let mut source = File::open(from).map_err(failed("open", from))?;
    let mut sink = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(to)
        .map_err(failed("make", to))?;
    if ioctl_ficlone(&sink, &source).is_err() {
        copy_data(&mut source, &mut sink).map_err(failed("copy", from))?;
    }
    sink.sync_all().map_err(failed("make durable", to))
}

fn copy_data(source: &mut File, sink: &mut File) -> io::Result<()> {
    let length = source.metadata()?.len();
    sink.set_len(length)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < length {
        let data = match seek(&*source, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break, // only a hole is left
            Err(error) => return Err(error.into()),
        };
        let end = seek(&*source, SeekFrom::Hole(data))?;
        source.seek(io::SeekFrom::Start(data))?;
        sink.seek(io::SeekFrom::Start(data))?;
        at = data;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let room = buffer.get_mut(..wanted).unwrap_or_default();
            source.read_exact(room)?;
            // Data of zeroes, as a guest leaves where it deleted, becomes a hole.
            if room.iter().any(|&byte| byte != 0) {
                sink.write_all(room)?;
            } else {
                sink.seek_relative(i64::try_from(wanted).unwrap_or(0))?;
            }
            at += wanted as u64;
        }
    }
    Ok(())
}

/// Results of steps, by their keys; the least recently used go first.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
    limit_bytes: u64,
}

impl Cache {
    /// Opens the cache, or makes it.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(directory: PathBuf, limit_bytes: u64) -> Result<Self, DiskError> {
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        Ok(Self { directory, limit_bytes })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(format!("{key}.ext4"))
    }

    /// Gives a result another name, at `to` in the same file system, where no eviction finds it; whether
    /// there was one.
    ///
    /// # Errors
    /// What the host says.
    pub fn take(&self, key: &str, to: &Path) -> Result<bool, DiskError> {
        let path = self.path(key);
        match fs::hard_link(&path, to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("link", &path)(error)),
        }
        let file = File::open(&path).map_err(failed("open", &path))?;
        let now = FileTimes::new().set_modified(SystemTime::now());
        file.set_times(now).map_err(failed("mark", &path))?;
        Ok(true)
    }

    /// Whether there is a result.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.path(key).exists()
    }

    /// Keeps a disk, which is moved from where it is, as the result of a step, and makes room for it.
    ///
    /// # Errors
    /// What the host says.
    pub fn put(&self, key: &str, disk: &Path) -> Result<(), DiskError> {
        fs::rename(disk, self.path(key)).map_err(failed("keep", disk))?;
        self.evict(key)
    }

    /// Removes old results until the limit is kept; that of `newest` stays.
    fn evict(&self, newest: &str) -> Result<(), DiskError> {
        let mut files = Vec::new();
        let list = fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        for entry in list.flatten() {
            let (path, metadata) = (entry.path(), entry.metadata());
            if let Ok(metadata) = metadata
                && path.extension().is_some_and(|extension| extension == "ext4")
            {
                let bytes = metadata.blocks() * STAT_BLOCK_BYTES;
                files.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), bytes, path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total <= self.limit_bytes {
                break;
            }
            if path != self.path(newest) {
                // Another builder may have been faster.
                let _ = fs::remove_file(&path);
                total = total.saturating_sub(bytes);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn cache(limit_bytes: u64) -> (TempDir, Cache) {
        let directory = TempDir::new().unwrap();
        let cache = Cache::open(directory.path().join("steps"), limit_bytes).unwrap();
        (directory, cache)
    }

    fn put(directory: &TempDir, cache: &Cache, key: &str, age_s: u64) {
        let disk = directory.path().join("disk");
        fs::write(&disk, vec![1; 64 << 10]).unwrap();
        cache.put(key, &disk).unwrap();
        let time = SystemTime::now() - std::time::Duration::from_secs(age_s);
        let file = File::open(cache.path(key)).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    #[test]
    fn a_copy_is_the_same_and_has_no_more_data() {
        let directory = TempDir::new().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        make_empty(&from, 64 << 20).unwrap();
        let mut file = OpenOptions::new().write(true).open(&from).unwrap();
        file.seek(io::SeekFrom::Start(10 << 20)).unwrap();
        file.write_all(&[7; 5000]).unwrap();
        copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() < 4096, "the copy is not sparse");
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let (directory, cache) = cache(160 << 10);
        put(&directory, &cache, "a", 300);
        put(&directory, &cache, "b", 200);
        assert!(cache.take("a", &directory.path().join("used")).unwrap());
        put(&directory, &cache, "c", 0);
        assert!(cache.has("a") && !cache.has("b") && cache.has("c"));
    }

    #[test]
    fn what_was_taken_outlives_its_eviction() {
        let (directory, cache) = cache(70 << 10);
        put(&directory, &cache, "a", 100);
        let taken = directory.path().join("taken");
        assert!(cache.take("a", &taken).unwrap());
        put(&directory, &cache, "b", 0);
        assert!(!cache.has("a"));
        assert_eq!(fs::read(&taken).unwrap(), vec![1; 64 << 10]);
        assert!(!cache.take("a", &directory.path().join("again")).unwrap());
    }
}
