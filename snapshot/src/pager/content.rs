//! The content of memory on its way: from the source, verified, into missing pages.

use std::io;

use super::{
    plan::ChunkRun,
    residency::{Residency, bit},
    space::Piece,
    userfault::{Filled, LazyMemory},
};
use crate::{
    layout::{
        BLOCK_BYTES, BlockIndex, CHUNK_BYTES, CHUNKS_PER_BLOCK, ChunkIndex, PAGE_BYTES,
        PAGES_PER_BLOCK, PAGES_PER_CHUNK, PageIndex,
    },
    page_set::PageSet,
    source::{PageSource, SourceError},
};

/// What is to be loaded, as far as the source was asked, and what of it is not in memory.
pub(super) struct DataMap {
    /// By block: the chunks that are not all zeroes, once that is known.
    blocks: Box<[Option<u32>]>,
    unknown_blocks: usize,
    missing_chunks: u64,
}

impl DataMap {
    pub fn new(block_count: u32) -> Self {
        let blocks: Box<[Option<u32>]> = std::iter::repeat_n(None, block_count as usize).collect();
        Self { unknown_blocks: blocks.len(), blocks, missing_chunks: 0 }
    }

    /// Whether a chunk holds anything but zeroes.
    pub fn has_data(
        &mut self,
        chunk: ChunkIndex,
        source: &mut dyn PageSource,
    ) -> Result<bool, SourceError> {
        let block = chunk.block();
        let chunks = match self.known(block) {
            Some(chunks) => chunks,
            None => {
                let chunks = chunks_of(block, &source.pages(block)?);
                self.learn(block, chunks);
                chunks
            }
        };
        Ok(chunks & bit(chunk) != 0)
    }

    /// Takes note of chunks that are in memory now.
    pub fn loaded(&mut self, run: ChunkRun) {
        let has_data = |chunk: &ChunkIndex| {
            self.known(chunk.block()).is_some_and(|chunks| chunks & bit(*chunk) != 0)
        };
        let count = run.chunks().filter(has_data).count() as u64;
        self.missing_chunks = self.missing_chunks.saturating_sub(count);
    }

    /// Whether all that is not in memory is zero.
    pub fn is_exhausted(&self) -> bool {
        self.unknown_blocks == 0 && self.missing_chunks == 0
    }

    /// How many of the first chunks of a run are zero and not in memory.
    pub fn zeroes(
        &mut self,
        run: ChunkRun,
        residency: &Residency,
        source: &mut dyn PageSource,
    ) -> Result<u32, SourceError> {
        let mut count = 0_u32;
        for chunk in run.chunks() {
            if residency.is_loaded(chunk) || self.has_data(chunk, source)? {
                break;
            }
            count = count.saturating_add(1);
        }
        Ok(count)
    }

    /// Whether anybody has asked for this block.
    pub fn is_known(&self, block: BlockIndex) -> bool {
        self.known(block).is_some()
    }

    fn known(&self, block: BlockIndex) -> Option<u32> {
        self.blocks.get(block.0 as usize).copied().flatten()
    }

    /// Takes note of the chunks of a block that are not all zeroes.
    pub fn learn(&mut self, block: BlockIndex, chunks: u32) {
        if let Some(place @ None) = self.blocks.get_mut(block.0 as usize) {
            *place = Some(chunks);
            self.unknown_blocks = self.unknown_blocks.saturating_sub(1);
            self.missing_chunks =
                self.missing_chunks.saturating_add(u64::from(chunks.count_ones()));
        }
    }
}

/// Chunks that were loaded and are not in memory yet: neighbours in one block, so that they get
/// there by one call.
pub(super) struct Stage {
    buffer: Box<[u8]>,
    first: ChunkIndex,
    count: u32,
    /// The pages that are not zero, counted from the first chunk's first.
    pages: PageSet,
}

impl Stage {
    pub fn new() -> Self {
        let buffer = vec![0; BLOCK_BYTES].into_boxed_slice();
        Self { buffer, first: ChunkIndex(0), count: 0, pages: PageSet::EMPTY }
    }

    /// What is staged; none if nothing is.
    pub fn run(&self) -> Option<ChunkRun> {
        (self.count > 0).then_some(ChunkRun { first: self.first, count: self.count })
    }

    pub fn contains(&self, chunk: ChunkIndex) -> bool {
        self.run().is_some_and(|run| run.chunks().any(|staged| staged == chunk))
    }

    /// Whether the chunk can go by the same call: it follows, in the same block.
    pub fn accepts(&self, chunk: ChunkIndex) -> bool {
        let Some(run) = self.run() else { return true };
        let next = run.first.0.saturating_add(run.count);
        chunk.0 == next && chunk.block() == run.first.block()
    }

    /// Loads a chunk that is [accepted](Self::accepts) behind the others.
    pub fn load(
        &mut self,
        chunk: ChunkIndex,
        source: &mut dyn PageSource,
    ) -> Result<(), SourceError> {
        if self.count == 0 {
            self.first = chunk;
            self.pages = PageSet::EMPTY;
        }
        let number = self.count as usize % CHUNKS_PER_BLOCK;
        let (places, _) = self.buffer.as_chunks_mut::<CHUNK_BYTES>();
        let place = places.get_mut(number).expect("the buffer has a place for each chunk");
        let pages = source.load_chunk(chunk, place)?;
        self.pages.insert_chunk(number, pages);
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    /// Puts what is staged into memory: the pages that are not zero by as few copies as possible,
    /// and zeroes into the others and into those that the guest gave back before they came. What
    /// is staged stays.
    pub fn install(&self, memory: &LazyMemory, residency: &Residency) -> io::Result<Filled> {
        let unit = memory.pages_per_host_page().min(PAGES_PER_CHUNK);
        let len = (self.count as usize).saturating_mul(PAGES_PER_CHUNK).min(PAGES_PER_BLOCK);
        let page =
            |number: usize| PageIndex(self.first.first_page().0.saturating_add(number as u32));
        // A page of the host is zero if all its pages are; one that was given back, if any was.
        let is_zero = |number: usize| {
            let mut pages = number..number.saturating_add(unit);
            let is_empty = pages.clone().all(|number| !self.pages.contains(number));
            is_empty || pages.any(|number| residency.is_removed(page(number)))
        };
        let mut begin = 0;
        while begin < len {
            let kind = is_zero(begin);
            let mut rest = (begin..len).step_by(unit);
            let end = rest.find(|number| is_zero(*number) != kind).unwrap_or(len);
            let filled = if kind {
                let count = end.saturating_sub(begin) as u32;
                memory.zero(Piece::of_pages(page(begin), count))?
            } else {
                let bytes = begin.saturating_mul(PAGE_BYTES)..end.saturating_mul(PAGE_BYTES);
                let bytes = self.buffer.get(bytes).unwrap_or_default();
                memory.copy(page(begin).offset_bytes(), bytes)?
            };
            if filled == Filled::NotNow {
                return Ok(filled);
            }
            begin = end;
        }
        Ok(Filled::All)
    }

    /// How much of what is staged is no zeroes.
    pub fn data_bytes(&self) -> u64 {
        (self.pages.count() as u64).saturating_mul(PAGE_BYTES as u64)
    }

    pub fn clear(&mut self) {
        self.count = 0;
    }
}

/// The chunks of a block that have any of these pages.
pub(super) fn chunks_of(block: BlockIndex, pages: &PageSet) -> u32 {
    pages.chunks().fold(0, |mask, (number, _)| mask | bit(block.chunk(number)))
}

/// How many whole chunks there are in so many bytes of an image.
pub(super) fn chunk_count(bytes: u64) -> u32 {
    const BYTES: u64 = CHUNK_BYTES as u64;
    bytes.checked_div(BYTES).and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

/// Where chunks lie in the image.
pub(super) fn piece(run: ChunkRun) -> Piece {
    Piece::of_pages(run.first.first_page(), run.count.saturating_mul(PAGES_PER_CHUNK as u32))
}
