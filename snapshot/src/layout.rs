//! The units of an image, and every limit of the format.
//!
//! An *image* (guest RAM, or what a disk holds) is counted in pages of 4 KiB, chunks of 64 KiB and
//! blocks of 2 MiB, whatever the page size of the host: a chunk is a multiple of every base page of
//! ARM64, so a snapshot of a 4 KiB host is loaded on a 16 or 64 KiB one.

/// The unit that is either zero, taken over from a parent, or written.
pub const PAGE_BYTES: usize = 4 << 10;
/// The unit of a fault: what is read and verified at once.
pub const CHUNK_BYTES: usize = 64 << 10;
/// The unit of the index: what one entry of a manifest describes.
pub const BLOCK_BYTES: usize = 2 << 20;
/// Pages in a chunk: one bit each in a `u16`.
pub const PAGES_PER_CHUNK: usize = CHUNK_BYTES / PAGE_BYTES;
/// Chunks in a block.
pub const CHUNKS_PER_BLOCK: usize = BLOCK_BYTES / CHUNK_BYTES;
/// Pages in a block.
pub const PAGES_PER_BLOCK: usize = BLOCK_BYTES / PAGE_BYTES;

/// Packs that one snapshot may consist of. A deeper chain has to be compacted first.
pub const LAYERS_MAX: usize = 32;
/// RAM and disks of one machine.
pub const IMAGES_MAX: usize = 32;
/// Bytes of one image.
pub const IMAGE_BYTES_MAX: u64 = 32 << 30;
/// Blocks of one image.
pub const BLOCKS_MAX: usize = (IMAGE_BYTES_MAX / BLOCK_BYTES as u64) as usize;
/// Bytes of one pack: more than all images can hold.
pub const PACK_BYTES_MAX: u64 = 1 << 42;
/// Bytes of a manifest: what opening one may allocate.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Ranges of guest physical memory.
pub const MEMORY_REGIONS_MAX: usize = 64;
/// CPU features compared before a restore.
pub const CPU_FEATURES_MAX: usize = 4096;
/// Runs of pages in a working set.
pub const WORKING_SET_RUNS_MAX: usize = 1 << 18;
/// Sections of machine state.
pub const MACHINE_SECTIONS_MAX: usize = 1024;
/// Bytes of one section of machine state.
pub const MACHINE_SECTION_BYTES_MAX: usize = 8 << 20;
/// Bytes of a snapshot's label.
pub const LABEL_BYTES_MAX: usize = 256;
/// Pieces of one block: at worst every page comes from a place of its own.
pub const PIECES_PER_BLOCK_MAX: usize = PAGES_PER_BLOCK;
/// Packs that are looked at in the directories of a search.
pub const PACK_FILES_MAX: usize = 4096;

const PAGE_BYTES_LOG2: u32 = PAGE_BYTES.trailing_zeros();
const CHUNK_BYTES_LOG2: u32 = CHUNK_BYTES.trailing_zeros();
const BLOCK_BYTES_LOG2: u32 = BLOCK_BYTES.trailing_zeros();

/// A page of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

/// A chunk of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

/// A block of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct BlockIndex(pub u32);

impl PageIndex {
    /// The page that holds this byte of an image; none for an offset that no image has.
    pub fn at_offset(offset_bytes: u64) -> Option<Self> {
        u32::try_from(offset_bytes >> PAGE_BYTES_LOG2).ok().map(Self)
    }

    /// Where the page begins in its image.
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.0) << PAGE_BYTES_LOG2
    }

    /// The chunk it lies in.
    pub fn chunk(self) -> ChunkIndex {
        ChunkIndex(self.0 >> (CHUNK_BYTES_LOG2 - PAGE_BYTES_LOG2))
    }

    /// The block it lies in.
    pub fn block(self) -> BlockIndex {
        self.chunk().block()
    }

    /// Its number in its block.
    pub fn in_block(self) -> usize {
        self.0 as usize % PAGES_PER_BLOCK
    }
}

impl ChunkIndex {
    /// The block it lies in.
    pub fn block(self) -> BlockIndex {
        BlockIndex(self.0 >> (BLOCK_BYTES_LOG2 - CHUNK_BYTES_LOG2))
    }

    /// Its number in its block.
    pub fn in_block(self) -> usize {
        self.0 as usize % CHUNKS_PER_BLOCK
    }

    /// Where the chunk begins in its image.
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.0) << CHUNK_BYTES_LOG2
    }

    /// Its first page.
    pub fn first_page(self) -> PageIndex {
        PageIndex(self.0 << (CHUNK_BYTES_LOG2 - PAGE_BYTES_LOG2))
    }
}

impl BlockIndex {
    /// Where the block begins in its image.
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.0) << BLOCK_BYTES_LOG2
    }

    /// Its first page.
    pub fn first_page(self) -> PageIndex {
        PageIndex(self.0 << (BLOCK_BYTES_LOG2 - PAGE_BYTES_LOG2))
    }

    /// One of its chunks; `chunk` counts from 0 in the block.
    pub fn chunk(self, chunk: usize) -> ChunkIndex {
        let first = self.0 << (BLOCK_BYTES_LOG2 - CHUNK_BYTES_LOG2);
        ChunkIndex(first | (chunk % CHUNKS_PER_BLOCK) as u32)
    }
}

impl std::fmt::Display for PageIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// How many blocks an image of this length has; the last one may be cut.
pub fn block_count(image_bytes: u64) -> u32 {
    u32::try_from(image_bytes.div_ceil(BLOCK_BYTES as u64)).unwrap_or(u32::MAX)
}

/// How many pages an image of this length has; the last one may be cut.
pub fn page_count(image_bytes: u64) -> u32 {
    u32::try_from(image_bytes.div_ceil(PAGE_BYTES as u64)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_knows_its_chunk_its_block_and_its_place() {
        let page = PageIndex::at_offset((5 << 21) + (3 << 16) + (7 << 12) + 11).unwrap();
        assert_eq!(page.offset_bytes(), (5 << 21) + (3 << 16) + (7 << 12));
        assert_eq!((page.block(), page.chunk().in_block()), (BlockIndex(5), 3));
        assert_eq!(page.in_block(), 3 * 16 + 7);
        assert_eq!(page.block().chunk(3), page.chunk());
        assert_eq!(page.chunk().first_page().0, page.0 - 7);
        assert_eq!(BlockIndex(5).first_page().offset_bytes(), BlockIndex(5).offset_bytes());
        assert_eq!(page.chunk().offset_bytes(), (5 << 21) + (3 << 16));
        assert_eq!(PageIndex::at_offset(u64::MAX), None);
    }

    #[test]
    fn an_image_that_ends_inside_a_block_has_that_block() {
        assert_eq!((block_count(1), page_count(1)), (1, 1));
        assert_eq!((block_count(2 << 20), page_count(2 << 20)), (1, 512));
        assert_eq!((block_count((2 << 20) + 1), page_count((2 << 20) + 1)), (2, 513));
        assert_eq!(block_count(IMAGE_BYTES_MAX), 16384);
    }
}
