//! An object as a file, for who works with it on this host.

use std::fs::File;
use std::io;
use std::path::Path;

use super::catalog;
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
}

/// Copies `s3://BUCKET/KEY` to a file.
pub fn fetch(store: &Store, blobs: &Path, uri: &str, to: &Path) -> Result<(), FetchError> {
    let wrong = || FetchError::Uri { uri: uri.into() };
    let (bucket, key) =
        uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(wrong)?;
    let copied = |source| FetchError::Copy { uri: uri.into(), source };
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
