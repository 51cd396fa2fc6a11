//! Some pages of one block: a bit each.

use crate::layout::{CHUNKS_PER_BLOCK, PAGES_PER_BLOCK, PAGES_PER_CHUNK};

/// Some of the 512 pages of a block.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PageSet([u16; CHUNKS_PER_BLOCK]);

impl PageSet {
    /// No page.
    pub const EMPTY: Self = Self([0; CHUNKS_PER_BLOCK]);
    /// Every page.
    pub const FULL: Self = Self([u16::MAX; CHUNKS_PER_BLOCK]);

    /// The first `count` pages of a block.
    pub fn first(count: usize) -> Self {
        let mut set = Self::EMPTY;
        (0..count.min(PAGES_PER_BLOCK)).for_each(|page| set.insert(page));
        set
    }

    /// Adds a page; `page` counts from 0 in the block. A page that no block has is not added.
    pub fn insert(&mut self, page: usize) {
        if let Some(mask) = self.0.get_mut(page / PAGES_PER_CHUNK) {
            *mask |= bit(page % PAGES_PER_CHUNK);
        }
    }

    /// Whether a page of the block is one of these.
    pub fn contains(&self, page: usize) -> bool {
        self.chunk(page / PAGES_PER_CHUNK) & bit(page % PAGES_PER_CHUNK) != 0
    }

    /// The pages of one chunk, lowest page in the lowest bit; `chunk` counts from 0 in the block.
    pub fn chunk(&self, chunk: usize) -> u16 {
        self.0.get(chunk).copied().unwrap_or(0)
    }

    /// Adds pages of one chunk.
    pub fn insert_chunk(&mut self, chunk: usize, pages: u16) {
        if let Some(mask) = self.0.get_mut(chunk) {
            *mask |= pages;
        }
    }

    /// The chunks that have pages here, each with its mask.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, u16)> {
        self.0.into_iter().enumerate().filter(|(_, pages)| *pages != 0)
    }

    /// The pages in ascending order.
    pub fn pages(&self) -> impl Iterator<Item = usize> {
        let set = *self;
        (0..PAGES_PER_BLOCK).filter(move |page| set.contains(*page))
    }

    /// How many pages.
    pub fn count(&self) -> usize {
        self.0.iter().map(|mask| mask.count_ones() as usize).sum()
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|mask| *mask == 0)
    }

    /// The pages of either set.
    pub fn union(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(mask, others)| *mask |= others);
        self
    }

    /// The pages of this set that the other one lacks.
    pub fn minus(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(mask, others)| *mask &= !others);
        self
    }
}

impl std::fmt::Debug for PageSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.pages()).finish()
    }
}

/// The bit of a page in its chunk's mask.
fn bit(page: usize) -> u16 {
    1_u16.checked_shl(page as u32).unwrap_or(0)
}

/// The numbers of the bits that are set, ascending.
pub(crate) fn bits(mask: u16) -> impl Iterator<Item = usize> {
    (0..PAGES_PER_CHUNK).filter(move |page| mask & bit(*page) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_in_order_and_by_chunk() {
        let mut set = PageSet::EMPTY;
        [511, 0, 17, 16].into_iter().for_each(|page| set.insert(page));
        set.insert(512);
        assert_eq!(set.pages().collect::<Vec<_>>(), [0, 16, 17, 511]);
        assert_eq!(set.chunks().collect::<Vec<_>>(), [(0, 1), (1, 3), (31, 1 << 15)]);
        assert_eq!((set.count(), set.contains(17), set.contains(18)), (4, true, false));
        assert_eq!(PageSet::FULL.minus(&set).union(&set), PageSet::FULL);
        assert_eq!(PageSet::first(17).chunks().collect::<Vec<_>>(), [(0, 0xffff), (1, 1)]);
        assert!(PageSet::first(0).is_empty());
        assert_eq!(bits(0b1010).collect::<Vec<_>>(), [1, 3]);
    }
}
