//! Uploads of many parts. A part is a blob; the finished object is the list of its parts' blobs.

use rusqlite::params;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};
use uuid::Uuid;

use super::attributes::{Checksums, attributes_of, checksums_of, hasher, refuse};
use super::blobs::Blob;
use super::catalog::{self, Entry, PartEntry};
use super::operations::{etag_of, require_standard};
use super::{Failure, Objects};
use crate::clock::Timestamp;
use crate::store::StoreError;

/// The smallest part that is not the last: S3's.
const PART_BYTES_MIN: u64 = 5 << 20;
const PARTS_MAX: i32 = 10_000;
/// Unfinished uploads of one bucket.
const UPLOADS_MAX: i64 = 1000;

impl Objects {
    pub(super) async fn create_upload(
        &self,
        input: CreateMultipartUploadInput,
    ) -> S3Result<CreateMultipartUploadOutput> {
        refuse!(
            input,
            acl,
            bucket_key_enabled,
            grant_full_control,
            grant_read,
            grant_read_acp,
            grant_write_acp,
            object_lock_legal_hold_status,
            object_lock_mode,
            object_lock_retain_until_date,
            sse_customer_algorithm,
            sse_customer_key,
            ssekms_key_id,
            server_side_encryption,
            tagging,
            website_redirect_location,
        );
        require_standard(input.storage_class.as_ref())?;
        let attributes = attributes_of!(input);
        attributes.check()?;
        let id = Uuid::new_v4().simple().to_string();
        let (bucket, key, upload) = (input.bucket.clone(), input.key.clone(), id.clone());
        self.with_store(move |store| {
            store.write(|transaction| {
                catalog::require_bucket(transaction, &bucket)?;
                let sql = "SELECT count(*) FROM upload WHERE bucket = ?1";
                let count = transaction.query_row(sql, [&bucket], |row| row.get::<_, i64>(0));
                if count.map_err(StoreError::at("count uploads"))? >= UPLOADS_MAX {
                    let text = "the bucket has 1000 unfinished uploads: complete or abort some";
                    return Err(Failure(s3_error!(InvalidRequest, "{}", text)));
                }
                let added = transaction.execute(
                    "INSERT INTO upload VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![upload, bucket, key, Timestamp::now().0, catalog::json(&attributes)?],
                );
                added.map_err(StoreError::at("add an upload"))?;
                Ok(())
            })
        })
        .await?;
        Ok(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: input.checksum_algorithm,
            checksum_type: input.checksum_type,
            ..Default::default()
        })
    }

    pub(super) async fn put_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<UploadPartOutput> {
        let trailer = request.headers.get("x-amz-trailer").cloned();
        let trailer = trailer.as_ref().and_then(|value| value.to_str().ok());
        let trailing = request.trailing_headers;
        let mut input = request.input;
        refuse!(
            input,
            checksum_md5,
            checksum_sha512,
            checksum_xxhash128,
            checksum_xxhash3,
            checksum_xxhash64,
            sse_customer_algorithm,
            sse_customer_key,
        );
        let number = input.part_number;
        if !(1..=PARTS_MAX).contains(&number) {
            return Err(s3_error!(InvalidArgument, "Part number must be 1 to {}", PARTS_MAX));
        }
        self.upload(&input.bucket, &input.key, &input.upload_id).await?;
        let sent = checksums_of!(input);
        let body = input.body.take();
        let (blob, computed) =
            self.blobs.write(body, hasher(&sent, trailer)?).await.map_err(Failure::from)?;
        let arrived = Checksums::of(&computed);
        let in_trailer = trailing.and_then(|trailing| trailing.take()).unwrap_or_default();
        let etag = etag_of(&computed);
        let part = PartEntry {
            number,
            etag: etag.clone(),
            modified: Timestamp::now(),
            checksums: arrived.clone(),
            blob: blob.clone(),
        };
        let is_md5 = input.content_md5.is_none() || input.content_md5 == computed.checksum_md5;
        let checked = sent
            .check(&arrived)
            .and_then(|()| Checksums::of_trailer(&in_trailer).check(&arrived))
            .and_then(|()| if is_md5 { Ok(()) } else { Err(s3_error!(BadDigest)) });
        let stored = match checked {
            Ok(()) => self.store_part(input.bucket, input.key, input.upload_id, part).await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(before) => self.remove_all(&before),
            Err(error) => {
                self.blobs.remove(&blob);
                return Err(error);
            }
        }
        Ok(UploadPartOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: arrived.crc32,
            checksum_crc32c: arrived.crc32c,
            checksum_crc64nvme: arrived.crc64nvme,
            checksum_sha1: arrived.sha1,
            checksum_sha256: arrived.sha256,
            ..Default::default()
        })
    }

    /// The result is the blob that this number had before.
    async fn store_part(
        &self,
        bucket: String,
        key: String,
        upload: String,
        part: PartEntry,
    ) -> S3Result<Vec<Blob>> {
        self.with_store(move |store| {
            store.write(|transaction| {
                // It may have been completed or aborted meanwhile.
                catalog::upload(transaction, &bucket, &key, &upload)?;
                let mut before = catalog::parts(transaction, &upload)?;
                before.retain(|known| known.number == part.number);
                let put = transaction.execute(
                    "INSERT OR REPLACE INTO part VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        upload,
                        part.number,
                        i64::try_from(part.blob.size).unwrap_or(i64::MAX),
                        part.etag,
                        part.modified.0,
                        catalog::json(&part.checksums)?,
                        catalog::json(&part.blob)?,
                    ],
                );
                put.map_err(StoreError::at("add a part"))?;
                Ok(before.into_iter().map(|part| part.blob).collect())
            })
        })
        .await
    }

    pub(super) async fn complete_upload(
        &self,
        input: CompleteMultipartUploadInput,
    ) -> S3Result<CompleteMultipartUploadOutput> {
        refuse!(input, if_match, if_none_match, sse_customer_algorithm, sse_customer_key);
        let wanted = input.multipart_upload.and_then(|list| list.parts).unwrap_or_default();
        let size = input.mpu_object_size;
        let (bucket, key, upload) = (input.bucket.clone(), input.key.clone(), input.upload_id);
        let (etag, removed) = self
            .with_store(move |store| {
                store.write(|transaction| {
                    let attributes = catalog::upload(transaction, &bucket, &key, &upload)?;
                    let known = catalog::parts(transaction, &upload)?;
                    let chosen = choose(&wanted, &known)?;
                    let blobs: Vec<Blob> = chosen.iter().map(|part| part.blob.clone()).collect();
                    let total: u64 = blobs.iter().map(|blob| blob.size).sum();
                    if size.is_some_and(|size| u64::try_from(size) != Ok(total)) {
                        let text = "the parts together do not have the size you specified";
                        return Err(Failure(s3_error!(InvalidRequest, "{}", text)));
                    }
                    let (etag, modified) = (etag_of_parts(&chosen), Timestamp::now());
                    let entry =
                        Entry { key, size: total, etag: etag.clone(), modified, attributes, blobs };
                    let before = catalog::replace(transaction, &bucket, &entry)?;
                    transaction
                        .execute("DELETE FROM upload WHERE id = ?1", [&upload])
                        .map_err(StoreError::at("end an upload"))?;
                    let unused = known.into_iter().map(|part| part.blob);
                    let unused = unused.filter(|blob| !entry.blobs.contains(blob));
                    let old = before.into_iter().flat_map(|entry| entry.blobs);
                    Ok((etag, unused.chain(old).collect::<Vec<_>>()))
                })
            })
            .await?;
        self.remove_all(&removed);
        Ok(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(etag)),
            ..Default::default()
        })
    }

    pub(super) async fn abort_upload(&self, input: AbortMultipartUploadInput) -> S3Result<()> {
        let removed = self
            .with_store(move |store| {
                store.make_way();
                store.write(|transaction| {
                    catalog::upload(transaction, &input.bucket, &input.key, &input.upload_id)?;
                    let parts = catalog::parts(transaction, &input.upload_id)?;
                    transaction
                        .execute("DELETE FROM upload WHERE id = ?1", [&input.upload_id])
                        .map_err(StoreError::at("end an upload"))?;
                    Ok(parts.into_iter().map(|part| part.blob).collect::<Vec<_>>())
                })
            })
            .await?;
        self.remove_all(&removed);
        Ok(())
    }

    async fn upload(&self, bucket: &str, key: &str, id: &str) -> S3Result<()> {
        let (bucket, key, id) = (bucket.to_owned(), key.to_owned(), id.to_owned());
        self.with_store(move |store| {
            store.read(|transaction| catalog::upload(transaction, &bucket, &key, &id)).map(|_| ())
        })
        .await
    }
}

/// The parts that the client lists, in its order, which has to be ascending.
fn choose<'a>(
    wanted: &[CompletedPart],
    known: &'a [PartEntry],
) -> Result<Vec<&'a PartEntry>, Failure> {
    let mut chosen: Vec<&PartEntry> = Vec::new();
    for part in wanted {
        let number = part.part_number.unwrap_or(0);
        if chosen.last().is_some_and(|last| last.number >= number) {
            return Err(s3_error!(InvalidPartOrder).into());
        }
        let found = known.iter().find(|known| known.number == number);
        let sent = checksums_of!(part);
        let is_it = |found: &&PartEntry| {
            part.e_tag.as_ref().is_none_or(|etag| etag.value() == found.etag)
                && sent.check(&found.checksums).is_ok()
        };
        let found = found.filter(is_it);
        let text = || s3_error!(InvalidPart, "Part {} is not there, or is another", number);
        chosen.push(found.ok_or_else(text)?);
    }
    let Some((_, rest)) = chosen.split_last() else {
        return Err(s3_error!(MalformedXML, "an upload is completed with at least one part").into());
    };
    match rest.iter().find(|part| part.blob.size < PART_BYTES_MIN) {
        None => Ok(chosen),
        Some(part) => {
            Err(s3_error!(EntityTooSmall, "Part {} has less than 5 MiB", part.number).into())
        }
    }
}

/// The MD5 of the parts' MD5s, and their number.
fn etag_of_parts(parts: &[&PartEntry]) -> String {
    let mut hash = Md5::default();
    for part in parts {
        let byte = |pair: &[u8]| {
            std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())
        };
        let bytes: Vec<u8> = part.etag.as_bytes().chunks(2).filter_map(byte).collect();
        hash.update(&bytes);
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hash}-{}", parts.len())
}
