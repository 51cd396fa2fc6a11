//! A machine that goes on after it was suspended: most of its memory is still that of the snapshot which
//! it was launched from, and the host has verified that already, for its clones.
//!
//! ```text
//!  a block that is the same in both ─▶ mapped at the start: shared with all clones until it is written
//!  a chunk of another block that is ─▶ mapped when the block is touched
//!  pages of another chunk that are  ─▶ copied out of the image
//!  what is the machine's own        ─▶ read from its packs, and verified
//! ```
//! Same means that the digests are: whatever a hostile snapshot claims to have in common with another
//! one, it gets nothing that it could not have brought along itself.

use super::shared_image::ImageView;
use crate::{
    image_reader::{ImageReader, of_chunk},
    layout::{BLOCK_BYTES, BlockIndex, CHUNK_BYTES, CHUNKS_PER_BLOCK, ChunkIndex, PAGE_BYTES},
    page_set::{PageSet, bits},
    record::Piece,
    source::{PageSource, SourceError},
};

/// An image that this host shares, of a snapshot that another one is based on.
#[derive(Debug)]
pub struct Base {
    /// Of the snapshot that it is the image of.
    reader: ImageReader,
    view: ImageView,
}

/// A snapshot's image of RAM, of which some is in its base.
struct Based {
    reader: ImageReader,
    base: Base,
}

impl Base {
    /// `view` is the image that `reader` reads.
    pub(super) fn new(reader: ImageReader, view: ImageView) -> Self {
        Self { reader, view }
    }

    /// What `reader` reads, on top of this base. If RAM has another size in the two, they have nothing in
    /// common.
    pub fn below(self, reader: ImageReader) -> Box<dyn PageSource> {
        if self.view.image_bytes() != reader.image_bytes() {
            return Box::new(reader);
        }
        Box::new(Based { reader, base: self })
    }
}

impl Piece {
    /// Whether both give the same pages.
    fn is_same(&self, other: &Self) -> bool {
        self.used == other.used && self.is_within(other)
    }

    /// Whether the other one gives all pages that this one gives.
    fn is_within(&self, other: &Self) -> bool {
        let content = |it: &Self| (it.digest, it.stored, it.codec);
        content(self) == content(other) && self.used & !other.used == 0
    }
}

/// Copies these pages of a chunk out of an image; false if it has not got them.
fn copy(image: &ImageView, chunk: ChunkIndex, pages: u16, out: &mut [u8; CHUNK_BYTES]) -> bool {
    let first = chunk.in_block().saturating_mul(CHUNK_BYTES);
    let place = image.block(chunk.block()).and_then(|block| block.subslice(first, CHUNK_BYTES));
    let Ok(place) = place else { return false };
    let (out, _) = out.as_chunks_mut::<PAGE_BYTES>();
    bits(pages).all(|number| {
        let page = place.subslice(number.saturating_mul(PAGE_BYTES), PAGE_BYTES);
        let (Ok(page), Some(out)) = (page, out.get_mut(number)) else { return false };
        page.copy_to(out.as_mut_slice()) == PAGE_BYTES
    })
}

impl PageSource for Based {
    fn image_bytes(&self) -> u64 {
        self.reader.image_bytes()
    }

    fn has_data(&self, block: BlockIndex) -> bool {
        self.reader.has_data(block)
    }

    fn base(&self) -> Option<&ImageView> {
        Some(&self.base.view)
    }

    fn is_in_base(&self, block: BlockIndex) -> bool {
        let digest = |reader: &ImageReader| reader.index().entry(block).map(|it| it.digest);
        let own = digest(&self.reader);
        own.is_some() && own == digest(&self.base.reader) && self.base.view.is_resident(block)
    }

    fn base_chunks(&mut self, block: BlockIndex) -> u32 {
        let Self { reader, base: Base { reader: base, view } } = self;
        if !view.is_resident(block) {
            return 0;
        }
        // A block that cannot be read is nobody's yet: who touches it hears of it.
        let (Ok(own), Ok(other)) = (reader.pieces(block), base.pieces(block)) else { return 0 };
        let is_same = |chunk: &usize| {
            let (own, other) = (of_chunk(own, *chunk), of_chunk(other, *chunk));
            own.len() == other.len() && own.iter().zip(other).all(|(own, other)| own.is_same(other))
        };
        (0..CHUNKS_PER_BLOCK)
            .filter(is_same)
            .fold(0, |mask, chunk| mask | 1_u32.wrapping_shl(chunk as u32))
    }

    fn pages(&mut self, block: BlockIndex) -> Result<PageSet, SourceError> {
        PageSource::pages(&mut self.reader, block)
    }

    fn load_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<u16, SourceError> {
        let Self { reader, base: Base { reader: base, view } } = self;
        // Where the base is not there, or is damaged, it is none: all is in the snapshot itself.
        let is_there = view.is_resident(chunk.block());
        let pieces = is_there.then(|| base.pieces(chunk.block()).unwrap_or_default());
        let pieces = of_chunk(pieces.unwrap_or_default(), chunk.in_block());
        reader.load_chunk_but(chunk, out, |piece, out| {
            pieces.iter().any(|other| piece.is_within(other)) && copy(view, chunk, piece.used, out)
        })
    }

    fn load_block(
        &mut self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SourceError> {
        self.reader.load_block(block, out)
    }
}
