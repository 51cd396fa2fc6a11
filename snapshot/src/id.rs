//! What things are called by: digests of content, and random numbers for packs.

use std::fmt;

use serde::{Serialize, Serializer};

/// A BLAKE3 digest of some content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Names a snapshot: the digest of its manifest, and so of all it refers to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub Digest);

/// Names a pack. Random, because a pack is written before its content is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub [u8; 16]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of parts, one after the other.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl PackId {
    /// No pack: an unused layer.
    pub(crate) const NIL: Self = Self([0; 16]);

    /// A new name.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// What the pack's file is called, so that it is found without a search.
    pub fn file_name(&self) -> String {
        format!("{self}.pack")
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! shown_in_hex {
    ($name:ident, |$id:ident| $bytes:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $id = self;
                write_hex(f, $bytes)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

shown_in_hex!(Digest, |id| &id.0);
shown_in_hex!(SnapshotId, |id| &id.0.0);
shown_in_hex!(PackId, |id| &id.0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shown_in_hex_and_random_ones_differ() {
        assert_eq!(PackId([0xab; 16]).file_name(), format!("{}.pack", "ab".repeat(16)));
        assert_ne!(PackId::random().unwrap(), PackId::random().unwrap());
        assert_eq!(Digest::of(b"ab"), Digest::of_parts(&[b"a", b"b"]));
        assert!(SnapshotId(Digest::of(b"")).to_string().starts_with("af1349b9f5f9a1a6"));
    }
}
