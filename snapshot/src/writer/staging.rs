//! Pages copied aside while a machine is paused, to be written after it goes on.

use crate::layout::{BlockIndex, PAGE_BYTES};
use crate::name::Name;
use crate::page_set::PageSet;

/// Pages of some blocks. Copying into it is all that has to happen during a pause.
#[derive(Debug, Default)]
pub struct Staging {
    blocks: Vec<(Name, BlockIndex, PageSet)>,
    content: Vec<u8>,
    used_bytes: usize,
}

impl Staging {
    /// With room for so many bytes of pages; more room is made when it is needed.
    pub fn with_room(bytes: usize) -> Self {
        Self { content: vec![0; bytes], ..Self::default() }
    }

    /// Room for pages of a block, to be filled with them, one after the other.
    pub fn add(&mut self, image: &Name, block: BlockIndex, pages: &PageSet) -> &mut [u8] {
        let begin = self.used_bytes;
        let end = begin.saturating_add(pages.count().saturating_mul(PAGE_BYTES));
        if end > self.content.len() {
            self.content.resize(end, 0);
        }
        self.used_bytes = end;
        self.blocks.push((image.clone(), block, *pages));
        self.content.get_mut(begin..end).expect("the content was made to reach the end")
    }

    /// The blocks in the order in which they were added, with their pages' content.
    pub fn blocks(&self) -> impl Iterator<Item = (&Name, BlockIndex, &PageSet, &[u8])> {
        let mut rest = self.content.as_slice();
        self.blocks.iter().map(move |(image, block, pages)| {
            let (content, others) = rest.split_at(pages.count().saturating_mul(PAGE_BYTES));
            rest = others;
            (image, *block, pages, content)
        })
    }

    /// Bytes of pages in it.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Forgets the pages and keeps the room.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.used_bytes = 0;
    }
}
