//! Loading all of memory before anything runs: for hosts without userfaultfd, and to compare.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap, bitmap::Bitmap};

use super::{local::LocalMemory, space::SpaceError};
use crate::{
    layout::{BLOCK_BYTES, BlockIndex, PAGE_BYTES, PAGES_PER_BLOCK, PageIndex},
    page_set::PageSet,
    source::{PageSource, SourceError},
};

/// Why memory is not loaded; the machine cannot run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Guest RAM has no image of chunks.
    #[error("load guest memory from an image")]
    Space(#[from] SpaceError),
    /// The image is another machine's.
    #[error("the machine has {ram_bytes} bytes of RAM, and its image {image_bytes}")]
    Length {
        /// The machine's.
        ram_bytes: u64,
        /// The image's.
        image_bytes: u64,
    },
    /// What it held before cannot be given up.
    #[error("clear guest memory")]
    Clear(#[source] io::Error),
    /// The content cannot be had, or is not what was saved.
    #[error("load the guest's memory at {:#x}", address.0)]
    Source {
        /// The block.
        address: GuestAddress,
        /// The cause, which names snapshot and page.
        #[source]
        source: SourceError,
    },
    /// The memory does not take it.
    #[error("fill the guest's memory at {:#x}", address.0)]
    Write {
        /// Where.
        address: GuestAddress,
        /// The cause.
        #[source]
        source: GuestMemoryError,
    },
}

/// Loads all of guest RAM, which nobody uses yet and which has to be private anonymous memory. What
/// it holds so far is forgotten; pages of zeroes are left to the kernel.
///
/// # Errors
/// See [`LoadError`]. Memory is loaded in part then: the machine must not run.
pub fn load_all<B: Bitmap + Clone + Send + Sync + 'static>(
    memory: &GuestMemoryMmap<B>,
    source: &mut dyn PageSource,
) -> Result<(), LoadError> {
    let local = LocalMemory::of(memory)?;
    let space = local.space();
    let (ram_bytes, image_bytes) = (space.bytes(), source.image_bytes());
    if ram_bytes != image_bytes {
        return Err(LoadError::Length { ram_bytes, image_bytes });
    }
    space.pieces().try_for_each(|piece| local.clear(piece)).map_err(LoadError::Clear)?;
    let mut buffer = block_buffer();
    for block in (0..space.block_count()).map(BlockIndex) {
        let address = space.guest(block.offset_bytes());
        let pages = source.load_block(block, &mut buffer);
        let pages = pages.map_err(|source| LoadError::Source { address, source })?;
        for (first, count) in runs(&pages) {
            let page = PageIndex(block.first_page().0.saturating_add(first as u32));
            let address = space.guest(page.offset_bytes());
            let begin = first.saturating_mul(PAGE_BYTES);
            let end = begin.saturating_add(count.saturating_mul(PAGE_BYTES));
            let bytes = buffer.get(begin..end).unwrap_or_default();
            memory
                .write_slice(bytes, address)
                .map_err(|source| LoadError::Write { address, source })?;
        }
    }
    Ok(())
}

/// Room for a block on its way.
pub(super) fn block_buffer() -> Box<[u8; BLOCK_BYTES]> {
    let buffer = vec![0; BLOCK_BYTES].into_boxed_slice();
    buffer.try_into().expect("the buffer has the length of a block")
}

/// Pages of a block that follow one another: the first, and how many.
pub(super) fn runs(pages: &PageSet) -> impl Iterator<Item = (usize, usize)> {
    let pages = *pages;
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = (next..PAGES_PER_BLOCK).find(|page| pages.contains(*page))?;
        let end = (first..PAGES_PER_BLOCK).find(|page| !pages.contains(*page));
        next = end.unwrap_or(PAGES_PER_BLOCK);
        Some((first, next.saturating_sub(first)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_each_page_once() {
        let mut pages = PageSet::EMPTY;
        [0, 1, 2, 7, 510, 511].into_iter().for_each(|page| pages.insert(page));
        assert_eq!(runs(&pages).collect::<Vec<_>>(), [(0, 3), (7, 1), (510, 2)]);
        assert_eq!(runs(&PageSet::FULL).collect::<Vec<_>>(), [(0, 512)]);
        assert_eq!(runs(&PageSet::EMPTY).count(), 0);
    }
}
