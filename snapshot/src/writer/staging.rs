//! Pages copied aside while a machine is paused, to be written after it goes on.

use std::collections::TryReserveError;

use crate::layout::{BlockIndex, PAGE_BYTES};
use crate::name::Name;
use crate::page_set::PageSet;

/// What room is filled with that is not used yet. Bytes that are zero the kernel would not give before
/// they are touched, which is then during the pause.
const TOUCHED: u8 = 1;

/// Pages of some blocks. Copying into it is all that has to happen during a pause.
#[derive(Debug, Default)]
pub struct Staging {
    blocks: Vec<(Name, BlockIndex, PageSet)>,
    content: Vec<u8>,
    used_bytes: usize,
}

impl Staging {
    /// With room for so many bytes of pages, all of which the host has given by then; more room is
    /// made when it is needed.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn with_room(bytes: usize) -> Result<Self, TryReserveError> {
        let mut content = Vec::new();
        content.try_reserve_exact(bytes)?;
        content.resize(bytes, TOUCHED);
        Ok(Self { content, ..Self::default() })
    }

    /// Room for pages of a block, to be filled with them, one after the other.
    ///
    /// # Errors
    /// The host has no memory for more room.
    pub fn add(
        &mut self,
        image: &Name,
        block: BlockIndex,
        pages: &PageSet,
    ) -> Result<&mut [u8], TryReserveError> {
        let begin = self.used_bytes;
        let end = begin.saturating_add(pages.count().saturating_mul(PAGE_BYTES));
        if let Some(more) = end.checked_sub(self.content.len()) {
            self.content.try_reserve(more)?;
            self.content.resize(end, TOUCHED);
        }
        self.blocks.try_reserve(1)?;
        self.used_bytes = end;
        self.blocks.push((image.clone(), block, *pages));
        Ok(self.content.get_mut(begin..end).expect("the content was made to reach the end"))
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
