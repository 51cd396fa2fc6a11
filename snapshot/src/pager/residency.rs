//! What of the image is in memory.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::plan::ChunkRun;
use crate::layout::{
    BlockIndex, CHUNKS_PER_BLOCK, ChunkIndex, PAGES_PER_BLOCK, PAGES_PER_CHUNK, PageIndex,
};

/// Which chunks were loaded and which pages were given back since. The pager writes it; whoever
/// saves the machine reads it while the machine is paused.
#[derive(Debug)]
pub struct Residency {
    /// By block, a bit for each chunk.
    loaded: Box<[AtomicU32]>,
    /// By page.
    removed: Box<[AtomicU64]>,
}

const WORD_BITS: u32 = u64::BITS;
const WORDS_PER_BLOCK: usize = PAGES_PER_BLOCK / WORD_BITS as usize;

impl Residency {
    pub(super) fn new(block_count: u32) -> Self {
        let words = (block_count as usize).saturating_mul(WORDS_PER_BLOCK);
        Self {
            loaded: std::iter::repeat_with(Default::default).take(block_count as usize).collect(),
            // SAFETY: an atomic integer that is all zeroes is a zero. Allocated as zeroes, which the
            // kernel gives page by page: nobody need write 4 KiB for each 128 MiB of memory.
            removed: unsafe { Box::new_zeroed_slice(words).assume_init() },
        }
    }

    /// The chunks of a block whose content was put into memory: bit `n` stands for chunk `n` of
    /// the block. Memory says what they hold; a page that is not resident is zero, or the shared
    /// image's. What is not loaded is in the image only, whatever the guest did so far.
    pub fn loaded_chunks(&self, block: BlockIndex) -> u32 {
        self.loaded.get(block.0 as usize).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Whether a chunk was loaded.
    pub fn is_loaded(&self, chunk: ChunkIndex) -> bool {
        self.loaded_chunks(chunk.block()) & bit(chunk) != 0
    }

    /// The chunks of a block of which the guest gave pages back while memory was being loaded.
    pub(super) fn removed_chunks(&self, block: BlockIndex) -> u32 {
        let chunks = (0..CHUNKS_PER_BLOCK).map(|number| block.chunk(number));
        let is_removed = |chunk: &ChunkIndex| {
            let first = chunk.first_page().0;
            (first..first.saturating_add(PAGES_PER_CHUNK as u32))
                .any(|page| self.is_removed(PageIndex(page)))
        };
        chunks.filter(is_removed).fold(0, |mask, chunk| mask | bit(chunk))
    }

    /// Whether the guest gave this page back (a balloon) while its memory was being loaded: it has no
    /// content of the image any more, and is zero if its chunk is not loaded.
    pub fn is_removed(&self, page: PageIndex) -> bool {
        let word = self.removed.get((page.0 / WORD_BITS) as usize);
        let bits = word.map_or(0, |word| word.load(Ordering::Acquire));
        bits.checked_shr(page.0 % WORD_BITS).unwrap_or(0) & 1 != 0
    }

    pub(super) fn set_loaded(&self, run: ChunkRun) {
        for chunk in run.chunks() {
            if let Some(word) = self.loaded.get(chunk.block().0 as usize) {
                word.fetch_or(bit(chunk), Ordering::Release);
            }
        }
    }

    pub(super) fn set_block_loaded(&self, block: BlockIndex) {
        self.set_chunks_loaded(block, u32::MAX);
    }

    /// Bit `n` stands for chunk `n` of the block.
    pub(super) fn set_chunks_loaded(&self, block: BlockIndex, chunks: u32) {
        if let Some(word) = self.loaded.get(block.0 as usize) {
            word.fetch_or(chunks, Ordering::Release);
        }
    }

    pub(super) fn set_removed(&self, page: PageIndex) {
        if let Some(word) = self.removed.get((page.0 / WORD_BITS) as usize) {
            word.fetch_or(1_u64.wrapping_shl(page.0 % WORD_BITS), Ordering::Release);
        }
    }
}

/// The bit of a chunk in its block's word.
pub(super) fn bit(chunk: ChunkIndex) -> u32 {
    1_u32.wrapping_shl(chunk.in_block() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_pages_are_remembered_each_for_itself() {
        let residency = Residency::new(3);
        residency.set_loaded(ChunkRun { first: ChunkIndex(31), count: 2 });
        assert_eq!(residency.loaded_chunks(BlockIndex(0)), 1 << 31);
        assert_eq!(residency.loaded_chunks(BlockIndex(1)), 1);
        assert!(residency.is_loaded(ChunkIndex(32)) && !residency.is_loaded(ChunkIndex(33)));
        residency.set_removed(PageIndex(1000));
        assert!(residency.is_removed(PageIndex(1000)) && !residency.is_removed(PageIndex(1001)));
    }

    #[test]
    fn beyond_the_image_nothing_is_loaded() {
        let residency = Residency::new(1);
        residency.set_loaded(ChunkRun { first: ChunkIndex(32), count: 1 });
        residency.set_removed(PageIndex(512));
        assert!(!residency.is_loaded(ChunkIndex(32)) && !residency.is_removed(PageIndex(512)));
    }
}
