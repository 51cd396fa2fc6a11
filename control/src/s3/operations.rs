//! The operations. What is not here answers NotImplemented, by name.

use rusqlite::params;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::attributes::{Checksums, attributes_of, checksums_of, fulfils, hasher, refuse};
use super::catalog::{self, Entry};
use super::{Failure, Objects};
use crate::clock::Timestamp;
use crate::store::StoreError;

#[async_trait::async_trait]
impl S3 for Objects {
    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let input = request.input;
        refuse!(
            input,
            bucket_namespace,
            grant_full_control,
            grant_read,
            grant_read_acp,
            grant_write,
            grant_write_acp
        );
        if input.object_lock_enabled_for_bucket == Some(true) {
            return Err(s3_error!(NotImplemented, "object lock is not supported here"));
        }
        if input.acl.is_some_and(|acl| acl.as_str() != BucketCannedACL::PRIVATE) {
            return Err(s3_error!(NotImplemented, "buckets are private here"));
        }
        let wanted = input.create_bucket_configuration.and_then(|wish| wish.location_constraint);
        if wanted.is_some_and(|wanted| wanted.as_str() != self.settings.region) {
            let region = &self.settings.region;
            return Err(s3_error!(InvalidLocationConstraint, "buckets are in {} here", region));
        }
        let (bucket, limit) = (input.bucket, self.settings.quotas.buckets);
        let location = format!("/{bucket}");
        self.with_store(move |store| {
            store.write(|transaction| {
                let count: usize = transaction
                    .query_row("SELECT count(*) FROM bucket", [], |row| row.get(0))
                    .map_err(StoreError::at("count buckets"))?;
                let sql = "INSERT INTO bucket VALUES (?1, ?2) ON CONFLICT DO NOTHING";
                let added = transaction.execute(sql, params![bucket, Timestamp::now().0]);
                match added.map_err(StoreError::at("add a bucket"))? {
                    0 => Err(Failure(s3_error!(BucketAlreadyOwnedByYou))),
                    _ if count >= limit => Err(Failure(s3_error!(TooManyBuckets))),
                    _ => Ok(()),
                }
            })
        })
        .await?;
        Ok(S3Response::new(CreateBucketOutput { location: Some(location), ..Default::default() }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.require_bucket(request.input.bucket).await?;
        let bucket_region = Some(self.settings.region.clone());
        Ok(S3Response::new(HeadBucketOutput { bucket_region, ..Default::default() }))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.require_bucket(request.input.bucket).await?;
        // The first region has no name there.
        let region = Some(self.settings.region.clone()).filter(|region| region != "us-east-1");
        let location_constraint = region.map(Into::into);
        Ok(S3Response::new(GetBucketLocationOutput { location_constraint }))
    }

    async fn delete_bucket(
        &self,
        request: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket = request.input.bucket;
        self.with_store(move |store| {
            store.write(|transaction| {
                catalog::require_bucket(transaction, &bucket)?;
                let used = "SELECT (SELECT count(*) FROM object WHERE bucket = ?1)
                     + (SELECT count(*) FROM upload WHERE bucket = ?1)";
                let count = transaction.query_row(used, [&bucket], |row| row.get::<_, i64>(0));
                if count.map_err(StoreError::at("count objects"))? > 0 {
                    let text = "The bucket you tried to delete is not empty: it has objects or unfinished uploads";
                    return Err(Failure(s3_error!(BucketNotEmpty, "{}", text)));
                }
                let deleted = transaction.execute("DELETE FROM bucket WHERE name = ?1", [&bucket]);
                deleted.map_err(StoreError::at("delete a bucket"))?;
                Ok(())
            })
        })
        .await?;
        Ok(S3Response::new(DeleteBucketOutput {}))
    }

    async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.buckets(request.input).await.map(S3Response::new)
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let trailer = request.headers.get("x-amz-trailer").cloned();
        let trailer = trailer.as_ref().and_then(|value| value.to_str().ok());
        let trailing = request.trailing_headers;
        let mut input = request.input;
        refuse!(
            input,
            acl,
            bucket_key_enabled,
            checksum_md5,
            checksum_sha512,
            checksum_xxhash128,
            checksum_xxhash3,
            checksum_xxhash64,
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
            write_offset_bytes,
        );
        require_standard(input.storage_class.as_ref())?;
        let mut attributes = attributes_of!(input);
        attributes.check()?;
        // A body that nobody will want is not read.
        self.require_bucket(input.bucket.clone()).await?;
        let sent = checksums_of!(input);
        let body = input.body.take();
        let (blob, computed) =
            self.blobs.write(body, hasher(&sent, trailer)?).await.map_err(Failure::from)?;
        let arrived = Checksums::of(&computed);
        let in_trailer = trailing.and_then(|trailing| trailing.take()).unwrap_or_default();
        let checked = sent
            .check(&arrived)
            .and_then(|()| Checksums::of_trailer(&in_trailer).check(&arrived))
            .and_then(|()| match (&input.content_md5, &computed.checksum_md5) {
                (Some(sent), arrived) if Some(sent) != arrived.as_ref() => {
                    Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match."))
                }
                _ => Ok(()),
            });
        if let Err(error) = checked {
            self.blobs.remove(&blob);
            return Err(error);
        }
        attributes.checksums = arrived.clone();
        let etag = etag_of(&computed);
        let entry = Entry {
            key: input.key,
            size: blob.size,
            etag: etag.clone(),
            modified: Timestamp::now(),
            attributes,
            blobs: vec![blob],
        };
        let conditions = (input.if_match, input.if_none_match);
        self.commit(input.bucket, entry, conditions).await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: arrived.crc32,
            checksum_crc32c: arrived.crc32c,
            checksum_crc64nvme: arrived.crc64nvme,
            checksum_sha1: arrived.sha1,
            checksum_sha256: arrived.sha256,
            ..Default::default()
        }))
    }

    async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        self.copy(request.input).await.map(S3Response::new)
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        refuse!(input, part_number, sse_customer_algorithm, sse_customer_key, version_id);
        let entry = self.find(&input.bucket, &input.key).await?;
        check_read_conditions!(input, entry);
        let (start, length) = match input.range {
            None => (0, entry.size),
            Some(range) => {
                let range = range.check(entry.size).map_err(|_| s3_error!(InvalidRange))?;
                (range.start, range.end - range.start)
            }
        };
        let content_range =
            input.range.map(|_| format!("bytes {start}-{}/{}", start + length - 1, entry.size));
        let body = self.blobs.read(entry.blobs, start, length);
        let a = entry.attributes;
        // Of a part of an object no checksum is known.
        let checksums = if content_range.is_none() { a.checksums } else { Checksums::default() };
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            body: Some(StreamingBlob::wrap(sync_wrapper::SyncStream::new(body))),
            cache_control: input.response_cache_control.or(a.cache_control),
            checksum_crc32: checksums.crc32,
            checksum_crc32c: checksums.crc32c,
            checksum_crc64nvme: checksums.crc64nvme,
            checksum_sha1: checksums.sha1,
            checksum_sha256: checksums.sha256,
            content_disposition: input.response_content_disposition.or(a.content_disposition),
            content_encoding: input.response_content_encoding.or(a.content_encoding),
            content_language: input.response_content_language.or(a.content_language),
            content_length: Some(i64::try_from(length).unwrap_or(i64::MAX)),
            content_range: content_range.clone(),
            content_type: input.response_content_type.or(a.content_type),
            e_tag: Some(ETag::Strong(entry.etag)),
            expires: a.expires,
            last_modified: Some(entry.modified.date_time().into()),
            metadata: Some(a.metadata.into_iter().collect()),
            ..Default::default()
        };
        Ok(match content_range {
            None => S3Response::new(output),
            Some(_) => S3Response::with_status(output, hyper::StatusCode::PARTIAL_CONTENT),
        })
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        refuse!(input, part_number, range, sse_customer_algorithm, sse_customer_key, version_id);
        let entry = self.find(&input.bucket, &input.key).await?;
        check_read_conditions!(input, entry);
        let a = entry.attributes;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            cache_control: a.cache_control,
            checksum_crc32: a.checksums.crc32,
            checksum_crc32c: a.checksums.crc32c,
            checksum_crc64nvme: a.checksums.crc64nvme,
            checksum_sha1: a.checksums.sha1,
            checksum_sha256: a.checksums.sha256,
            content_disposition: a.content_disposition,
            content_encoding: a.content_encoding,
            content_language: a.content_language,
            content_length: Some(i64::try_from(entry.size).unwrap_or(i64::MAX)),
            content_type: a.content_type,
            e_tag: Some(ETag::Strong(entry.etag)),
            expires: a.expires,
            last_modified: Some(entry.modified.date_time().into()),
            metadata: Some(a.metadata.into_iter().collect()),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = request.input;
        refuse!(input, if_match, if_match_last_modified_time, if_match_size, mfa, version_id);
        self.delete_all(input.bucket, vec![input.key]).await?;
        Ok(S3Response::with_status(DeleteObjectOutput::default(), hyper::StatusCode::NO_CONTENT))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        refuse!(input, mfa);
        let objects = input.delete.objects;
        if objects.len() > 1000 || objects.iter().any(|object| object.version_id.is_some()) {
            return Err(s3_error!(MalformedXML, "up to 1000 keys, without versions, can be given"));
        }
        let keys: Vec<String> = objects.into_iter().map(|object| object.key).collect();
        self.delete_all(input.bucket, keys.clone()).await?;
        let deleted = |key| DeletedObject { key: Some(key), ..Default::default() };
        let is_quiet = input.delete.quiet.unwrap_or(false);
        let deleted = (!is_quiet).then(|| keys.into_iter().map(deleted).collect());
        Ok(S3Response::new(DeleteObjectsOutput { deleted, ..Default::default() }))
    }

    async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        self.list_v1(request.input).await.map(S3Response::new)
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.list_v2(request.input).await.map(S3Response::new)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.create_upload(request.input).await.map(S3Response::new)
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.put_part(request).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.complete_upload(request.input).await.map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.abort_upload(request.input).await?;
        let output = AbortMultipartUploadOutput::default();
        Ok(S3Response::with_status(output, hyper::StatusCode::NO_CONTENT))
    }

    async fn list_parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        self.parts(request.input).await.map(S3Response::new)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        self.uploads(request.input).await.map(S3Response::new)
    }
}

/// The conditions of a read, in S3's order.
macro_rules! check_read_conditions {
    ($input:expr, $entry:expr) => {
        let modified: s3s::dto::Timestamp = $entry.modified.date_time().into();
        let failed = match (&$input.if_match, &$input.if_unmodified_since) {
            (Some(condition), _) => !fulfils(condition, Some(&$entry.etag)),
            (None, Some(since)) => modified > *since,
            (None, None) => false,
        };
        if failed {
            return Err(s3_error!(PreconditionFailed));
        }
        let is_known = match (&$input.if_none_match, &$input.if_modified_since) {
            (Some(condition), _) => fulfils(condition, Some(&$entry.etag)),
            (None, Some(since)) => modified <= *since,
            (None, None) => false,
        };
        if is_known {
            return Err(s3_error!(NotModified));
        }
    };
}
use check_read_conditions;

impl Objects {
    async fn require_bucket(&self, bucket: String) -> S3Result<()> {
        self.with_store(move |store| {
            store.read(|transaction| catalog::require_bucket(transaction, &bucket))
        })
        .await
    }

    async fn find(&self, bucket: &str, key: &str) -> S3Result<Entry> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let found = self
            .with_store(move |store| {
                store.read(|transaction| catalog::find(transaction, &bucket, &key))
            })
            .await?;
        found.ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    /// Puts a new object in its place, if the conditions hold; its blobs are removed otherwise,
    /// those of the object that was there before if they do.
    pub(super) async fn commit(
        &self,
        bucket: String,
        entry: Entry,
        conditions: (Option<ETagCondition>, Option<ETagCondition>),
    ) -> S3Result<()> {
        let new = entry.blobs.clone();
        let replaced = self
            .with_store(move |store| {
                store.write(|transaction| {
                    let before = catalog::find(transaction, &bucket, &entry.key)?;
                    check_write_conditions(&conditions, before.as_ref())?;
                    catalog::replace(transaction, &bucket, &entry)
                })
            })
            .await;
        match replaced {
            Ok(before) => {
                let old = before.into_iter().flat_map(|entry| entry.blobs);
                self.remove_all(&old.filter(|blob| !new.contains(blob)).collect::<Vec<_>>());
                Ok(())
            }
            Err(error) => {
                self.remove_all(&new);
                Err(error)
            }
        }
    }

    async fn delete_all(&self, bucket: String, keys: Vec<String>) -> S3Result<()> {
        let deleted = self
            .with_store(move |store| {
                store.make_way();
                store.write(|transaction| {
                    let delete = |key: &String| catalog::delete(transaction, &bucket, key);
                    keys.iter().map(delete).collect::<Result<Vec<_>, _>>()
                })
            })
            .await?;
        let blobs: Vec<_> = deleted.into_iter().flatten().flat_map(|entry| entry.blobs).collect();
        self.remove_all(&blobs);
        Ok(())
    }

    async fn copy(&self, input: CopyObjectInput) -> S3Result<CopyObjectOutput> {
        refuse!(
            input,
            acl,
            annotation_directive,
            bucket_key_enabled,
            checksum_algorithm,
            copy_source_if_match,
            copy_source_if_modified_since,
            copy_source_if_none_match,
            copy_source_if_unmodified_since,
            copy_source_sse_customer_algorithm,
            copy_source_sse_customer_key,
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
        let CopySource::Bucket { bucket, key, version_id: None } = &input.copy_source else {
            return Err(s3_error!(
                NotImplemented,
                "only objects of buckets, without versions, can be copied"
            ));
        };
        let source = self.find(bucket, key).await?;
        let is_replaced =
            input.metadata_directive.as_ref().is_some_and(|word| word.as_str() == "REPLACE");
        let checksums = source.attributes.checksums.clone();
        let mut attributes = if is_replaced { attributes_of!(input) } else { source.attributes };
        attributes.check()?;
        attributes.checksums = checksums;
        let body = StreamingBlob::wrap(sync_wrapper::SyncStream::new(self.blobs.read(
            source.blobs,
            0,
            source.size,
        )));
        let hasher = hasher(&Checksums::default(), None)?;
        let (blob, _) = self.blobs.write(Some(body), hasher).await.map_err(Failure::from)?;
        let (etag, modified) = (source.etag, Timestamp::now());
        let entry = Entry {
            key: input.key,
            size: blob.size,
            etag: etag.clone(),
            modified,
            attributes,
            blobs: vec![blob],
        };
        self.commit(input.bucket, entry, (input.if_match, input.if_none_match)).await?;
        let result = CopyObjectResult {
            e_tag: Some(ETag::Strong(etag)),
            last_modified: Some(modified.date_time().into()),
            ..Default::default()
        };
        Ok(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() })
    }
}

fn check_write_conditions(
    (if_match, if_none_match): &(Option<ETagCondition>, Option<ETagCondition>),
    before: Option<&Entry>,
) -> Result<(), Failure> {
    let etag = before.map(|entry| entry.etag.as_str());
    if let Some(condition) = if_match {
        match etag {
            None => return Err(Failure(s3_error!(NoSuchKey))),
            Some(_) if fulfils(condition, etag) => {}
            Some(_) => return Err(Failure(s3_error!(PreconditionFailed))),
        }
    }
    if if_none_match.as_ref().is_some_and(|condition| fulfils(condition, etag)) {
        return Err(Failure(s3_error!(PreconditionFailed)));
    }
    Ok(())
}

pub(super) fn require_standard(class: Option<&StorageClass>) -> S3Result<()> {
    match class.map(StorageClass::as_str) {
        None | Some("STANDARD") => Ok(()),
        Some(other) => Err(s3_error!(InvalidStorageClass, "{} is not supported here", other)),
    }
}

/// The MD5 in hexadecimal, as S3 makes ETags.
pub(super) fn etag_of(computed: &Checksum) -> String {
    md5_of(computed).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn md5_of(computed: &Checksum) -> Vec<u8> {
    use base64::Engine;
    let text = computed.checksum_md5.as_deref().unwrap_or_default();
    base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
}
