//! What is kept of an object besides its content: headers and checksums.

use std::collections::BTreeMap;

use s3s::checksum::ChecksumHasher;
use s3s::dto::{Checksum, ETag, ETagCondition};
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};

/// The longest sum of names and values of user metadata: S3's.
const METADATA_BYTES_MAX: usize = 2048;

/// Headers that are given back as they came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    pub content_type: Option<String>,
    pub content_disposition: Option<String>,
    pub content_encoding: Option<String>,
    pub content_language: Option<String>,
    pub cache_control: Option<String>,
    pub expires: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub checksums: Checksums,
}

/// Checksums of the whole object, in base64.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checksums {
    pub crc32: Option<String>,
    pub crc32c: Option<String>,
    pub crc64nvme: Option<String>,
    pub sha1: Option<String>,
    pub sha256: Option<String>,
}

/// Takes the headers from the input of an operation.
macro_rules! attributes_of {
    ($input:expr) => {
        $crate::s3::attributes::Attributes {
            content_type: $input.content_type.clone(),
            content_disposition: $input.content_disposition.clone(),
            content_encoding: $crate::s3::attributes::kept_encoding(
                $input.content_encoding.as_deref(),
            ),
            content_language: $input.content_language.clone(),
            cache_control: $input.cache_control.clone(),
            expires: $input.expires.clone(),
            metadata: $input.metadata.clone().unwrap_or_default().into_iter().collect(),
            checksums: Default::default(),
        }
    };
}
pub(super) use attributes_of;

/// Takes the checksums that a client sent.
macro_rules! checksums_of {
    ($input:expr) => {
        $crate::s3::attributes::Checksums {
            crc32: $input.checksum_crc32.clone(),
            crc32c: $input.checksum_crc32c.clone(),
            crc64nvme: $input.checksum_crc64nvme.clone(),
            sha1: $input.checksum_sha1.clone(),
            sha256: $input.checksum_sha256.clone(),
        }
    };
}
pub(super) use checksums_of;

/// Refuses what is asked for and not supported, by name.
macro_rules! refuse {
    ($input:expr, $($field:ident),+ $(,)?) => {
        $(if $input.$field.is_some() {
            let name = stringify!($field);
            return Err(s3s::s3_error!(NotImplemented, "{} is not supported here", name));
        })+
    };
}
pub(super) use refuse;

/// How the content is encoded, without how it was sent.
pub fn kept_encoding(sent: Option<&str>) -> Option<String> {
    let words = sent?.split(',').map(str::trim).filter(|word| *word != "aws-chunked");
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then(|| words.join(","))
}

impl Attributes {
    pub fn check(&self) -> S3Result<()> {
        let bytes: usize = self.metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > METADATA_BYTES_MAX {
            return Err(s3_error!(MetadataTooLarge));
        }
        Ok(())
    }
}

/// A hasher of the MD5, which makes the ETag, and of what the client's checksums need: those it
/// sent ahead, and the one that it says comes in the trailer.
pub fn hasher(expected: &Checksums, trailer: Option<&str>) -> S3Result<ChecksumHasher> {
    let mut hasher =
        ChecksumHasher { md5: Some(s3s::crypto::Md5::default()), ..Default::default() };
    let trailer = trailer.unwrap_or_default();
    let wants = |known: &Option<String>, name: &str| known.is_some() || trailer == name;
    hasher.crc32 = wants(&expected.crc32, "x-amz-checksum-crc32").then(Default::default);
    hasher.crc32c = wants(&expected.crc32c, "x-amz-checksum-crc32c").then(Default::default);
    hasher.crc64nvme =
        wants(&expected.crc64nvme, "x-amz-checksum-crc64nvme").then(Default::default);
    hasher.sha1 = wants(&expected.sha1, "x-amz-checksum-sha1").then(Default::default);
    hasher.sha256 = wants(&expected.sha256, "x-amz-checksum-sha256").then(Default::default);
    let is_known = [
        "",
        "x-amz-checksum-crc32",
        "x-amz-checksum-crc32c",
        "x-amz-checksum-crc64nvme",
        "x-amz-checksum-sha1",
        "x-amz-checksum-sha256",
    ]
    .contains(&trailer);
    if is_known {
        return Ok(hasher);
    }
    Err(s3_error!(NotImplemented, "The trailer {} is not supported here", trailer))
}

impl Checksums {
    pub fn of(computed: &Checksum) -> Self {
        checksums_of!(computed)
    }

    /// What the client sent has to be what arrived.
    pub fn check(&self, arrived: &Self) -> S3Result<()> {
        let pairs = [
            (&self.crc32, &arrived.crc32, "CRC32"),
            (&self.crc32c, &arrived.crc32c, "CRC32C"),
            (&self.crc64nvme, &arrived.crc64nvme, "CRC64NVME"),
            (&self.sha1, &arrived.sha1, "SHA1"),
            (&self.sha256, &arrived.sha256, "SHA256"),
        ];
        for (sent, arrived, name) in pairs {
            if sent.is_some() && sent != arrived {
                return Err(s3_error!(
                    BadDigest,
                    "The {} you specified did not match the calculated checksum.",
                    name
                ));
            }
        }
        Ok(())
    }
}

/// Whether an object of this ETag, or none, is what a condition wants.
pub fn fulfils(condition: &ETagCondition, etag: Option<&str>) -> bool {
    match (condition, etag) {
        (_, None) => false,
        (ETagCondition::Any, Some(_)) => true,
        (ETagCondition::ETag(ETag::Strong(wanted) | ETag::Weak(wanted)), Some(etag)) => {
            wanted == etag
        }
    }
}

impl Checksums {
    /// Those that came after the body.
    pub fn of_trailer(headers: &hyper::HeaderMap) -> Self {
        let value =
            |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self {
            crc32: value("x-amz-checksum-crc32"),
            crc32c: value("x-amz-checksum-crc32c"),
            crc64nvme: value("x-amz-checksum-crc64nvme"),
            sha1: value("x-amz-checksum-sha1"),
            sha256: value("x-amz-checksum-sha256"),
        }
    }
}
