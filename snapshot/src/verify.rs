//! Verifying all of a snapshot, as loading verifies parts of it.

use crate::image_reader::ImageReader;
use crate::layout::BlockIndex;
use crate::record::Piece;
use crate::snapshot::Snapshot;
use crate::source::SourceError;

/// Faults that are listed; a snapshot with more of them is not worth a longer list.
pub const FAULTS_LISTED_MAX: usize = 100;

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Blocks that have been verified.
    pub done_blocks: u64,
    /// Blocks of all images that are not wholly zero.
    pub total_blocks: u64,
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Verification {
    /// Blocks that were verified.
    pub blocks: u64,
    /// Their pages.
    pub pages: u64,
    /// Bytes that were read for them from packs.
    pub stored_bytes: u64,
    /// Pieces or records that are not as they should be.
    pub fault_count: u64,
    /// The first [`FAULTS_LISTED_MAX`] of them.
    pub faults: Vec<SourceError>,
}

impl Verification {
    /// Whether all is as it should be.
    pub fn is_intact(&self) -> bool {
        self.fault_count == 0
    }

    fn note(&mut self, fault: SourceError) {
        self.fault_count = self.fault_count.saturating_add(1);
        if self.faults.len() < FAULTS_LISTED_MAX {
            self.faults.push(fault);
        }
    }
}

/// Reads and verifies every block of every image. `progress` hears of each block.
pub fn verify(snapshot: &Snapshot, mut progress: impl FnMut(Progress)) -> Verification {
    let images = &snapshot.manifest().images;
    let total_blocks = images.iter().map(|index| index.blocks.len() as u64).sum();
    let mut found = Verification::default();
    for index in images {
        // The manifest was checked when the snapshot was opened: it has this image.
        let Ok(mut reader) = snapshot.image(&index.image.name) else { continue };
        for entry in &index.blocks {
            verify_block(&mut reader, entry.block, &mut found);
            found.blocks = found.blocks.saturating_add(1);
            progress(Progress { done_blocks: found.blocks, total_blocks });
        }
    }
    found
}

fn verify_block(reader: &mut ImageReader, block: BlockIndex, found: &mut Verification) {
    let pieces: Vec<Piece> = match reader.pieces(block) {
        Ok(pieces) => pieces.to_vec(),
        Err(fault) => return found.note(fault),
    };
    for piece in pieces {
        found.pages = found.pages.saturating_add(piece.used.count_ones().into());
        found.stored_bytes = found.stored_bytes.saturating_add(piece.stored_bytes.into());
        if let Err(fault) = reader.check_piece(block, &piece) {
            found.note(fault);
        }
    }
}
