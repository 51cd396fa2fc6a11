//! Block records, verified once and kept while their blocks are being loaded.

use crate::id::Digest;
use crate::layout::{BlockIndex, PAGES_PER_BLOCK};
use crate::manifest::{BlockEntry, Layers};
use crate::pack::{PACK_HEADER_BYTES, Pack};
use crate::page_set::PageSet;
use crate::record::{self, Piece, RecordError};
use crate::source::Fault;

use super::room;

/// Records that are kept: blocks that vCPUs touch in turn. At most 1.2 MiB, if they are hostile.
const KEPT_MAX: usize = 32;

pub(super) struct Records {
    kept: Vec<Kept>,
    encoded: Vec<u8>,
}

struct Kept {
    /// None if the last attempt to load a record failed.
    block: Option<BlockIndex>,
    pieces: Vec<Piece>,
}

impl Records {
    pub(super) fn new() -> Self {
        let kept = || Kept { block: None, pieces: Vec::new() };
        let kept = (0..KEPT_MAX).map(|_| kept()).collect();
        Self { kept, encoded: Vec::new() }
    }

    /// The pieces of a block of an image with so many pages.
    pub(super) fn get(
        &mut self,
        pack: Option<&Pack>,
        entry: &BlockEntry,
        layers: &Layers,
        page_count: u32,
    ) -> Result<&[Piece], Fault> {
        let place = entry.block.0 as usize % KEPT_MAX;
        let kept = self.kept.get_mut(place).expect("a remainder is below its divisor");
        if kept.block != Some(entry.block) {
            kept.block = None;
            read(pack, entry, &mut self.encoded, &mut kept.pieces)?;
            check(&kept.pieces, entry, layers, page_count).map_err(Fault::Record)?;
            kept.block = Some(entry.block);
        }
        Ok(&kept.pieces)
    }
}

fn read(
    pack: Option<&Pack>,
    entry: &BlockEntry,
    encoded: &mut Vec<u8>,
    pieces: &mut Vec<Piece>,
) -> Result<(), Fault> {
    let pack = pack.ok_or(Fault::PackAbsent)?;
    // A manifest has no entry with a record of more than 512 pieces.
    let encoded = room(encoded, entry.record_bytes as usize);
    pack.content.read_exact_at(encoded, entry.record_offset).map_err(Fault::Read)?;
    let (expected, found) = (entry.digest, Digest::of(encoded));
    if expected != found {
        return Err(Fault::Digest { expected, found });
    }
    record::decode(encoded, pieces).map_err(Fault::Record)
}

/// What a record must be to its entry and to the snapshot.
fn check(
    pieces: &[Piece],
    entry: &BlockEntry,
    layers: &Layers,
    page_count: u32,
) -> Result<(), RecordError> {
    let pages = record::pages(pieces);
    if pages.count() != usize::from(entry.page_count) {
        let reason = "as many pages as the manifest says";
        return Err(invalid("pages", pages.count() as u64, reason));
    }
    if record::layers(pieces) != entry.layers {
        let reason = "the layers that the manifest says";
        return Err(invalid("layers", record::layers(pieces).into(), reason));
    }
    let in_image = page_count.saturating_sub(entry.block.first_page().0) as usize;
    if in_image < PAGES_PER_BLOCK && !pages.minus(&PageSet::first(in_image)).is_empty() {
        return Err(invalid("pages", in_image as u64, "no page is behind the end of the image"));
    }
    for piece in pieces {
        let pack_bytes = layers.get(piece.layer).map_or(0, |layer| layer.pack_bytes);
        if piece.offset < PACK_HEADER_BYTES as u64 || piece.end() > pack_bytes {
            return Err(invalid("offset", piece.offset, "inside of its pack"));
        }
    }
    Ok(())
}

fn invalid(field: &'static str, value: u64, reason: &'static str) -> RecordError {
    RecordError::Invalid { field, value, reason }
}
