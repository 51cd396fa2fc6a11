//! S3: buckets and objects, for code archives and whatever else users keep near their microVMs.
//!
//! Contents are blobs, files that are never changed, in `objects/`. What a key is (which blobs, how
//! long, since when) is in the database, so that one transaction replaces an object or completes an
//! upload of many parts, without copying. A blob that nothing refers to is deleted; those that a
//! crash left behind, at the next start.

mod attributes;
mod blobs;
mod catalog;
mod fetch;
mod listing;
mod operations;
mod remote;
mod uploads;

use std::path::Path;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, S3ErrorCode, s3_error};

use crate::http::sigv4::SKEW_MAX_SECONDS;
use crate::sessions::Gatekeeper;
use crate::settings::Settings;
use crate::store::{Store, StoreError};
pub use blobs::BlobError;
use blobs::Blobs;
pub use fetch::{FetchError, Place, fetch, parts};
pub use remote::{Object, RemoteError, fetch as fetch_remote};

/// What is encoded of a key in a path: S3 signs what is left as it stands.
pub const KEY_ENCODED: AsciiSet =
    NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The longest XML that a client may send: the list of 10000 parts, the names of 1000 objects.
const XML_BYTES_MAX: usize = 4 << 20;
/// A signed chunk is kept in memory until its signature is verified.
const CHUNK_BYTES_MAX: usize = 8 << 20;

/// What implements the operations.
struct Objects {
    store: Arc<Store>,
    blobs: Blobs,
    settings: Arc<Settings>,
}

/// The service, ready to answer. Opens `objects/` in `directory` and cleans it up.
pub fn service(
    directory: &Path,
    store: &Arc<Store>,
    settings: &Arc<Settings>,
    gatekeeper: Gatekeeper,
) -> Result<S3Service, BlobError> {
    let blobs = Blobs::open(directory, settings.quotas.object_bytes)?;
    let used = catalog::all_blobs(store).map_err(BlobError::Catalog)?;
    blobs.remove_all_but(&used)?;
    let mut config = S3Config::default();
    config.xml_max_body_size = XML_BYTES_MAX;
    config.aws_chunked_stream_max_chunk_size = CHUNK_BYTES_MAX;
    config.presigned_url_max_skew_time_secs = u32::try_from(SKEW_MAX_SECONDS).unwrap_or(u32::MAX);
    config.sig_v4_allowed_services = vec!["s3".into()];
    // Nothing but presigned addresses gets here with it: the front door knows no other requests of
    // Version 2. The AWS CLI still presigns so.
    config.enable_sig_v2 = true;
    config.allow_post_signature = false;
    config.expected_region = settings.region.parse().ok();
    let (store, settings) = (Arc::clone(store), Arc::clone(settings));
    let mut builder = S3ServiceBuilder::new(Objects { store, blobs, settings });
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.set_auth(gatekeeper.clone());
    builder.set_access(gatekeeper);
    Ok(builder.build())
}

/// An error of S3 that came from below.
#[derive(Debug)]
struct Failure(S3Error);

impl From<S3Error> for Failure {
    fn from(error: S3Error) -> Self {
        Self(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        if error.is_full() {
            tracing::error!("the disk of the control plane's state is full: {error}");
            return Self(disk_full());
        }
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!("{error}: {}", source.unwrap_or_default());
        Self(s3_error!(InternalError, "The control plane failed: {}.", error))
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        let error = match error {
            BlobError::Quota { limit } => custom(
                "QuotaExceeded",
                hyper::StatusCode::INSUFFICIENT_STORAGE,
                format!("All objects together may have {limit} bytes here."),
            ),
            BlobError::Body { source } if source.is::<s3s::BodySizeLimitExceeded>() => {
                s3_error!(EntityTooLarge)
            }
            BlobError::Body { source } => {
                s3_error!(IncompleteBody, "The body could not be read: {}.", source)
            }
            error if error.is_full() => {
                tracing::error!("the disk of the objects is full: {error}");
                disk_full()
            }
            error => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!("{error}: {}", source.unwrap_or_default());
                s3_error!(InternalError, "The control plane failed: {}.", error)
            }
        };
        Self(error)
    }
}

impl From<Failure> for S3Error {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

fn disk_full() -> S3Error {
    let text = "The disk of the objects is full. Nothing was changed; make room and try again.";
    custom("InsufficientStorage", hyper::StatusCode::INSUFFICIENT_STORAGE, text.into())
}

fn custom(code: &'static str, status: hyper::StatusCode, text: String) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::Custom(code.into()), text);
    error.set_status_code(status);
    error
}
