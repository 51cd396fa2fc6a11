//! The first sector of an overlay: what it is, and of how large a disk.
//!
//! ```text
//!  magic 8 │ version u32 │ block size u32 │ disk bytes u64 │ checksum u64 │ zeroes to 512
//! ```

use super::{BLOCK_BYTES, Damage};

/// Size of the header; a disk writes it whole or not at all.
pub(super) const HEADER_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"ROTIOVRL";
const VERSION: u32 = 1;
/// What the checksum covers.
const FIELD_BYTES: usize = 24;
const END: usize = FIELD_BYTES + 8;

/// The header of an overlay of a disk.
pub(super) fn encode(disk_bytes: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let fields = MAGIC
        .into_iter()
        .chain(VERSION.to_le_bytes())
        .chain((BLOCK_BYTES as u32).to_le_bytes())
        .chain(disk_bytes.to_le_bytes());
    for (to, from) in header.iter_mut().zip(fields) {
        *to = from;
    }
    let sum = checksum(&header);
    for (to, from) in header.iter_mut().skip(FIELD_BYTES).zip(sum) {
        *to = from;
    }
    header
}

/// Whether this is the header of an overlay of a disk of `disk_bytes`.
pub(super) fn check(header: &[u8; HEADER_BYTES], disk_bytes: u64) -> Result<(), Damage> {
    let [
        m0,
        m1,
        m2,
        m3,
        m4,
        m5,
        m6,
        m7,
        v0,
        v1,
        v2,
        v3,
        _,
        _,
        _,
        _,
        d0,
        d1,
        d2,
        d3,
        d4,
        d5,
        d6,
        d7,
        ..,
    ] = *header;
    if [m0, m1, m2, m3, m4, m5, m6, m7] != MAGIC {
        return Err(Damage::NotAnOverlay);
    }
    let version = u32::from_le_bytes([v0, v1, v2, v3]);
    if version != VERSION {
        return Err(Damage::Version { version });
    }
    let sum = header.get(FIELD_BYTES..END);
    if sum != Some(&checksum(header)) {
        return Err(Damage::Header);
    }
    let found = u64::from_le_bytes([d0, d1, d2, d3, d4, d5, d6, d7]);
    if found != disk_bytes {
        return Err(Damage::OtherDisk { overlay_bytes: found, disk_bytes });
    }
    if *header != encode(disk_bytes) {
        return Err(Damage::Header); // another block size, or something behind the end
    }
    Ok(())
}

fn checksum(header: &[u8; HEADER_BYTES]) -> [u8; 8] {
    let mut checksum = [0; 8];
    let mut hasher = blake3::Hasher::new();
    hasher.update(header.get(..FIELD_BYTES).unwrap_or_default());
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}
