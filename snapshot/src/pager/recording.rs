//! The working set: which chunks a run needed, in the order in which it needed them.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::{
    layout::{BlockIndex, ChunkIndex, PAGES_PER_CHUNK},
    manifest::PageRun,
};

/// Chunks of one recording: 4 GiB of memory. What is touched later is no head start.
pub const RECORDED_CHUNKS_MAX: usize = 1 << 16;

/// A chunk that was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// Which.
    pub chunk: ChunkIndex,
    /// A thread wanted to write to it when it was not loaded yet. False says little: it may have
    /// been written after it was read.
    pub is_write: bool,
}

/// Touched chunks. All its memory is there from the start: a fault allocates nothing, and takes no
/// lock. The pager is the only one that writes.
#[derive(Debug)]
pub(super) struct Recording {
    order: Box<[AtomicU32]>,
    len: AtomicUsize,
    /// By block, a bit for each chunk.
    touched: Box<[AtomicU32]>,
    written: Box<[AtomicU32]>,
}

impl Recording {
    pub fn new(block_count: u32) -> Self {
        let words = || -> Box<[AtomicU32]> {
            std::iter::repeat_with(Default::default).take(block_count as usize).collect()
        };
        let chunks = (block_count as usize).saturating_mul(crate::layout::CHUNKS_PER_BLOCK);
        let order = std::iter::repeat_with(Default::default).take(chunks.min(RECORDED_CHUNKS_MAX));
        Self {
            order: order.collect(),
            len: AtomicUsize::new(0),
            touched: words(),
            written: words(),
        }
    }

    pub fn note(&self, chunk: ChunkIndex, is_write: bool) {
        if is_write {
            mark(&self.written, chunk);
        }
        if mark(&self.touched, chunk) {
            return;
        }
        let len = self.len.load(Ordering::Relaxed);
        if let Some(place) = self.order.get(len) {
            place.store(chunk.0, Ordering::Relaxed);
            self.len.store(len.saturating_add(1), Ordering::Release);
        }
    }

    pub fn touches(&self) -> Vec<Touch> {
        let len = self.len.load(Ordering::Acquire);
        let chunks = self.order.iter().take(len).map(|place| place.load(Ordering::Relaxed));
        chunks
            .map(ChunkIndex)
            .map(|chunk| Touch { chunk, is_write: is_marked(&self.written, chunk) })
            .collect()
    }
}

/// What was touched as a snapshot has it, in the same order: chunks that follow one another in both,
/// and of which all or none was written, are one run.
pub fn working_set(touches: &[Touch]) -> Vec<PageRun> {
    const PAGES: u32 = PAGES_PER_CHUNK as u32;
    let mut runs: Vec<PageRun> = Vec::new();
    for touch in touches {
        let first_page = touch.chunk.first_page().0;
        let follows = |run: &&mut PageRun| {
            run.written == touch.is_write
                && run.first_page.checked_add(run.page_count) == Some(first_page)
        };
        match runs.last_mut().filter(follows) {
            Some(run) => run.page_count = run.page_count.saturating_add(PAGES),
            None => {
                runs.push(PageRun { first_page, page_count: PAGES, written: touch.is_write });
            }
        }
    }
    runs
}

/// Sets the bit of a chunk; whether it was set before.
fn mark(words: &[AtomicU32], chunk: ChunkIndex) -> bool {
    let bit = super::residency::bit(chunk);
    let word = words.get(chunk.block().0 as usize);
    word.is_none_or(|word| word.fetch_or(bit, Ordering::Relaxed) & bit != 0)
}

fn is_marked(words: &[AtomicU32], chunk: ChunkIndex) -> bool {
    let BlockIndex(block) = chunk.block();
    let word = words.get(block as usize).map_or(0, |word| word.load(Ordering::Relaxed));
    word & super::residency::bit(chunk) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_is_recorded_once_in_the_order_of_first_touch() {
        let recording = Recording::new(2);
        for (chunk, is_write) in [(40, false), (3, true), (40, true), (3, false), (63, false)] {
            recording.note(ChunkIndex(chunk), is_write);
        }
        recording.note(ChunkIndex(64), true); // is not in the image
        let touches: Vec<_> =
            recording.touches().iter().map(|touch| (touch.chunk.0, touch.is_write)).collect();
        assert_eq!(touches, [(40, true), (3, true), (63, false)]);
    }
}
