//! The first sector of an overlay: what it is, of how large a disk, and what lies below it.
//!
//! ```text
//!  version 1: magic 8 │ version u32 │ block size u32 │ disk bytes u64 │ checksum u64 │ zeroes to 512
//!  version 2: magic 8 │ version u32 │ block size u32 │ disk bytes u64 │ snapshot 32 │ checksum u64 │ ...
//! ```

use rotifer_snapshot::{Digest, SnapshotId};

use super::{BLOCK_BYTES, Damage};

/// Size of the header; a disk writes it whole or not at all.
pub(super) const HEADER_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"ROTIOVRL";
/// The base lies below.
const OVER_BASE: u32 = 1;
/// The disk of a snapshot lies below, and the base below that.
const OVER_SNAPSHOT: u32 = 2;
/// Where fields are, and what the checksum covers.
const VERSION_AT: usize = 8;
const DISK_BYTES_AT: usize = 16;
const SNAPSHOT_AT: usize = 24;
const OVER_BASE_FIELD_BYTES: usize = 24;
const OVER_SNAPSHOT_FIELD_BYTES: usize = 56;

/// What an overlay says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) disk_bytes: u64,
    /// The snapshot that lies between it and the base, if one does.
    pub(super) below: Option<SnapshotId>,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let (version, field_bytes) = match self.below {
            None => (OVER_BASE, OVER_BASE_FIELD_BYTES),
            Some(_) => (OVER_SNAPSHOT, OVER_SNAPSHOT_FIELD_BYTES),
        };
        let mut header = [0; HEADER_BYTES];
        let fields = MAGIC
            .into_iter()
            .chain(version.to_le_bytes())
            .chain((BLOCK_BYTES as u32).to_le_bytes())
            .chain(self.disk_bytes.to_le_bytes())
            .chain(self.below.into_iter().flat_map(|snapshot| snapshot.0.0));
        for (to, from) in header.iter_mut().zip(fields) {
            *to = from;
        }
        let sum = checksum(&header, field_bytes);
        for (to, from) in header.iter_mut().skip(field_bytes).zip(sum) {
            *to = from;
        }
        header
    }

    pub(super) fn decode(header: &[u8; HEADER_BYTES]) -> Result<Self, Damage> {
        if field::<8>(header, 0) != MAGIC {
            return Err(Damage::NotAnOverlay);
        }
        let (below, field_bytes) = match u32::from_le_bytes(field(header, VERSION_AT)) {
            OVER_BASE => (None, OVER_BASE_FIELD_BYTES),
            OVER_SNAPSHOT => {
                let snapshot = SnapshotId(Digest(field(header, SNAPSHOT_AT)));
                (Some(snapshot), OVER_SNAPSHOT_FIELD_BYTES)
            }
            version => return Err(Damage::Version { version }),
        };
        if field(header, field_bytes) != checksum(header, field_bytes) {
            return Err(Damage::Header);
        }
        let disk_bytes = u64::from_le_bytes(field(header, DISK_BYTES_AT));
        let decoded = Self { disk_bytes, below };
        if *header != decoded.encode() {
            return Err(Damage::Header); // another block size, or something behind the end
        }
        Ok(decoded)
    }

    /// Whether an overlay with this header is one over what `self` says.
    pub(super) fn check(self, found: Self) -> Result<(), Damage> {
        let (overlay_bytes, disk_bytes) = (found.disk_bytes, self.disk_bytes);
        if overlay_bytes != disk_bytes {
            return Err(Damage::OtherDisk { overlay_bytes, disk_bytes });
        }
        match found.below {
            below if below == self.below => Ok(()),
            Some(snapshot) => Err(Damage::OverSnapshot { snapshot }),
            None => Err(Damage::OverBase),
        }
    }
}

fn field<const BYTES: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; BYTES] {
    let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
    *bytes.expect("all fields lie inside of the header")
}

fn checksum(header: &[u8; HEADER_BYTES], field_bytes: usize) -> [u8; 8] {
    let mut checksum = [0; 8];
    let mut hasher = blake3::Hasher::new();
    hasher.update(header.get(..field_bytes).unwrap_or_default());
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}
