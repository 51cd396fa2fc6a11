//! What lies below the image of a disk: a file that the host provides and a snapshot has no byte of.
//!
//! A snapshot remembers a fingerprint of it, so that a machine is not taken up on another base. That
//! is a check against mistakes (another image, a rebuilt one, one that was mounted for writing), and
//! reads a bounded number of bytes, because it is on the way of every resume. Whoever changes other
//! bytes of a base than those goes unnoticed.

use std::io;

use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::layout::{IMAGE_BYTES_MAX, PAGE_BYTES};
use crate::manifest::{MachineSection, Manifest};
use crate::name::Name;
use crate::pack::ReadAt;
use crate::section::{LoadError, Tag};

/// Bytes at the beginning that count: there file systems and partition tables have identifiers, and
/// the time of their last change.
const HEAD_BYTES: u64 = 64 << 10;
/// Further places that count, a page each, at equal distances; the last is the end of the disk.
const SAMPLE_COUNT: u64 = 16;

/// A base as a snapshot remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBase {
    /// The length of the disk.
    pub bytes: u64,
    /// Of its length and some of its content.
    pub fingerprint: Digest,
}

/// The body of the section.
#[derive(Serialize, Deserialize)]
struct State {
    bytes: u64,
    fingerprint: [u8; 32],
}

impl DiskBase {
    /// Kind and version of the section, which is named as the image is.
    pub const TAG: Tag = Tag { kind: *b"BASE", version: 1 };

    /// Looks at the first `bytes` bytes of a base.
    ///
    /// # Errors
    /// It cannot be read, or is shorter.
    pub fn of(content: &dyn ReadAt, bytes: u64) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes.to_le_bytes());
        let mut buffer = vec![0; HEAD_BYTES.min(bytes) as usize];
        content.read_exact_at(&mut buffer, 0)?;
        hasher.update(&buffer);
        buffer.resize(PAGE_BYTES, 0);
        if let Some(last) = bytes.checked_sub(PAGE_BYTES as u64).filter(|_| bytes > HEAD_BYTES) {
            for sample in 1..=SAMPLE_COUNT {
                let offset = last.saturating_mul(sample) / SAMPLE_COUNT;
                content.read_exact_at(&mut buffer, offset)?;
                hasher.update(&buffer);
            }
        }
        Ok(Self { bytes, fingerprint: Digest(*hasher.finalize().as_bytes()) })
    }

    /// The section that remembers the base of an image.
    pub fn section(&self, image: Name) -> MachineSection {
        let Self { bytes, fingerprint } = *self;
        let state = State { bytes, fingerprint: fingerprint.0 };
        let bytes =
            postcard::to_stdvec(&state).expect("encoding into memory meets no I/O that can fail");
        MachineSection { name: image, tag: Self::TAG, bytes }
    }

    /// Reads such a section.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn decode(section: &MachineSection) -> Result<Self, LoadError> {
        let tag = section.tag;
        let invalid = |field, value, reason| Err(LoadError::Invalid { tag, field, value, reason });
        if tag != Self::TAG {
            return invalid("version", tag.version.into(), "this program knows version 1");
        }
        let (State { bytes, fingerprint }, rest) = postcard::take_from_bytes(&section.bytes)
            .map_err(|source| LoadError::Decode { tag, source })?;
        if !rest.is_empty() {
            return Err(LoadError::LeftOver { tag, count: rest.len() });
        }
        if bytes > IMAGE_BYTES_MAX {
            return invalid("bytes", bytes, "at most 32 GiB");
        }
        Ok(Self { bytes, fingerprint: Digest(fingerprint) })
    }
}

impl Manifest {
    /// The section about the base of a disk's image.
    pub fn disk_base(&self, image: &Name) -> Option<&MachineSection> {
        let is_base = |section: &&MachineSection| section.tag.kind == DiskBase::TAG.kind;
        self.machine.iter().filter(is_base).find(|section| section.name == *image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Digest {
        DiskBase::of(&bytes.to_vec(), bytes.len() as u64).unwrap().fingerprint
    }

    #[test]
    fn another_length_head_or_end_is_another_base() {
        for len in [512, HEAD_BYTES as usize, (1 << 20) + 512] {
            let base = vec![7; len];
            let mut others = vec![vec![7; len - 1], vec![7; len + 1]];
            for at in [0, len.min(HEAD_BYTES as usize) - 1, len - 1] {
                let mut other = base.clone();
                other[at] = 8;
                others.push(other);
            }
            assert_eq!(of(&base), of(&vec![7; len]));
            for (number, other) in others.iter().enumerate() {
                assert_ne!(of(&base), of(other), "{len} bytes, other {number}");
            }
        }
        let error = DiskBase::of(&vec![0; 100], 101).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_section_comes_back_and_what_cannot_be_one_is_refused() {
        let base = DiskBase { bytes: 4096, fingerprint: Digest([9; 32]) };
        let good = base.section(Name::new("disk").unwrap());
        assert_eq!(DiskBase::decode(&good).unwrap(), base);
        let refusal = |change: fn(&mut MachineSection)| {
            let mut section = good.clone();
            change(&mut section);
            DiskBase::decode(&section).unwrap_err().to_string()
        };
        assert!(refusal(|it| it.tag.version = 2).contains("version = 2"));
        assert!(refusal(|it| it.bytes.push(0)).contains("1 bytes too many"));
        let cut = refusal(|it| it.bytes.truncate(9));
        assert!(cut.contains("decode section BASE v1"), "{cut}");
        let large = DiskBase { bytes: IMAGE_BYTES_MAX + 1, ..base };
        let section = large.section(Name::new("disk").unwrap());
        assert!(DiskBase::decode(&section).unwrap_err().to_string().contains("at most 32 GiB"));
    }
}
