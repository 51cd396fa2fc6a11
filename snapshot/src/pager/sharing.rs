//! Memory that clones share: a block is loaded into the shared image when one of them touches it,
//! and is ordinary memory from then on, for this clone and for those that come later.

use std::{collections::BTreeSet, io, sync::Arc};

use super::{
    error::PagerError,
    plan::Plan,
    server::{Policy, Status, Step},
    service::ServiceError,
    shared_image::{SharedImage, SharedLoadError},
    space::Piece,
    userfault::LazyMemory,
};
use crate::{
    layout::{BLOCK_BYTES, BlockIndex, PageIndex},
    source::PageSource,
};

/// Maps a shared image privately, and loads what of it nobody has loaded before.
pub(super) struct Sharing {
    memory: LazyMemory,
    pieces: Vec<Piece>,
    source: Box<dyn PageSource>,
    /// Another source of the same image, for when the first one fails.
    spare: Option<Spare>,
    image: Arc<SharedImage>,
    plan: Plan,
    /// Blocks that are still registered.
    missing_blocks: u64,
    claims: Claims,
    status: Arc<Status>,
}

/// Asks for another source of the same image.
pub(super) type Spare = Box<dyn FnOnce() -> Result<Box<dyn PageSource>, ServiceError> + Send>;

/// Blocks that a machine gets for itself. Its own process copies them: no other may.
#[derive(Default)]
pub(super) struct Claims {
    /// Which ones.
    pub blocks: BTreeSet<BlockIndex>,
    /// Tells the machine's process that it may have one now.
    pub tell: Option<Box<dyn FnMut(BlockIndex) -> io::Result<()> + Send>>,
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
        let claims = Claims::default();
        let spare = None;
        Self { memory, pieces, source, spare, image, plan, missing_blocks, claims, status }
    }

    /// The first source may fail.
    pub fn with_spare(self, spare: Spare) -> Self {
        Self { spare: Some(spare), ..self }
    }

    /// Some blocks are not shared, once they are there.
    pub fn with_claims(self, claims: Claims) -> Self {
        Self { claims, ..self }
    }

    fn is_missing(&self, block: BlockIndex) -> bool {
        self.status.residency.loaded_chunks(block) == 0
    }

    /// Makes a block ordinary memory, which wakes who waits for it, or has that done.
    fn load(&mut self, block: BlockIndex, touched: PageIndex) -> Result<(), PagerError> {
        let space = self.memory.space();
        let piece = space.in_one_region(Piece::of_block(block));
        let loaded = loop {
            match (self.image.load(block, &mut *self.source), self.spare.take()) {
                (Ok(loaded), spare) => {
                    self.spare = spare;
                    break loaded;
                }
                (Err(SharedLoadError::Source(_)), Some(spare)) => {
                    self.source = spare().map_err(PagerError::Files)?;
                }
                (Err(SharedLoadError::Source(source)), None) => {
                    let address = space.guest(touched.offset_bytes());
                    return Err(PagerError::Source { address, source });
                }
                (Err(SharedLoadError::Image(source)), _) => {
                    let source = io::Error::other(source);
                    return Err(space.error("share the content of", piece, source));
                }
            }
        };
        if loaded {
            self.status.statistics.copied_bytes.add(piece.len_bytes);
        }
        if self.claims.blocks.contains(&block) {
            // It stays registered until the machine's process has replaced it, and wakes who waits.
            if let Some(tell) = &mut self.claims.tell {
                tell(block).map_err(|source| space.error("hand over", piece, source))?;
            }
        } else {
            let ended = self.memory.unregister(piece);
            ended.map_err(|source| space.error("end the lazy loading of", piece, source))?;
        }
        if loaded {
            self.image.seal_if_complete();
        }
        self.status.residency.set_block_loaded(block);
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
        if self.claims.blocks.contains(&page.block()) {
            // The machine's process is about to wake him.
            return Ok(());
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
            // What it gets for itself, it gets when it touches it.
            let is_shared = !self.claims.blocks.contains(&chunk.block());
            if is_shared && self.is_missing(chunk.block()) {
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
        // What the machine's process replaces must not be unregistered before.
        self.missing_blocks == 0 && self.claims.blocks.is_empty()
    }
}
