//! A machine that goes on after it was suspended: most of its memory is still that of the snapshot which
//! it was launched from, and the host has verified that already, for its clones.
//!
//! ```text
//!  a block that is the same in both    ─▶ mapped: shared with all clones until it is written
//!  a piece of any other block, in both ─▶ copied out of the image
//!  what is the machine's own           ─▶ read from its packs, and verified
//! ```
//! Same means that the digests are: whatever a hostile snapshot claims to have in common with another
//! one, it gets nothing that it could not have brought along itself.

use vm_memory::VolatileSlice;

use super::shared_image::ImageView;
use crate::{
    image_reader::{ImageReader, of_chunk, zero_fill},
    layout::{BLOCK_BYTES, BlockIndex, CHUNK_BYTES, ChunkIndex, PAGE_BYTES, PAGES_PER_CHUNK},
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
    /// Of the chunk that is being loaded.
    pieces: Vec<Piece>,
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
        let pieces = Vec::with_capacity(PAGES_PER_CHUNK);
        Box::new(Based { reader, base: self, pieces })
    }

    /// The base's pieces of a chunk that is there.
    fn pieces(&mut self, chunk: ChunkIndex) -> &[Piece] {
        if !self.view.is_resident(chunk.block()) {
            return &[];
        }
        // A base that is damaged is none: all is in the snapshot itself.
        let pieces = self.reader.pieces(chunk.block()).unwrap_or_default();
        of_chunk(pieces, chunk.in_block())
    }
}

impl Based {
    fn fill_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<u16, SourceError> {
        let Self { reader, base, pieces } = self;
        let block = chunk.block();
        pieces.clear();
        pieces.extend_from_slice(of_chunk(reader.pieces(block)?, chunk.in_block()));
        let known = base.pieces(chunk);
        // The rest of them is to be read. It is told apart before the image is borrowed.
        let is_known = |piece: &Piece| known.iter().any(|base| has_same_pages(base, piece));
        let copied: u16 = pieces.iter().filter(|it| is_known(it)).fold(0, |all, it| all | it.used);
        let copied = copy(&base.view, chunk, copied, out);
        let mut pages = copied;
        for piece in pieces.iter().filter(|piece| piece.used & copied == 0) {
            reader.load_piece(block, piece, out)?;
            pages |= piece.used;
        }
        zero_fill(out, !pages);
        Ok(pages)
    }
}

/// Whether the used pages of a piece are, in the base, pages of the same content.
fn has_same_pages(base: &Piece, piece: &Piece) -> bool {
    let content = |it: &Piece| (it.digest, it.stored, it.codec);
    content(base) == content(piece) && piece.used & !base.used == 0
}

/// Copies these pages of a chunk out of an image. Returns which ones.
fn copy(image: &ImageView, chunk: ChunkIndex, pages: u16, out: &mut [u8; CHUNK_BYTES]) -> u16 {
    let first = chunk.in_block().saturating_mul(CHUNK_BYTES);
    let place = image.block(chunk.block()).and_then(|block| block.subslice(first, CHUNK_BYTES));
    let Ok(place) = place else { return 0 };
    let (out, _) = out.as_chunks_mut::<PAGE_BYTES>();
    let page_of = |number: usize| place.subslice(number.saturating_mul(PAGE_BYTES), PAGE_BYTES);
    let mut copied = 0;
    for number in bits(pages) {
        if let (Ok(page), Some(out)) = (page_of(number), out.get_mut(number)) {
            VolatileSlice::copy_to(&page, out.as_mut_slice());
            copied |= 1_u16.wrapping_shl(number as u32);
        }
    }
    copied
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

    fn pages(&mut self, block: BlockIndex) -> Result<PageSet, SourceError> {
        PageSource::pages(&mut self.reader, block)
    }

    fn load_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<u16, SourceError> {
        self.fill_chunk(chunk, out).inspect_err(|_| out.fill(0))
    }

    fn load_block(
        &mut self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SourceError> {
        self.reader.load_block(block, out)
    }
}
