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

impl Page {
    fn len(&self) -> usize {
        self.objects.len() + self.prefixes.len()
    }
}

impl Listing {
    fn run(&self, transaction: &Transaction<'_>) -> Result<Page, Failure> {
        catalog::require_bucket(transaction, &self.bucket)?;
        let mut page = Page::default();
        if self.limit == 0 {
            return Ok(page);
        }
        let mut last = self.after.clone();
        loop {
            let Some(from) = self.position_after(&last) else { return Ok(page) };
            let wanted = self.limit + 1 - page.len();
            let rows = self.rows(transaction, &from, wanted)?;
            let is_end = rows.len() < wanted;
            let mut is_skipping = false;
            for entry in rows {
                if page.len() == self.limit {
                    page.next = Some(last);
                    return Ok(page);
                }
                if let Some(prefix) = self.common_prefix(&entry.key) {
                    // The rest of what is behind the prefix is passed over.
                    last.clone_from(&prefix);
                    page.prefixes.push(prefix);
                    is_skipping = true;
                    break;
                }
                last.clone_from(&entry.key);
                page.objects.push(entry);
            }
            if is_end && !is_skipping {
                return Ok(page);
            }
        }
    }

    /// The first key that may follow a key or a common prefix; nothing if none can.
    fn position_after(&self, last: &str) -> Option<String> {
        match self.common_prefix(last) {
            Some(prefix) if prefix == last => beyond(&prefix),
            _ if last.is_empty() => Some(String::new()),
            _ => Some(format!("{last}\0")),
        }
    }

    fn rows(
        &self,
        transaction: &Transaction<'_>,
        from: &str,
        limit: usize,
    ) -> Result<Vec<Entry>, Failure> {
        let read = || {
            let sql = format!(
                "SELECT {} FROM object WHERE bucket = ?1 AND key >= ?2 AND key >= ?3
                 AND (?4 IS NULL OR key < ?4) ORDER BY key LIMIT ?5",
                Entry::COLUMNS
            );
            let end = beyond(&self.prefix);
            let mut statement = transaction.prepare(&sql)?;
            let values = params![self.bucket, from, self.prefix, end, limit];
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

/// The first text that is greater than all that begin with this one; nothing if there is none.
fn beyond(prefix: &str) -> Option<String> {
    let mut letters: Vec<char> = prefix.chars().collect();
    while let Some(letter) = letters.pop() {
        let next = match letter {
            '\u{d7ff}' => Some('\u{e000}'),
            letter => char::from_u32(u32::from(letter) + 1),
        };
        if let Some(next) = next {
            letters.push(next);
            return Some(letters.into_iter().collect());
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::attributes::Attributes;
    use crate::store::Store;

    fn pages(keys: &[&str], prefix: &str, delimiter: &str, limit: usize) -> Vec<Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("x.db")).unwrap();
        let (mut pages, mut after) = (Vec::new(), String::new());
        let listed: Result<(), Failure> = store.write(|transaction| {
            transaction.execute("INSERT INTO bucket VALUES ('b', 0)", []).unwrap();
            for key in keys {
                let entry = Entry {
                    key: (*key).into(),
                    size: 0,
                    etag: String::new(),
                    modified: Time(0),
                    attributes: Attributes::default(),
                    blobs: Vec::new(),
                };
                catalog::replace(transaction, "b", &entry)?;
            }
            loop {
                let listing = Listing {
                    bucket: "b".into(),
                    prefix: prefix.into(),
                    delimiter: delimiter.into(),
                    after,
                    limit,
                };
                let page = listing.run(transaction)?;
                let objects = page.objects.into_iter().map(|entry| entry.key);
                pages.push(objects.chain(page.prefixes).collect());
                assert!(pages.len() <= keys.len() + 1, "it does not end: {pages:?}");
                match page.next {
                    Some(next) => after = next,
                    None => return Ok(()),
                }
            }
        });
        listed.unwrap();
        pages
    }

    #[test]
    fn a_listing_comes_to_its_end_whatever_the_keys_are() {
        let keys =
            ["a/\u{10ffff}", "a/\u{10ffff}x", "a/1", "a0", "b", "\u{10ffff}", "\u{10ffff}/x"];
        for limit in 1..=8 {
            let all = pages(&keys, "", "", limit).concat();
            assert_eq!(
                all,
                ["a/1", "a/\u{10ffff}", "a/\u{10ffff}x", "a0", "b", "\u{10ffff}", "\u{10ffff}/x"]
            );
            let mut folded = pages(&keys, "", "/", limit).concat();
            folded.sort();
            assert_eq!(folded, ["a/", "a0", "b", "\u{10ffff}", "\u{10ffff}/"]);
            let behind = pages(&keys, "a/", "/", limit).concat();
            assert_eq!(behind, ["a/1", "a/\u{10ffff}", "a/\u{10ffff}x"]);
        }
        assert_eq!(pages(&keys, "", "", 7).len(), 1, "a full last page is the last");
    }

    #[test]
    fn what_lies_beyond_is_greater_than_all_that_begin_so() {
        assert_eq!(beyond("a/").as_deref(), Some("a0"));
        assert_eq!(beyond("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(beyond("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(beyond(""), None);
        assert_eq!(beyond("\u{10ffff}"), None);
    }
}
