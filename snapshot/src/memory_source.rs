//! An image in memory as a source of pages, for tests of what loads pages.

use crate::id::{Digest, SnapshotId};
use crate::layout::{
    BLOCK_BYTES, BlockIndex, CHUNK_BYTES, CHUNKS_PER_BLOCK, ChunkIndex, PAGE_BYTES, PageIndex,
};
use crate::name::Name;
use crate::page_set::PageSet;
use crate::source::{Fault, PageSource, Place, SourceError};

/// An image in memory. A page is zero if all its bytes are.
#[derive(Debug, Clone)]
pub struct MemorySource {
    name: Name,
    bytes: Vec<u8>,
}

impl MemorySource {
    /// Bytes behind the last whole page are filled up with zeroes.
    pub fn new(name: Name, bytes: Vec<u8>) -> Self {
        Self { name, bytes }
    }

    fn check(&self, block: BlockIndex) -> Result<(), SourceError> {
        if block.offset_bytes() < self.image_bytes() {
            return Ok(());
        }
        Err(SourceError {
            snapshot: SnapshotId(Digest([0; 32])),
            image: self.name.clone(),
            page: block.first_page(),
            place: Place { layer: 0, pack: None, offset: block.offset_bytes(), bytes: 0 },
            fault: Box::new(Fault::OutOfImage),
        })
    }

    fn page(&self, page: PageIndex) -> &[u8] {
        let start = usize::try_from(page.offset_bytes()).unwrap_or(usize::MAX);
        let end = start.saturating_add(PAGE_BYTES).min(self.bytes.len());
        self.bytes.get(start..end).unwrap_or_default()
    }
}

impl PageSource for MemorySource {
    fn image_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn has_data(&self, block: BlockIndex) -> bool {
        let start = usize::try_from(block.offset_bytes()).unwrap_or(usize::MAX);
        let content = self.bytes.get(start..).unwrap_or_default();
        content.iter().take(BLOCK_BYTES).any(|byte| *byte != 0)
    }

    fn pages(&mut self, block: BlockIndex) -> Result<PageSet, SourceError> {
        self.check(block)?;
        let mut pages = PageSet::EMPTY;
        for chunk in 0..CHUNKS_PER_BLOCK {
            let mut content = [0; CHUNK_BYTES];
            pages.insert_chunk(chunk, self.load_chunk(block.chunk(chunk), &mut content)?);
        }
        Ok(pages)
    }

    fn load_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<u16, SourceError> {
        out.fill(0);
        self.check(chunk.block())?;
        let mut pages = PageSet::EMPTY;
        for (number, place) in out.chunks_exact_mut(PAGE_BYTES).enumerate() {
            let page = PageIndex(chunk.first_page().0 | number as u32);
            let content = self.page(page);
            if content.iter().any(|byte| *byte != 0) {
                pages.insert(number);
            }
            place.iter_mut().zip(content).for_each(|(to, from)| *to = *from);
        }
        Ok(pages.chunk(0))
    }

    fn load_block(
        &mut self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SourceError> {
        let mut pages = PageSet::EMPTY;
        let (chunks, _) = out.as_chunks_mut();
        for (number, place) in chunks.iter_mut().enumerate() {
            pages.insert_chunk(number, self.load_chunk(block.chunk(number), place)?);
        }
        Ok(pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_not_zero_are_named_and_the_end_is_filled_up() {
        let mut bytes = vec![0; BLOCK_BYTES + 5000];
        bytes[BLOCK_BYTES + 4999] = 7;
        let mut source = MemorySource::new(Name::new("ram").unwrap(), bytes);
        assert!(source.pages(BlockIndex(0)).unwrap().is_empty());
        assert!(!source.has_data(BlockIndex(0)) && source.has_data(BlockIndex(1)));
        assert_eq!(source.pages(BlockIndex(1)).unwrap().pages().collect::<Vec<_>>(), [1]);
        let mut out = Box::new([1; CHUNK_BYTES]);
        assert_eq!(source.load_chunk(BlockIndex(1).chunk(0), &mut out).unwrap(), 2);
        assert_eq!((out[4999], out[5000], out[CHUNK_BYTES - 1]), (7, 0, 0));
        let error = source.pages(BlockIndex(2)).unwrap_err();
        assert!(matches!(*error.fault, Fault::OutOfImage));
    }
}
