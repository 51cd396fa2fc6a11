//! What to do with a working set: which blocks to share and which to copy, from what both cost.

use std::collections::BTreeMap;

use super::plan::ChunkRun;
use crate::{
    layout::{BlockIndex, PAGES_PER_BLOCK, PageIndex},
    manifest::PageRun,
};

/// From so many written pages on, a copy of all of a block is cheaper than the kernel's copies of its
/// pages: 650 us for 512 pages in one piece, 11 us for each alone (instruction-counted; the ratio is what
/// counts).
const WRITTEN_PAGES_MIN: u32 = 60;
/// Pages that are copied before a machine runs: about as many as a guest of ours writes before it first
/// answers. A list is in the order of first touch, so they come first. Those that come later wait for
/// their touch: most are in blocks that are rather read, and a copied page splits its huge page.
const COPIED_AHEAD_PAGES_MAX: u32 = 96;
/// Runs that are looked at. A hostile list is no reason to think for long.
const RUNS_MAX: usize = 1 << 14;

/// How a machine with a recorded working set is best loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// For [`super::Options::working_set`].
    pub working_set: Vec<ChunkRun>,
    /// For [`super::Options::written`].
    pub written: Vec<BlockIndex>,
    /// For [`super::Options::copied_ahead`].
    pub copied_ahead: Vec<PageRun>,
}

impl Policy {
    /// Decides.
    pub fn of(working_set: &[PageRun]) -> Self {
        let runs = working_set.get(..RUNS_MAX).unwrap_or(working_set);
        let mut written: BTreeMap<BlockIndex, u32> = BTreeMap::new();
        let written_runs = || runs.iter().filter(|run| run.written).flat_map(by_block);
        for (block, run) in written_runs() {
            let count = written.entry(block).or_default();
            *count = count.saturating_add(run.page_count);
        }
        written.retain(|_, pages| *pages >= WRITTEN_PAGES_MIN);
        let mut left = COPIED_AHEAD_PAGES_MAX;
        let copied_ahead = written_runs().filter(|(block, _)| !written.contains_key(block));
        let copied_ahead = copied_ahead.map_while(|(_, run)| {
            let page_count = run.page_count.min(left);
            left = left.saturating_sub(page_count);
            (page_count > 0).then_some(PageRun { page_count, ..run })
        });
        Self {
            working_set: runs.iter().map(ChunkRun::from).collect(),
            copied_ahead: copied_ahead.collect(),
            written: written.into_keys().collect(),
        }
    }
}

/// The parts of a run that lie in one block each.
fn by_block(run: &PageRun) -> impl Iterator<Item = (BlockIndex, PageRun)> {
    let PageRun { mut first_page, page_count, written } = *run;
    let end = first_page.saturating_add(page_count);
    std::iter::from_fn(move || {
        let block = PageIndex(first_page).block();
        let behind = block.first_page().0.saturating_add(PAGES_PER_BLOCK as u32).min(end);
        let page_count = behind.checked_sub(first_page).filter(|count| *count > 0)?;
        let run = PageRun { first_page, page_count, written };
        first_page = behind;
        Some((block, run))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ChunkIndex;

    fn run(first_page: u32, page_count: u32, written: bool) -> PageRun {
        PageRun { first_page, page_count, written }
    }

    #[test]
    fn blocks_of_which_much_is_written_are_not_shared() {
        let policy = Policy::of(&[
            run(512, 400, false),
            run(1024, 59, true),
            run(1536, 30, true),
            run(1700, 30, true),
            run(2048 + 500, 72, true),
            run(4096, 40, true),
        ]);
        assert_eq!(policy.written, [BlockIndex(3), BlockIndex(5)]);
        assert_eq!(
            policy.copied_ahead,
            [run(1024, 59, true), run(2548, 12, true), run(4096, 25, true)],
            "as many as there may be, the first ones"
        );
    }

    #[test]
    fn what_is_needed_first_stays_first() {
        let policy = Policy::of(&[run(33, 1, false), run(0, 17, true)]);
        let chunks = |first, count| ChunkRun { first: ChunkIndex(first), count };
        assert_eq!(policy.working_set, [chunks(2, 1), chunks(0, 2)]);
        assert_eq!(Policy::of(&[]), Policy::default());
    }

    #[test]
    fn a_hostile_list_is_not_followed_for_long() {
        let policy = Policy::of(&vec![run(u32::MAX - 512, u32::MAX, true); RUNS_MAX + 1]);
        assert_eq!(policy.working_set.len(), RUNS_MAX);
        let scattered: Vec<_> =
            (0..RUNS_MAX as u32).map(|block| run(block.saturating_mul(512), 3, true)).collect();
        let pages =
            Policy::of(&scattered).copied_ahead.iter().map(|run| run.page_count).sum::<u32>();
        assert_eq!(pages, COPIED_AHEAD_PAGES_MAX);
    }
}
