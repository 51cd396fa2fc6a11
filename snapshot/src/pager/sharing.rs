//! Memory that clones share: a block is loaded into the shared image when one of them touches it,
//! and is ordinary memory from then on, for this clone and for those that come later.

use std::{io, sync::Arc};

use super::{
    error::PagerError,
    plan::{ChunkRun, Plan},
    server::{Policy, Status, Step},
    shared_image::{SharedImage, SharedLoadError},
    space::Piece,
    userfault::LazyMemory,
};
use crate::{
    layout::{BLOCK_BYTES, BlockIndex, CHUNKS_PER_BLOCK, PageIndex},
    source::PageSource,
};

/// Maps a shared image privately, and loads what of it nobody has loaded before.
pub(super) struct Sharing {
    memory: LazyMemory,
    pieces: Vec<Piece>,
    source: Box<dyn PageSource>,
    image: Arc<SharedImage>,
    plan: Plan,
    /// Blocks that are still registered.
    missing_blocks: u64,
    status: Arc<Status>,
}

impl Sharing {
    /// `pieces` is what the image has and is not loaded: whole blocks.
    pub fn new(
        memory: LazyMemory,
        pieces: Vec<Piece>,
        source: Box<dyn PageSource>,
        image: Arc<SharedImage>,
        plan: Plan,
        status: Arc<Status>,
    ) -> Self {
        let blocks = pieces.iter().map(|piece| piece.len_bytes.div_ceil(BLOCK_BYTES as u64));
        let missing_blocks = blocks.sum();
        Self { memory, pieces, source, image, plan, missing_blocks, status }
    }

    fn is_missing(&self, block: BlockIndex) -> bool {
        self.status.residency.loaded_chunks(block) == 0
    }

    /// Makes a block ordinary memory, which wakes who waits for it.
    fn load(&mut self, block: BlockIndex, touched: PageIndex) -> Result<(), PagerError> {
        let space = self.memory.space();
        let piece = space.in_one_region(Piece::of_block(block));
        let loaded = self.image.load(block, &mut *self.source).map_err(|error| match error {
            SharedLoadError::Source(source) => {
                PagerError::Source { address: space.guest(touched.offset_bytes()), source }
            }
            SharedLoadError::Image(source) => {
                space.error("share the content of", piece, io::Error::other(source))
            }
        })?;
        if loaded {
            self.status.statistics.copied_bytes.add(piece.len_bytes);
        }
        self.memory
            .unregister(piece)
            .map_err(|source| space.error("end the lazy loading of", piece, source))?;
        let run = ChunkRun { first: block.chunk(0), count: CHUNKS_PER_BLOCK as u32 };
        self.status.residency.set_loaded(run);
        self.missing_blocks = self.missing_blocks.saturating_sub(1);
        Ok(())
    }
}

impl Policy for Sharing {
    fn memory(&self) -> &LazyMemory {
        &self.memory
    }

    fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    fn fault(&mut self, page: PageIndex) -> Result<(), PagerError> {
        if self.is_missing(page.block()) {
            return self.load(page.block(), page);
        }
        // It came while the fault was on its way.
        self.memory.wake_at(page)
    }

    /// What is given back is the image's again, as in every private mapping of a file.
    fn removed(&mut self, _page: PageIndex) {}

    fn load_ahead(&mut self) -> Result<Step, PagerError> {
        while let Some(next) = self.plan.next() {
            let chunk = next.run.first;
            self.plan.pass(1);
            if self.is_missing(chunk.block()) {
                let copied = self.status.statistics.counts().copied_bytes;
                self.load(chunk.block(), chunk.first_page())?;
                let statistics = &self.status.statistics;
                let ahead = statistics.counts().copied_bytes.saturating_sub(copied);
                statistics.prefetched_bytes.add(ahead);
                return Ok(Step::Worked);
            }
        }
        Ok(Step::Idle)
    }

    fn is_exhausted(&self) -> bool {
        self.missing_blocks == 0
    }
}
