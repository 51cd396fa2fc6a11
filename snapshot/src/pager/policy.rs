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
/// Runs that are looked at. A hostile list is no reason to think for long.
const RUNS_MAX: usize = 1 << 14;

/// How a machine with a recorded working set is best loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// For [`super::Options::working_set`].
    pub working_set: Vec<ChunkRun>,
    /// For [`super::Options::written`].
    pub written: Vec<BlockIndex>,
}

impl Policy {
    /// Decides.
    pub fn of(working_set: &[PageRun]) -> Self {
        let runs = working_set.get(..RUNS_MAX).unwrap_or(working_set);
        let mut written: BTreeMap<BlockIndex, u32> = BTreeMap::new();
        for run in runs.iter().filter(|run| run.written) {
            let end = run.first_page.saturating_add(run.page_count);
            let mut page = run.first_page;
            while page < end {
                let block = PageIndex(page).block();
                let behind = block.first_page().0.saturating_add(PAGES_PER_BLOCK as u32).min(end);
                let count = written.entry(block).or_default();
                *count = count.saturating_add(behind.saturating_sub(page));
                page = behind;
            }
        }
        written.retain(|_, pages| *pages >= WRITTEN_PAGES_MIN);
        Self {
            working_set: runs.iter().map(ChunkRun::from).collect(),
            written: written.into_keys().collect(),
        }
    }
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
        ]);
        assert_eq!(policy.written, [BlockIndex(3), BlockIndex(5)]);
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
    }
}
