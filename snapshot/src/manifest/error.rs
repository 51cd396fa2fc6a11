//! Why bytes are not a manifest.

use crate::id::Digest;
use crate::name::NameError;
use crate::wire::Truncated;

use super::FORMAT_VERSION;

/// Why bytes are not a manifest, or a manifest is none that may be written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is something else.
    #[error("this is no snapshot manifest: it begins with {found:02x?}")]
    Magic {
        /// The first bytes.
        found: [u8; 8],
    },
    /// From another time.
    #[error("the manifest has format version {found}, and this program reads {FORMAT_VERSION}")]
    Version {
        /// The version.
        found: u32,
    },
    /// A guest that we do not know.
    #[error("the manifest is for architecture {found}, which is unknown")]
    Architecture {
        /// The number.
        found: u32,
    },
    /// Counted in other units.
    #[error("the manifest counts in pages of {found} bytes, and this program in pages of 4096")]
    PageBytes {
        /// The unit.
        found: u32,
    },
    /// Cut, or something is appended.
    #[error("the manifest should have {expected} bytes and has {found}")]
    Length {
        /// What the header says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// More than anybody may make us read.
    #[error("a manifest of {bytes} bytes is larger than {limit} bytes")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It was changed.
    #[error("the manifest's content has digest {found}, and its header says {expected}")]
    Digest {
        /// What the header says.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
    /// The header promises another CPU than the section has.
    #[error("the CPU features have digest {found}, and the header says {expected}")]
    CpuDigest {
        /// What the header says.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
    /// A section, or the list of sections, ends too early.
    #[error("read {section} of the manifest")]
    Truncated {
        /// What was read.
        section: String,
        /// How much is missing.
        #[source]
        source: Truncated,
    },
    /// A section that this version does not have at this place.
    #[error("the manifest has section {found} where {expected} should be")]
    Unknown {
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// Bytes that nobody consumed.
    #[error("{section} of the manifest has {count} bytes too many")]
    LeftOver {
        /// Where.
        section: String,
        /// How many.
        count: usize,
    },
    /// A name that is none.
    #[error("read {section} of the manifest")]
    Name {
        /// Where.
        section: String,
        /// The name.
        #[source]
        source: NameError,
    },
    /// A value that no snapshot has.
    #[error("{section} of the manifest: {field} = {value} is not possible: {reason}")]
    Invalid {
        /// Where.
        section: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Which rule it breaks.
        reason: &'static str,
    },
}
