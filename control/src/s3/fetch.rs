//! An object as a file, for who works with it on this host.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::catalog;
use super::remote::RemoteError;
use crate::store::{Store, StoreError};

/// Why an object cannot be had; in the service's codes for a build's code artifact.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum FetchError {
    #[error("S3_INVALID_OBJECT: {uri} is not s3://BUCKET/KEY")]
    Uri { uri: String },
    #[error("S3_NO_SUCH_BUCKET: the bucket {bucket} does not exist")]
    Bucket { bucket: String },
    #[error("S3_NO_SUCH_KEY: {uri} does not exist")]
    Key { uri: String },
    #[error("INTERNAL_PLATFORM_ERROR: cannot copy {uri}: {source}")]
    Copy { uri: String, source: io::Error },
    #[error("INTERNAL_PLATFORM_ERROR: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// Where objects are.
pub struct Place<'a> {
    /// Which there are.
    pub store: &'a Store,
    /// What they are.
    pub blobs: &'a Path,
    /// Buckets whose objects are files of this host, in place of ours of that name.
    pub directories: &'a BTreeMap<String, PathBuf>,
}

/// The bucket and the key of `s3://BUCKET/KEY`.
pub fn parts(uri: &str) -> Result<(&str, &str), FetchError> {
    let parts = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    parts.ok_or_else(|| FetchError::Uri { uri: uri.into() })
}

/// Copies `s3://BUCKET/KEY` to a file.
pub fn fetch(place: &Place<'_>, uri: &str, to: &Path) -> Result<(), FetchError> {
    let (bucket, key) = parts(uri)?;
    let copied = |source| FetchError::Copy { uri: uri.into(), source };
    if let Some(directory) = place.directories.get(bucket) {
        let missing = || FetchError::Key { uri: uri.into() };
        let mut found = open(directory, key).map_err(copied)?.ok_or_else(missing)?;
        let mut file = File::create(to).map_err(copied)?;
        return io::copy(&mut found, &mut file).map(drop).map_err(copied);
    }
    let Place { store, blobs, .. } = place;
    // Opened while nobody can replace the object: what is open can be read to its end.
    let files: io::Result<Vec<File>> = store.read(|transaction| {
        let Some(blob_names) = catalog::blobs_of(transaction, bucket, key)? else {
            return Err(if catalog::has_bucket(transaction, bucket)? {
                FetchError::Key { uri: uri.into() }
            } else {
                FetchError::Bucket { bucket: bucket.into() }
            });
        };
        Ok(blob_names.iter().map(|blob| File::open(blobs.join(&blob.id))).collect())
    })?;
    let mut file = File::create(to).map_err(copied)?;
    for mut blob in files.map_err(copied)? {
        io::copy(&mut blob, &mut file).map_err(copied)?;
    }
    Ok(())
}

/// A file below a directory, wherever its name or a link of its path would lead.
fn open(directory: &Path, key: &str) -> io::Result<Option<File>> {
    let root = File::open(directory)?;
    // What is no file, like a pipe, does not make us wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match openat2(&root, key, flags, Mode::empty(), ResolveFlags::BENEATH) {
        Ok(file) => {
            let file = File::from(file);
            Ok(file.metadata()?.is_file().then_some(file))
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::XDEV | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_of_this_host_is_a_bucket_and_nothing_outside_of_it_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let (code, to) = (directory.path().join("code"), directory.path().join("copy"));
        fs::create_dir_all(code.join("team")).unwrap();
        fs::write(code.join("team/app.zip"), "an archive").unwrap();
        fs::write(directory.path().join("secret"), "of this host").unwrap();
        symlink("../secret", code.join("link")).unwrap();
        symlink("team/app.zip", code.join("latest")).unwrap();
        let store = Store::open(&directory.path().join("rotifer.db")).unwrap();
        let place = Place {
            store: &store,
            blobs: directory.path(),
            directories: &[("local".to_owned(), code)].into(),
        };
        for key in ["team/app.zip", "latest"] {
            fetch(&place, &format!("s3://local/{key}"), &to).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), "an archive");
        }
        for key in ["none", "../secret", "link", "team", "", "/etc/passwd", "team/app.zip/x"] {
            let error = fetch(&place, &format!("s3://local/{key}"), &to).unwrap_err();
            assert!(matches!(error, FetchError::Key { .. }), "{key:?}: {error}");
        }
        let other = fetch(&place, "s3://other/app.zip", &to).unwrap_err();
        assert!(matches!(other, FetchError::Bucket { .. }), "{other}");
    }
}
