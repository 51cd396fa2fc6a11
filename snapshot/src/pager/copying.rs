//! Memory of one machine alone: each chunk is copied there when it is touched.

use std::sync::Arc;

use super::{
    content::{DataMap, Stage, chunk_count, chunks_of, piece},
    error::PagerError,
    local::LocalMemory,
    pieces,
    plan::{ChunkRun, Next, Plan},
    residency::bit,
    server::{Policy, Status, Step},
    space::Piece,
    userfault::{Filled, LazyMemory},
};
use crate::{
    layout::{BlockIndex, CHUNKS_PER_BLOCK, ChunkIndex, PageIndex},
    source::{PageSource, SourceError},
};

/// Zero chunks that are mapped by one call: 64 MiB, so that a fault waits for a millisecond at most.
const ZEROED_CHUNKS_MAX: u32 = 1024;

/// Mappings of the base inside of blocks, each of which makes three of the kernel's out of one: a process may
/// have 65530. What is the same beyond them is copied.
const BASE_MAPPINGS_MAX: u32 = 1 << 14;

/// Loads into private anonymous memory.
pub(super) struct Copying {
    local: LocalMemory,
    memory: LazyMemory,
    /// What is registered.
    pieces: Vec<Piece>,
    source: Box<dyn PageSource>,
    data: DataMap,
    plan: Plan,
    /// For what is loaded ahead of faults.
    ahead: Stage,
    /// For a fault, which does not wait for that.
    fault: Stage,
    base_mappings_left: u32,
    status: Arc<Status>,
}

impl Copying {
    /// `pieces` is what is registered.
    pub fn new(
        local: LocalMemory,
        memory: LazyMemory,
        pieces: Vec<Piece>,
        source: Box<dyn PageSource>,
        plan: Plan,
        status: Arc<Status>,
    ) -> Self {
        let mut data = DataMap::new(memory.space().block_count());
        pieces::others(memory.space(), &pieces).for_each(|block| data.learn(block, 0));
        let (ahead, fault) = (Stage::new(), Stage::new());
        let base_mappings_left = BASE_MAPPINGS_MAX;
        Self { local, memory, pieces, source, data, plan, ahead, fault, base_mappings_left, status }
    }
}

impl Policy for Copying {
    fn memory(&self) -> &LazyMemory {
        &self.memory
    }

    fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    fn fault(&mut self, page: PageIndex) -> Result<(), PagerError> {
        let chunk = page.chunk();
        self.meet(chunk.block(), page)?;
        let filled = if self.status.residency.is_loaded(chunk) {
            self.serve_loaded(page)?
        } else {
            self.plan.touched(chunk);
            self.serve_missing(page)?
        };
        // Memory is being given back, and whoever does it waits to be heard: let the thread fault
        // again instead of waiting for it.
        if filled == Filled::NotNow {
            self.memory.wake_at(page)?;
        }
        Ok(())
    }

    /// Whatever the image says, the page is zero from now on.
    fn removed(&mut self, page: PageIndex) {
        self.status.residency.set_removed(page);
    }

    /// Loads one more chunk of the plan, or puts what was loaded into memory.
    fn load_ahead(&mut self) -> Result<Step, PagerError> {
        while let Some(Next { run, is_expected }) = self.plan.next() {
            let chunk = run.first;
            self.meet(chunk.block(), chunk.first_page())?;
            if self.status.residency.is_loaded(chunk) || self.ahead.contains(chunk) {
                self.plan.pass(1);
                continue;
            }
            if self.has_data(chunk, chunk.first_page())? {
                if !self.ahead.accepts(chunk) {
                    break;
                }
                self.load_one_ahead(chunk)?;
                self.plan.pass(1);
                return Ok(Step::Worked);
            }
            if !is_expected {
                self.plan.pass(1);
                continue;
            }
            return self.zero_chunks(run).map(worked);
        }
        if self.ahead.run().is_none() {
            return Ok(Step::Idle);
        }
        self.install_ahead().map(worked)
    }

    fn is_exhausted(&self) -> bool {
        self.data.is_exhausted()
    }
}

impl Copying {
    /// The first thing that is done about a block: what of it is in the base is mapped from there.
    fn meet(&mut self, block: BlockIndex, page: PageIndex) -> Result<(), PagerError> {
        if self.source.base().is_none() || self.data.is_known(block) {
            return Ok(());
        }
        let same = self.source.base_chunks(block) & !self.status.residency.removed_chunks(block);
        let mut mapped = 0;
        for run in runs(block, same) {
            let piece = self.memory.space().in_one_region(piece(run));
            let Some(image) = self.source.base() else { break };
            // What the host does not map is loaded as all else is.
            let is_refused = self.base_mappings_left == 0 || piece.len_bytes == 0;
            if is_refused || self.local.map(piece, image).is_err() {
                break;
            }
            self.base_mappings_left = self.base_mappings_left.saturating_sub(1);
            mapped |= run.chunks().fold(0, |mask, chunk| mask | bit(chunk));
            self.status.residency.set_loaded(run);
            let woken = self.memory.wake(piece);
            woken
                .map_err(|source| self.memory.space().error("wake who waits for", piece, source))?;
        }
        let pages = self.source.pages(block).map_err(|source| self.source_error(page, source))?;
        self.data.learn(block, chunks_of(block, &pages) & !mapped);
        Ok(())
    }

    /// The chunk is there: it came while the fault was on its way, or its page was given back.
    fn serve_loaded(&mut self, page: PageIndex) -> Result<Filled, PagerError> {
        if !self.status.residency.is_removed(page) {
            return self.memory.wake_at(page).map(|()| Filled::All);
        }
        let page = self.memory.host_page_of(page);
        self.zero(page)
    }

    fn serve_missing(&mut self, page: PageIndex) -> Result<Filled, PagerError> {
        let chunk = page.chunk();
        if self.ahead.contains(chunk) {
            return self.install_ahead();
        }
        if !self.has_data(chunk, page)? {
            let behind = CHUNKS_PER_BLOCK.saturating_sub(chunk.in_block()) as u32;
            return self.zero_chunks(ChunkRun { first: chunk, count: behind });
        }
        self.fault.clear();
        let loaded = self.fault.load(chunk, &mut *self.source);
        loaded.map_err(|source| self.source_error(page, source))?;
        install(&self.memory, &self.status, &mut self.data, &self.fault)
    }

    fn load_one_ahead(&mut self, chunk: ChunkIndex) -> Result<(), PagerError> {
        let loaded = self.ahead.load(chunk, &mut *self.source);
        loaded.map_err(|source| self.source_error(chunk.first_page(), source))
    }

    fn install_ahead(&mut self) -> Result<Filled, PagerError> {
        let filled = install(&self.memory, &self.status, &mut self.data, &self.ahead)?;
        if filled == Filled::All {
            self.status.statistics.prefetched_bytes.add(self.ahead.data_bytes());
            self.ahead.clear();
        }
        Ok(filled)
    }

    fn has_data(&mut self, chunk: ChunkIndex, page: PageIndex) -> Result<bool, PagerError> {
        let has_data = self.data.has_data(chunk, &mut *self.source);
        has_data.map_err(|source| self.source_error(page, source))
    }

    fn source_error(&self, page: PageIndex, source: SourceError) -> PagerError {
        PagerError::Source { address: self.memory.space().guest(page.offset_bytes()), source }
    }

    /// Maps the zero chunks that the run begins with.
    fn zero_chunks(&mut self, run: ChunkRun) -> Result<Filled, PagerError> {
        let run = ChunkRun { first: run.first, count: run.count.min(ZEROED_CHUNKS_MAX) };
        let zeroes = self.data.zeroes(run, &self.status.residency, &mut *self.source);
        let count = zeroes.map_err(|source| self.source_error(run.first.first_page(), source))?;
        let zeroes = ChunkRun { first: run.first, count };
        let piece = self.memory.space().in_one_region(piece(zeroes));
        let filled = self.zero(piece)?;
        if filled == Filled::All {
            let count = zeroes.count.min(chunk_count(piece.len_bytes));
            self.status.residency.set_loaded(ChunkRun { first: run.first, count });
        }
        Ok(filled)
    }

    fn zero(&self, piece: Piece) -> Result<Filled, PagerError> {
        let filled = self.memory.zero(piece);
        if let Ok(Filled::All) = filled {
            self.status.statistics.zeroed_bytes.add(piece.len_bytes);
        }
        filled.map_err(|source| self.memory.space().error("map zeroes in", piece, source))
    }
}

/// The chunks of a mask, in as few runs as they make.
fn runs(block: BlockIndex, mask: u32) -> impl Iterator<Item = ChunkRun> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let first = left.trailing_zeros();
        let count = left.checked_shr(first)?.trailing_ones();
        left &= u32::MAX.checked_shl(first.saturating_add(count)).unwrap_or(0);
        Some(ChunkRun { first: block.chunk(first as usize), count })
    })
}

/// Who gives memory back has to run before we can go on.
fn worked(filled: Filled) -> Step {
    if filled == Filled::NotNow {
        std::thread::yield_now();
    }
    Step::Worked
}

/// Puts what is staged into memory and remembers it.
fn install(
    memory: &LazyMemory,
    status: &Status,
    data: &mut DataMap,
    stage: &Stage,
) -> Result<Filled, PagerError> {
    let Some(run) = stage.run() else { return Ok(Filled::All) };
    let filled = stage
        .install(memory, &status.residency)
        .map_err(|source| memory.space().error("fill", piece(run), source))?;
    if filled == Filled::All {
        let zero_bytes = piece(run).len_bytes.saturating_sub(stage.data_bytes());
        status.statistics.copied_bytes.add(stage.data_bytes());
        status.statistics.zeroed_bytes.add(zero_bytes);
        status.residency.set_loaded(run);
        data.loaded(run);
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_as_few_runs_as_it_makes() {
        let of = |mask| -> Vec<_> {
            let first = BlockIndex(2).chunk(0).0;
            runs(BlockIndex(2), mask).map(|run| (run.first.0 - first, run.count)).collect()
        };
        assert_eq!(of(0), []);
        assert_eq!(of(u32::MAX), [(0, 32)]);
        assert_eq!(of(0x8000_0001), [(0, 1), (31, 1)]);
        assert_eq!(of(0xc000_00f6), [(1, 2), (4, 4), (30, 2)]);
    }
}
