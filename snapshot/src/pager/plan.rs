//! What to load when nobody waits: the working set in its order, then the surroundings of faults,
//! then, if wanted, everything.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    layout::{BlockIndex, CHUNKS_PER_BLOCK, ChunkIndex, PageIndex},
    manifest::PageRun,
};

/// Blocks that wait for the rest of them; the oldest is forgotten for a new one.
const BLOCKS_MAX: usize = 64;

/// Chunks that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRun {
    /// The first of them.
    pub first: ChunkIndex,
    /// How many there are.
    pub count: u32,
}

/// How far the pager goes on its own, beyond faults and the list it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Reach {
    /// Nowhere: only what is touched is loaded. For recording a working set, and for measuring.
    Chunk,
    /// The rest of every block of which a chunk was touched.
    #[default]
    Block,
    /// All of the image. Then memory is like any other, and the pager's thread ends.
    Everything,
}

/// Chunks to load, best first. It allocates nothing after it was made.
pub(super) struct Plan {
    list: VecDeque<ChunkRun>,
    blocks: VecDeque<ChunkRun>,
    rest: ChunkRun,
    reach: Reach,
}

/// What is to be loaded next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Next {
    /// These chunks, those that are there already left out.
    pub run: ChunkRun,
    /// A touch is expected: zeroes are worth being mapped too.
    pub is_expected: bool,
}

impl ChunkRun {
    /// The chunks of the run.
    pub fn chunks(self) -> impl Iterator<Item = ChunkIndex> + Clone {
        (self.first.0..self.first.0.saturating_add(self.count)).map(ChunkIndex)
    }
}

impl Plan {
    /// A plan for an image of `chunk_count` chunks. What the list has beyond it is left out.
    pub fn new(list: Vec<ChunkRun>, reach: Reach, chunk_count: u32) -> Self {
        let clip = |run: ChunkRun| {
            let left = chunk_count.saturating_sub(run.first.0);
            ChunkRun { first: run.first, count: run.count.min(left) }
        };
        let count = if reach == Reach::Everything { chunk_count } else { 0 };
        Self {
            list: list.into_iter().map(clip).filter(|run| run.count > 0).collect(),
            blocks: VecDeque::with_capacity(BLOCKS_MAX),
            rest: ChunkRun { first: ChunkIndex(0), count },
            reach,
        }
    }

    /// A chunk was touched: the rest of its block is likely to be.
    pub fn touched(&mut self, chunk: ChunkIndex) {
        let BlockIndex(block) = chunk.block();
        let known = self.blocks.back().is_some_and(|run| run.first.block().0 == block);
        if self.reach == Reach::Chunk || known {
            return;
        }
        if self.blocks.len() >= BLOCKS_MAX {
            self.blocks.pop_front();
        }
        let first = chunk.block().chunk(0);
        self.blocks.push_back(ChunkRun { first, count: CHUNKS_PER_BLOCK as u32 });
    }

    /// What is to be loaded next. Stays the same until it is [passed](Self::pass).
    pub fn next(&self) -> Option<Next> {
        let expected = self.list.front().or(self.blocks.front());
        let expected = expected.map(|run| Next { run: *run, is_expected: true });
        let rest = Next { run: self.rest, is_expected: false };
        expected.or((self.rest.count > 0).then_some(rest))
    }

    /// The first `count` chunks of what is next are done.
    pub fn pass(&mut self, count: u32) {
        let runs = if self.list.is_empty() { &mut self.blocks } else { &mut self.list };
        let Some(run) = runs.front_mut() else { return advance(&mut self.rest, count) };
        advance(run, count);
        if run.count == 0 {
            runs.pop_front();
        }
    }
}

impl From<&PageRun> for ChunkRun {
    /// The chunks that the pages of a recorded working set lie in.
    fn from(run: &PageRun) -> Self {
        let last = run.first_page.saturating_add(run.page_count.saturating_sub(1));
        let (first, last) = (PageIndex(run.first_page).chunk(), PageIndex(last).chunk());
        Self { first, count: last.0.saturating_sub(first.0).saturating_add(1) }
    }
}

fn advance(run: &mut ChunkRun, count: u32) {
    run.first = ChunkIndex(run.first.0.saturating_add(count));
    run.count = run.count.saturating_sub(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u32, count: u32) -> ChunkRun {
        ChunkRun { first: ChunkIndex(first), count }
    }

    #[test]
    fn the_list_comes_first_then_blocks_of_faults_then_the_rest() {
        let mut plan = Plan::new(vec![run(70, 2), run(5, 1)], Reach::Everything, 96);
        plan.touched(ChunkIndex(40));
        let mut order = Vec::new();
        while let Some(next) = plan.next() {
            order.push(next.run.first.0);
            plan.pass(1);
        }
        assert_eq!(order[..3], [70, 71, 5]);
        assert_eq!(order[3..35], (32..64).collect::<Vec<_>>());
        assert_eq!(order[35..], (0..96).collect::<Vec<_>>());
    }

    #[test]
    fn pages_of_a_working_set_become_the_chunks_they_lie_in() {
        let run_of = |first_page, page_count| {
            ChunkRun::from(&PageRun { first_page, page_count, written: false })
        };
        assert_eq!(run_of(16, 16), run(1, 1));
        assert_eq!(run_of(31, 2), run(1, 2));
        assert_eq!(run_of(5, 0), run(0, 1));
        assert_eq!(run_of(u32::MAX, u32::MAX), run(u32::MAX >> 4, 1));
    }

    #[test]
    fn a_list_that_leaves_the_image_is_clipped() {
        let mut plan = Plan::new(vec![run(30, u32::MAX), run(u32::MAX, 7)], Reach::Block, 32);
        assert_eq!(plan.next(), Some(Next { run: run(30, 2), is_expected: true }));
        plan.pass(2);
        assert_eq!(plan.next(), None);
    }

    #[test]
    fn who_records_loads_nothing_around_a_fault() {
        let mut plan = Plan::new(Vec::new(), Reach::Chunk, 64);
        plan.touched(ChunkIndex(3));
        assert_eq!(plan.next(), None);
    }

    #[test]
    fn many_faults_do_not_make_the_plan_grow() {
        let mut plan = Plan::new(Vec::new(), Reach::Block, 1 << 19);
        let capacity = plan.blocks.capacity();
        (0..10_000).for_each(|block| plan.touched(BlockIndex(block).chunk(7)));
        assert_eq!((plan.blocks.len(), plan.blocks.capacity()), (BLOCKS_MAX, capacity));
    }
}
