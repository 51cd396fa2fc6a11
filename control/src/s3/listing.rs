//! Listing buckets, objects, uploads and parts, a page at a time.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rusqlite::{Transaction, params};
use s3s::dto::*;
use s3s::{S3Result, s3_error};

use super::catalog::{self, Entry};
use super::{Failure, Objects};
use crate::clock::Timestamp as Time;
use crate::store::attempt;

/// Keys and prefixes of a page.
const PAGE_ITEMS_MAX: i32 = 1000;
/// Greater than anything that may follow in a key.
const BEYOND: char = '\u{10ffff}';
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// What is to be listed.
struct Listing {
    bucket: String,
    prefix: String,
    delimiter: String,
    after: String,
    limit: usize,
}

/// A page.
#[derive(Default)]
struct Page {
    objects: Vec<Entry>,
    prefixes: Vec<String>,
    /// Where the next page begins.
    next: Option<String>,
}

impl Listing {
    fn run(&self, transaction: &Transaction<'_>) -> Result<Page, Failure> {
        catalog::require_bucket(transaction, &self.bucket)?;
        let (mut page, mut after) = (Page::default(), self.after.clone());
        while self.limit > 0 {
            let have = page.objects.len() + page.prefixes.len();
            let rows = self.rows(transaction, &after, self.limit + 1 - have)?;
            let count = rows.len();
            let mut is_skipping = false;
            for entry in rows {
                if page.objects.len() + page.prefixes.len() == self.limit {
                    page.next = Some(after);
                    return Ok(page);
                }
                match self.common_prefix(&entry.key) {
                    Some(prefix) => {
                        after = format!("{prefix}{BEYOND}");
                        page.prefixes.push(prefix);
                        is_skipping = true;
                        break;
                    }
                    None => {
                        after = entry.key.clone();
                        page.objects.push(entry);
                    }
                }
            }
            if !is_skipping && count < self.limit + 1 - have {
                break;
            }
        }
        Ok(page)
    }

    fn rows(
        &self,
        transaction: &Transaction<'_>,
        after: &str,
        limit: usize,
    ) -> Result<Vec<Entry>, Failure> {
        let read = || {
            let sql = format!(
                "SELECT {} FROM object WHERE bucket = ?1 AND key > ?2 AND key >= ?3 AND key < ?4
                 ORDER BY key LIMIT ?5",
                Entry::COLUMNS
            );
            let end = format!("{}{BEYOND}", self.prefix);
            let mut statement = transaction.prepare(&sql)?;
            let values = params![self.bucket, after, self.prefix, end, limit];
            statement.query_map(values, Entry::of)?.collect()
        };
        Ok(attempt("list objects", read)?)
    }

    fn common_prefix(&self, key: &str) -> Option<String> {
        if self.delimiter.is_empty() {
            return None;
        }
        let rest = key.strip_prefix(&self.prefix)?;
        let end = rest.find(&self.delimiter)? + self.delimiter.len();
        Some(format!("{}{}", self.prefix, rest.get(..end)?))
    }
}

/// How names are written.
struct Encoding {
    is_url: bool,
}

impl Encoding {
    fn of(wish: Option<&EncodingType>) -> Self {
        Self { is_url: wish.is_some_and(|wish| wish.as_str() == EncodingType::URL) }
    }

    fn text(&self, text: &str) -> String {
        if self.is_url { utf8_percent_encode(text, ENCODED).to_string() } else { text.into() }
    }

    fn objects(&self, entries: Vec<Entry>) -> Vec<Object> {
        let object = |entry: Entry| Object {
            key: Some(self.text(&entry.key)),
            e_tag: Some(ETag::Strong(entry.etag)),
            last_modified: Some(entry.modified.date_time().into()),
            size: Some(i64::try_from(entry.size).unwrap_or(i64::MAX)),
            storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
            ..Default::default()
        };
        entries.into_iter().map(object).collect()
    }

    fn prefixes(&self, prefixes: &[String]) -> Vec<CommonPrefix> {
        let prefix = |prefix: &String| CommonPrefix { prefix: Some(self.text(prefix)) };
        prefixes.iter().map(prefix).collect()
    }
}

impl Objects {
    async fn page(&self, listing: Listing) -> S3Result<Page> {
        self.with_store(move |store| store.read(|transaction| listing.run(transaction))).await
    }

    pub(super) async fn list_v1(&self, input: ListObjectsInput) -> S3Result<ListObjectsOutput> {
        let max_keys = limit(input.max_keys)?;
        let encoding = Encoding::of(input.encoding_type.as_ref());
        let page = self
            .page(Listing {
                bucket: input.bucket.clone(),
                prefix: input.prefix.clone().unwrap_or_default(),
                delimiter: input.delimiter.clone().unwrap_or_default(),
                after: input.marker.clone().unwrap_or_default(),
                limit: max_keys.unsigned_abs() as usize,
            })
            .await?;
        Ok(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: input.prefix.map(|text| encoding.text(&text)),
            marker: input.marker.map(|text| encoding.text(&text)),
            delimiter: input.delimiter.map(|text| encoding.text(&text)),
            max_keys: Some(max_keys),
            is_truncated: Some(page.next.is_some()),
            next_marker: page.next.map(|text| encoding.text(&text)),
            contents: Some(encoding.objects(page.objects)),
            common_prefixes: Some(encoding.prefixes(&page.prefixes)),
            encoding_type: input.encoding_type,
            request_charged: None,
        })
    }

    pub(super) async fn list_v2(&self, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
        let max_keys = limit(input.max_keys)?;
        let encoding = Encoding::of(input.encoding_type.as_ref());
        let after = match &input.continuation_token {
            Some(token) => crate::page::decode(token)
                .ok_or_else(|| s3_error!(InvalidArgument, "The continuation token is not ours"))?,
            None => input.start_after.clone().unwrap_or_default(),
        };
        let page = self
            .page(Listing {
                bucket: input.bucket.clone(),
                prefix: input.prefix.clone().unwrap_or_default(),
                delimiter: input.delimiter.clone().unwrap_or_default(),
                after,
                limit: max_keys.unsigned_abs() as usize,
            })
            .await?;
        let key_count = page.objects.len() + page.prefixes.len();
        Ok(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix.map(|text| encoding.text(&text)),
            delimiter: input.delimiter.map(|text| encoding.text(&text)),
            start_after: input.start_after.map(|text| encoding.text(&text)),
            max_keys: Some(max_keys),
            key_count: i32::try_from(key_count).ok(),
            is_truncated: Some(page.next.is_some()),
            continuation_token: input.continuation_token,
            next_continuation_token: page.next.as_deref().map(crate::page::encode),
            contents: Some(encoding.objects(page.objects)),
            common_prefixes: Some(encoding.prefixes(&page.prefixes)),
            encoding_type: input.encoding_type,
            request_charged: None,
        })
    }

    pub(super) async fn buckets(&self, input: ListBucketsInput) -> S3Result<ListBucketsOutput> {
        let prefix = input.prefix.unwrap_or_default();
        let after = input.continuation_token.unwrap_or_default();
        let limit = input.max_buckets.unwrap_or(10_000);
        if !(1..=10_000).contains(&limit) {
            return Err(s3_error!(InvalidArgument, "max-buckets is 1 to 10000"));
        }
        let limit = limit.unsigned_abs() as usize;
        let wanted = prefix.clone();
        let mut found: Vec<(String, i64)> = self
            .with_store(move |store| {
                store.read(|transaction| {
                    let read = || {
                        let sql = "SELECT name, created FROM bucket WHERE name > ?1
                                   AND substr(name, 1, length(?2)) = ?2 ORDER BY name LIMIT ?3";
                        let mut statement = transaction.prepare(sql)?;
                        let rows = statement
                            .query_map(params![after, wanted, limit + 1], |row| {
                                Ok((row.get(0)?, row.get(1)?))
                            })?;
                        rows.collect()
                    };
                    Ok(attempt("list buckets", read)?)
                })
            })
            .await?;
        let is_truncated = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| is_truncated).map(|(name, _)| name.clone());
        let bucket = |(name, created): (String, i64)| Bucket {
            name: Some(name),
            creation_date: Some(Time(created).date_time().into()),
            ..Default::default()
        };
        let owner = Owner { id: Some(self.settings.account.clone()), ..Default::default() };
        Ok(ListBucketsOutput {
            buckets: Some(found.into_iter().map(bucket).collect()),
            continuation_token: next,
            owner: Some(owner),
            prefix: Some(prefix).filter(|prefix| !prefix.is_empty()),
        })
    }

    pub(super) async fn parts(&self, input: ListPartsInput) -> S3Result<ListPartsOutput> {
        let limit = limit(input.max_parts)?;
        let after = input.part_number_marker.unwrap_or(0);
        let (bucket, key, upload) =
            (input.bucket.clone(), input.key.clone(), input.upload_id.clone());
        let mut parts = self
            .with_store(move |store| {
                store.read(|transaction| {
                    catalog::upload(transaction, &bucket, &key, &upload)?;
                    catalog::parts(transaction, &upload)
                })
            })
            .await?;
        parts.retain(|part| part.number > after);
        let is_truncated = parts.len() > limit.unsigned_abs() as usize;
        parts.truncate(limit.unsigned_abs() as usize);
        let next = parts.last().map(|part| part.number).filter(|_| is_truncated);
        let part = |part: catalog::PartEntry| Part {
            part_number: Some(part.number),
            size: Some(i64::try_from(part.blob.size).unwrap_or(i64::MAX)),
            e_tag: Some(ETag::Strong(part.etag)),
            last_modified: Some(part.modified.date_time().into()),
            checksum_crc32: part.checksums.crc32,
            checksum_crc32c: part.checksums.crc32c,
            checksum_crc64nvme: part.checksums.crc64nvme,
            checksum_sha1: part.checksums.sha1,
            checksum_sha256: part.checksums.sha256,
            ..Default::default()
        };
        Ok(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: Some(limit),
            part_number_marker: Some(after),
            next_part_number_marker: next,
            is_truncated: Some(is_truncated),
            parts: Some(parts.into_iter().map(part).collect()),
            ..Default::default()
        })
    }

    pub(super) async fn uploads(
        &self,
        input: ListMultipartUploadsInput,
    ) -> S3Result<ListMultipartUploadsOutput> {
        super::attributes::refuse!(input, delimiter);
        let limit = limit(input.max_uploads)?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = (
            input.key_marker.clone().unwrap_or_default(),
            input.upload_id_marker.clone().unwrap_or_default(),
        );
        let bucket = input.bucket.clone();
        let mut found: Vec<(String, String, i64)> = self
            .with_store(move |store| {
                store.read(|transaction| {
                    catalog::require_bucket(transaction, &bucket)?;
                    let read = || {
                        let sql = "SELECT key, id, created FROM upload WHERE bucket = ?1 AND (key, id) > (?2, ?3)
                                   AND substr(key, 1, length(?4)) = ?4 ORDER BY key, id LIMIT ?5";
                        let mut statement = transaction.prepare(sql)?;
                        let values = params![bucket, after.0, after.1, prefix, limit + 1];
                        let rows = statement.query_map(values, |row| {
                            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                        })?;
                        rows.collect()
                    };
                    Ok(attempt("list uploads", read)?)
                })
            })
            .await?;
        let encoding = Encoding::of(input.encoding_type.as_ref());
        let is_truncated = found.len() > limit.unsigned_abs() as usize;
        found.truncate(limit.unsigned_abs() as usize);
        let next = found.last().filter(|_| is_truncated).cloned();
        let upload = |(key, id, created): (String, String, i64)| MultipartUpload {
            key: Some(encoding.text(&key)),
            upload_id: Some(id),
            initiated: Some(Time(created).date_time().into()),
            ..Default::default()
        };
        Ok(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix.map(|text| encoding.text(&text)),
            is_truncated: Some(is_truncated),
            max_uploads: Some(limit),
            next_key_marker: next.as_ref().map(|(key, ..)| encoding.text(key)),
            next_upload_id_marker: next.map(|(_, id, _)| id),
            uploads: Some(found.into_iter().map(upload).collect()),
            encoding_type: input.encoding_type,
            ..Default::default()
        })
    }
}

fn limit(asked: Option<i32>) -> S3Result<i32> {
    match asked.unwrap_or(PAGE_ITEMS_MAX) {
        asked if asked < 0 => Err(s3_error!(InvalidArgument, "a page cannot have {} items", asked)),
        asked => Ok(asked.min(PAGE_ITEMS_MAX)),
    }
}
