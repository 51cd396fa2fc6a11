//! Where pages come from: the interface between whoever needs memory and whatever holds it.

use std::io;

use crate::id::{Digest, PackId, SnapshotId};
use crate::layout::{BLOCK_BYTES, BlockIndex, CHUNK_BYTES, ChunkIndex, PageIndex};
use crate::name::Name;
use crate::page_set::PageSet;
use crate::pager::ImageView;
use crate::record::RecordError;

/// An image that is loaded piece by piece. Whatever it hands out has been verified.
///
/// A page of RAM that is not in the sets returned here is zero: a loader need not copy it, and had
/// better not, because a page of zeroes costs memory that a page never written does not. On a disk
/// such a page is what its base has, and pages of zeroes are in the sets.
pub trait PageSource: Send {
    /// Bytes of the image.
    fn image_bytes(&self) -> u64;

    /// Whether the image has anything of a block, as far as that is known without loading anything:
    /// `false` is certain, and such a block of RAM is left to the kernel. Asked of every block before
    /// a machine starts.
    fn has_data(&self, block: BlockIndex) -> bool;

    /// An image of this host that has some of this one's chunks, verified: they can be mapped from there,
    /// privately, instead of being loaded.
    fn base(&self) -> Option<&ImageView> {
        None
    }

    /// Whether all of a block is the same there. That may come to be at any time, and then stays.
    fn is_in_base(&self, _block: BlockIndex) -> bool {
        false
    }

    /// The chunks of a block that are the same there: bit `n` stands for chunk `n` of the block. There may
    /// come to be more of them at any time, and never less.
    fn base_chunks(&mut self, _block: BlockIndex) -> u32 {
        0
    }

    /// The pages of a block that the image has. Cheap once the block has been asked for.
    ///
    /// # Errors
    /// The block's record cannot be read or is not what it should be, or there is no such block.
    fn pages(&mut self, block: BlockIndex) -> Result<PageSet, SourceError>;

    /// Fills all of `out`, zero pages with zeroes; the result says which pages are not.
    ///
    /// # Errors
    /// Content cannot be read or is not what it should be. `out` is then all zeroes, so that
    /// nothing unverified is left in it: it must not be used.
    fn load_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<u16, SourceError>;

    /// Fills all of `out`, zero pages with zeroes; the result says which pages are not. Faster
    /// than chunk by chunk.
    ///
    /// # Errors
    /// As [`Self::load_chunk`].
    fn load_block(
        &mut self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SourceError>;
}

/// A page cannot be had, and where it should have come from.
#[derive(Debug, thiserror::Error)]
#[error("load page {page} of image {image} of snapshot {snapshot} from {place}")]
pub struct SourceError {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// RAM or a disk.
    pub image: Name,
    /// The first page that cannot be had.
    pub page: PageIndex,
    /// Where it should be.
    pub place: Place,
    /// Why it cannot be had.
    #[source]
    pub fault: Box<Fault>,
}

/// A range of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The slot of the layer.
    pub layer: u8,
    /// Its pack, if the layer is known.
    pub pack: Option<PackId>,
    /// Where the range begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u32,
}

/// Why a page cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The pack cannot be read, or ends too early.
    #[error("read the pack")]
    Read(#[source] io::Error),
    /// The pack was not opened.
    #[error("the pack is not open")]
    PackAbsent,
    /// The content was changed.
    #[error("the content has digest {found}, and the snapshot says {expected}")]
    Digest {
        /// What the snapshot says.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
    /// The record has the right digest and makes no sense: it was written with evil intent.
    #[error("decode the block's record")]
    Record(#[source] RecordError),
    /// Compressed content that does not decompress.
    #[error("decompress the content")]
    Decompress(#[source] io::Error),
    /// Compressed content that is shorter than its pages.
    #[error("the content decompresses to {found} bytes instead of {expected}")]
    DecompressedBytes {
        /// Bytes of the pages.
        expected: usize,
        /// Bytes that came out.
        found: usize,
    },
    /// The image ends before.
    #[error("the image has no such page")]
    OutOfImage,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { layer, pack, offset, bytes } = self;
        match pack {
            Some(pack) => write!(f, "layer {layer} (pack {pack}), {bytes} bytes at {offset}"),
            None => write!(f, "layer {layer}, {bytes} bytes at {offset}"),
        }
    }
}
