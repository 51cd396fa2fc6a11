//! The fixed header: what is checked before anything else is decoded.

use crate::id::Digest;
use crate::layout::{MANIFEST_BYTES_MAX, PAGE_BYTES};
use crate::wire::{Cursor, Put, Truncated};

use super::ManifestError;

/// The first bytes of a manifest.
pub const MAGIC: [u8; 8] = *b"RotiferS";
/// The version of everything in the manifest and in packs.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 96;
/// Where the manifest's digest is in it. The digest covers all other bytes of the manifest.
const DIGEST_AT: usize = 64;

/// What kind of CPU the guest runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// ARM64.
    Aarch64,
    /// Only for tests of the format on other hosts.
    X86_64,
}

/// The fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Of the guest.
    pub architecture: Architecture,
    /// How many sections follow.
    pub section_count: u32,
    /// Bytes of the whole manifest.
    pub total_bytes: u64,
    /// Digest of the section with the CPU's features, so that hosts are compared at a glance.
    pub cpu_digest: Digest,
    /// Digest of all other bytes of the manifest; names the snapshot.
    pub digest: Digest,
}

impl Architecture {
    /// What this program was built for.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    fn number(self) -> u32 {
        match self {
            Self::Aarch64 => 1,
            Self::X86_64 => 2,
        }
    }

    fn from_number(number: u32) -> Result<Self, ManifestError> {
        match number {
            1 => Ok(Self::Aarch64),
            2 => Ok(Self::X86_64),
            found => Err(ManifestError::Architecture { found }),
        }
    }
}

impl Header {
    /// Reads and checks the header; `bytes` may end behind it.
    ///
    /// # Errors
    /// Whatever makes this another file, or one of another version or for other units.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let mut cursor = Cursor::new(bytes);
        let magic = cursor.array().map_err(truncated)?;
        if magic != MAGIC {
            return Err(ManifestError::Magic { found: magic });
        }
        let version = cursor.u32().map_err(truncated)?;
        if version != FORMAT_VERSION {
            return Err(ManifestError::Version { found: version });
        }
        let architecture = Architecture::from_number(cursor.u32().map_err(truncated)?)?;
        let page_bytes = cursor.u32().map_err(truncated)?;
        if page_bytes as usize != PAGE_BYTES {
            return Err(ManifestError::PageBytes { found: page_bytes });
        }
        let section_count = cursor.u32().map_err(truncated)?;
        let total_bytes = cursor.u64().map_err(truncated)?;
        if total_bytes > MANIFEST_BYTES_MAX {
            let limit = MANIFEST_BYTES_MAX;
            return Err(ManifestError::TooLarge { bytes: total_bytes, limit });
        }
        let cpu_digest = Digest(cursor.array().map_err(truncated)?);
        let digest = Digest(cursor.array().map_err(truncated)?);
        Ok(Self { architecture, section_count, total_bytes, cpu_digest, digest })
    }

    /// Checks length and digest of the whole manifest.
    pub(super) fn check_digest(&self, bytes: &[u8]) -> Result<(), ManifestError> {
        let (expected, found) = (self.total_bytes, bytes.len() as u64);
        if expected != found {
            return Err(ManifestError::Length { expected, found });
        }
        let (expected, found) = (self.digest, digest_of(bytes));
        if expected != found {
            return Err(ManifestError::Digest { expected, found });
        }
        Ok(())
    }

    /// Appends the header, with a digest yet to be filled in by [`seal`].
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_u32(self.architecture.number());
        out.put_u32(PAGE_BYTES as u32);
        out.put_u32(self.section_count);
        out.put_u64(self.total_bytes);
        out.put(&self.cpu_digest.0);
        out.put(&self.digest.0);
    }
}

/// Puts the digest of a finished manifest into its header.
pub(super) fn seal(bytes: &mut [u8]) -> Digest {
    let digest = digest_of(bytes);
    if let Some(place) = bytes.get_mut(DIGEST_AT..HEADER_BYTES) {
        place.copy_from_slice(&digest.0);
    }
    digest
}

fn digest_of(bytes: &[u8]) -> Digest {
    let before = bytes.get(..DIGEST_AT).unwrap_or_default();
    let after = bytes.get(HEADER_BYTES..).unwrap_or_default();
    Digest::of_parts(&[before, after])
}

fn truncated(source: Truncated) -> ManifestError {
    ManifestError::Truncated { section: "the header".into(), source }
}
