//! Loading all of memory before anything runs: for hosts without userfaultfd, and to compare.

use std::io;

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    VolatileMemoryError, bitmap::Bitmap,
};

use super::{
    local::LocalMemory,
    shared_image::ImageView,
    space::{Piece, Space, SpaceError},
};
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
    /// The shared image does not take it.
    #[error("share the guest's memory at {:#x}", address.0)]
    Image {
        /// The block.
        address: GuestAddress,
        /// The cause.
        #[source]
        source: VolatileMemoryError,
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
    let blocks = (0..space.block_count()).map(BlockIndex);
    load_blocks(memory, space, source, blocks).map(|_bytes| ())
}

/// Loads these blocks into memory that nobody uses yet. Returns how much of them is not zero.
pub(super) fn load_blocks<B: Bitmap + 'static>(
    memory: &GuestMemoryMmap<B>,
    space: &Space,
    source: &mut dyn PageSource,
    blocks: impl Iterator<Item = BlockIndex>,
) -> Result<u64, LoadError> {
    let mut buffer = block_buffer();
    let mut data_bytes = 0_u64;
    for block in blocks {
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
            data_bytes = data_bytes.saturating_add(bytes.len() as u64);
        }
    }
    Ok(data_bytes)
}

/// Copies these blocks of an image, in which they are, into memory that nobody uses yet. Returns how
/// much that is.
pub(super) fn copy_blocks<B: Bitmap + 'static>(
    memory: &GuestMemoryMmap<B>,
    space: &Space,
    image: &ImageView,
    blocks: impl Iterator<Item = BlockIndex>,
) -> Result<u64, LoadError> {
    let mut bytes = 0_u64;
    for block in blocks {
        let piece = space.in_one_region(Piece::of_block(block));
        let address = space.guest(piece.offset_bytes);
        let content = image.block(block).and_then(|it| it.subslice(0, piece.len_bytes as usize));
        let content = content.map_err(|source| LoadError::Image { address, source })?;
        let place = memory.get_slice(address, piece.len_bytes as usize);
        content
            .copy_to_volatile_slice(place.map_err(|source| LoadError::Write { address, source })?);
        bytes = bytes.saturating_add(piece.len_bytes);
    }
    Ok(bytes)
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
