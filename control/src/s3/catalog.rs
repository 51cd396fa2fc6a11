//! What the database knows of buckets, objects and unfinished uploads.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use s3s::{S3Result, s3_error};

use super::attributes::{Attributes, Checksums};
use super::blobs::Blob;
use super::{Failure, Objects};
use crate::clock::Timestamp;
use crate::store::{Store, StoreError, attempt};

/// An object.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub size: u64,
    pub etag: String,
    pub modified: Timestamp,
    pub attributes: Attributes,
    pub blobs: Vec<Blob>,
}

/// A part of an unfinished upload.
#[derive(Clone, Debug)]
pub struct PartEntry {
    pub number: i32,
    pub etag: String,
    pub modified: Timestamp,
    pub checksums: Checksums,
    pub blob: Blob,
}

/// The names of all blobs that something refers to.
pub fn all_blobs(store: &Store) -> Result<HashSet<String>, StoreError> {
    store.read(|transaction| {
        let read = || {
            let sql = "SELECT json_extract(each.value, '$.id') FROM object, json_each(object.blobs) AS each
                       UNION SELECT json_extract(blob, '$.id') FROM part";
            transaction.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
        };
        attempt("list blobs", read)
    })
}

/// The blobs of an object; none if there is none.
pub fn blobs_of(
    transaction: &Transaction<'_>,
    bucket: &str,
    key: &str,
) -> Result<Option<Vec<Blob>>, StoreError> {
    let find = || {
        let sql = format!("SELECT {} FROM object WHERE bucket = ?1 AND key = ?2", Entry::COLUMNS);
        transaction.query_row(&sql, [bucket, key], Entry::of).optional()
    };
    Ok(attempt("look an object up", find)?.map(|entry| entry.blobs))
}

/// Whether there is a bucket of this name.
pub fn has_bucket(transaction: &Transaction<'_>, bucket: &str) -> Result<bool, StoreError> {
    let sql = "SELECT count(*) FROM bucket WHERE name = ?1";
    let count = transaction.query_row(sql, [bucket], |row| row.get::<_, i64>(0));
    Ok(count.map_err(StoreError::at("look a bucket up"))? > 0)
}

impl Entry {
    pub const COLUMNS: &str = "key, size, etag, modified, attributes, blobs";

    pub fn of(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        let json = |index: usize, error: serde_json::Error| {
            rusqlite::Error::FromSqlConversionFailure(
                index,
                rusqlite::types::Type::Text,
                Box::new(error),
            )
        };
        let (attributes, blobs): (String, String) = (row.get(4)?, row.get(5)?);
        Ok(Self {
            key: row.get(0)?,
            size: row.get::<_, i64>(1)?.unsigned_abs(),
            etag: row.get(2)?,
            modified: Timestamp(row.get(3)?),
            attributes: serde_json::from_str(&attributes).map_err(|error| json(4, error))?,
            blobs: serde_json::from_str(&blobs).map_err(|error| json(5, error))?,
        })
    }
}

impl PartEntry {
    fn of(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        let json = |index: usize, error: serde_json::Error| {
            rusqlite::Error::FromSqlConversionFailure(
                index,
                rusqlite::types::Type::Text,
                Box::new(error),
            )
        };
        let (checksums, blob): (String, String) = (row.get(3)?, row.get(4)?);
        Ok(Self {
            number: row.get(0)?,
            etag: row.get(1)?,
            modified: Timestamp(row.get(2)?),
            checksums: serde_json::from_str(&checksums).map_err(|error| json(3, error))?,
            blob: serde_json::from_str(&blob).map_err(|error| json(4, error))?,
        })
    }
}

pub fn require_bucket(transaction: &Transaction<'_>, bucket: &str) -> Result<(), Failure> {
    if has_bucket(transaction, bucket)? {
        return Ok(());
    }
    Err(s3_error!(NoSuchBucket, "The specified bucket does not exist").into())
}

pub fn find(
    transaction: &Transaction<'_>,
    bucket: &str,
    key: &str,
) -> Result<Option<Entry>, Failure> {
    require_bucket(transaction, bucket)?;
    let sql = format!("SELECT {} FROM object WHERE bucket = ?1 AND key = ?2", Entry::COLUMNS);
    let found = transaction.query_row(&sql, [bucket, key], Entry::of).optional();
    Ok(found.map_err(StoreError::at("look an object up"))?)
}

/// Puts an object in the place of what the key was; the result is what it was.
pub fn replace(
    transaction: &Transaction<'_>,
    bucket: &str,
    entry: &Entry,
) -> Result<Option<Entry>, Failure> {
    let before = find(transaction, bucket, &entry.key)?;
    let put = transaction.execute(
        "INSERT OR REPLACE INTO object VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            bucket,
            entry.key,
            i64::try_from(entry.size).unwrap_or(i64::MAX),
            entry.etag,
            entry.modified.0,
            json(&entry.attributes)?,
            json(&entry.blobs)?,
        ],
    );
    put.map_err(StoreError::at("put an object"))?;
    Ok(before)
}

pub fn delete(
    transaction: &Transaction<'_>,
    bucket: &str,
    key: &str,
) -> Result<Option<Entry>, Failure> {
    let before = find(transaction, bucket, key)?;
    let sql = "DELETE FROM object WHERE bucket = ?1 AND key = ?2";
    transaction.execute(sql, [bucket, key]).map_err(StoreError::at("delete an object"))?;
    Ok(before)
}

/// What an upload will be; it has to be of this bucket and key.
pub fn upload(
    transaction: &Transaction<'_>,
    bucket: &str,
    key: &str,
    id: &str,
) -> Result<Attributes, Failure> {
    require_bucket(transaction, bucket)?;
    let sql = "SELECT attributes FROM upload WHERE id = ?1 AND bucket = ?2 AND key = ?3";
    let found = transaction.query_row(sql, [id, bucket, key], |row| row.get::<_, String>(0));
    let text = found.optional().map_err(StoreError::at("look an upload up"))?;
    let text = text.ok_or_else(|| s3_error!(NoSuchUpload))?;
    let damaged = |source| StoreError::Damaged { what: format!("upload {id}"), source };
    Ok(serde_json::from_str(&text).map_err(damaged)?)
}

pub fn parts(transaction: &Transaction<'_>, upload: &str) -> Result<Vec<PartEntry>, Failure> {
    let read = || {
        let sql = "SELECT number, etag, modified, checksums, blob FROM part WHERE upload = ?1 ORDER BY number";
        transaction.prepare(sql)?.query_map([upload], PartEntry::of)?.collect()
    };
    Ok(attempt("list parts", read)?)
}

pub fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|source| StoreError::Damaged { what: "a new entry".into(), source })
}

impl Objects {
    /// Runs database work where it may wait.
    pub async fn with_store<T: Send + 'static>(
        &self,
        action: impl FnOnce(&Store) -> Result<T, Failure> + Send + 'static,
    ) -> S3Result<T> {
        let store = std::sync::Arc::clone(&self.store);
        let work = tokio::task::spawn_blocking(move || action(&store));
        match work.await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => {
                tracing::error!("a request was not answered: {error}");
                Err(s3_error!(InternalError, "The control plane failed; its log says how."))
            }
        }
    }

    pub fn remove_all<'a>(&self, blobs: impl IntoIterator<Item = &'a Blob>) {
        for blob in blobs {
            self.blobs.remove(blob);
        }
    }
}
