//! Reading an image of a snapshot: every byte is verified before it is handed out.
//!
//! ```text
//!  page fault ─▶ index of the manifest ─▶ block record ─▶ pieces ─▶ pages
//!                (verified at open)       (its digest     (their digests
//!                                          is in there)    are in here)
//! ```
//! The memory of a reader is bounded and used again from one fault to the next: once its buffers and
//! its 32 places for records have their size, it allocates nothing more.

mod piece;
mod records;

use crate::layout::{BLOCK_BYTES, BlockIndex, CHUNK_BYTES, ChunkIndex, PageIndex, page_count};
use crate::manifest::{BlockEntry, ImageIndex, Layers};
use crate::page_set::{PageSet, bits};
use crate::record::{self, Piece};
use crate::snapshot::Snapshot;
use crate::source::{Fault, PageSource, Place, SourceError};

use piece::PieceLoader;
use records::Records;

/// A reader of one image of a snapshot. Each thread has its own.
pub struct ImageReader {
    snapshot: Snapshot,
    /// Which of the snapshot's images; there is one of this number.
    number: usize,
    records: Records,
    loader: PieceLoader,
}

impl ImageReader {
    pub(crate) fn new(snapshot: Snapshot, number: usize) -> Self {
        Self { snapshot, number, records: Records::new(), loader: PieceLoader::new() }
    }

    /// The image and its index.
    pub fn index(&self) -> &ImageIndex {
        index_of(&self.snapshot, self.number)
    }

    /// The pieces of a block, verified and sorted; none if all of it is zero.
    pub(crate) fn pieces(&mut self, block: BlockIndex) -> Result<&[Piece], SourceError> {
        let Self { snapshot, number, records, .. } = self;
        pieces_of(snapshot, index_of(snapshot, *number), records, block)
    }

    /// Verifies one piece of a block without handing it out.
    pub(crate) fn check_piece(
        &mut self,
        block: BlockIndex,
        piece: &Piece,
    ) -> Result<(), SourceError> {
        let Self { snapshot, number, loader, .. } = self;
        loader
            .check(snapshot.pack(piece.layer), piece)
            .map_err(|fault| piece_error(snapshot, *number, block, piece, fault))
    }

    /// As [`PageSource::load_chunk`], but for `known`, which is asked for each piece before it is read: true if it
    /// has put the piece's pages there.
    pub(crate) fn load_chunk_but(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
        known: impl FnMut(&Piece, &mut [u8; CHUNK_BYTES]) -> bool,
    ) -> Result<u16, SourceError> {
        self.fill_chunk(chunk, out, known).inspect_err(|_| out.fill(0))
    }

    fn fill_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
        mut known: impl FnMut(&Piece, &mut [u8; CHUNK_BYTES]) -> bool,
    ) -> Result<u16, SourceError> {
        let Self { snapshot, number, records, loader } = self;
        let index = index_of(snapshot, *number);
        let pieces = pieces_of(snapshot, index, records, chunk.block())?;
        let pieces = of_chunk(pieces, chunk.in_block());
        let mut pages = 0;
        for piece in pieces {
            pages |= piece.used;
            if known(piece, out) {
                continue;
            }
            loader
                .load(snapshot.pack(piece.layer), piece, out)
                .map_err(|fault| piece_error(snapshot, *number, chunk.block(), piece, fault))?;
        }
        zero_fill(out, !pages);
        Ok(pages)
    }

    fn fill_block(
        &mut self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SourceError> {
        let Self { snapshot, number, records, loader } = self;
        let index = index_of(snapshot, *number);
        let pieces = pieces_of(snapshot, index, records, block)?;
        let (chunks, _) = out.as_chunks_mut::<CHUNK_BYTES>();
        let mut rest = pieces;
        while let Some(first) = rest.first() {
            let (run, others) = rest.split_at(plain_run(rest).max(1));
            rest = others;
            let place = chunks.get_mut(usize::from(first.chunk)..).unwrap_or_default();
            loader.load_run(snapshot.pack(first.layer), run, place).map_err(|(place, fault)| {
                let piece = run.get(place).unwrap_or(first);
                piece_error(snapshot, *number, block, piece, fault)
            })?;
        }
        let pages = record::pages(pieces);
        for (number, chunk) in chunks.iter_mut().enumerate() {
            zero_fill(chunk, !pages.chunk(number));
        }
        Ok(pages)
    }
}

impl PageSource for ImageReader {
    fn image_bytes(&self) -> u64 {
        self.index().image.bytes
    }

    fn has_data(&self, block: BlockIndex) -> bool {
        self.index().entry(block).is_some()
    }

    fn pages(&mut self, block: BlockIndex) -> Result<PageSet, SourceError> {
        self.pieces(block).map(record::pages)
    }

    fn load_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<u16, SourceError> {
        self.load_chunk_but(chunk, out, |_, _| false)
    }

    fn load_block(
        &mut self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SourceError> {
        self.fill_block(block, out).inspect_err(|_| out.fill(0))
    }
}

impl std::fmt::Debug for ImageReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageReader").field("image", &self.index().image).finish_non_exhaustive()
    }
}

/// The image's index. `Snapshot::image` has looked that there is one of this number.
fn index_of(snapshot: &Snapshot, number: usize) -> &ImageIndex {
    snapshot.manifest().images.get(number).expect("a reader is made for an image that exists")
}

fn pieces_of<'a>(
    snapshot: &Snapshot,
    index: &ImageIndex,
    records: &'a mut Records,
    block: BlockIndex,
) -> Result<&'a [Piece], SourceError> {
    if block.offset_bytes() >= index.image.bytes {
        let place = Place { layer: 0, pack: None, offset: block.offset_bytes(), bytes: 0 };
        return Err(error(snapshot, index, block.first_page(), place, Fault::OutOfImage));
    }
    let Some(entry) = index.entry(block) else { return Ok(&[]) };
    let layers = &snapshot.manifest().layers;
    let pages = page_count(index.image.bytes);
    records.get(snapshot.pack(entry.record_layer), entry, layers, pages).map_err(|fault| {
        let place = record_place(layers, entry);
        error(snapshot, index, block.first_page(), place, fault)
    })
}

/// The pieces of one chunk; a record is sorted by chunk.
pub(crate) fn of_chunk(pieces: &[Piece], chunk: usize) -> &[Piece] {
    let begin = pieces.partition_point(|piece| usize::from(piece.chunk) < chunk);
    let end = pieces.partition_point(|piece| usize::from(piece.chunk) <= chunk);
    pieces.get(begin..end).unwrap_or_default()
}

/// How many of the first pieces are whole chunks that follow each other, in the pack too: they are
/// read at once.
fn plain_run(pieces: &[Piece]) -> usize {
    let follows = |pair: &[Piece]| match pair {
        [one, two] => {
            one.is_plain_chunk()
                && two.is_plain_chunk()
                && one.chunk.checked_add(1) == Some(two.chunk)
                && one.layer == two.layer
                && one.end() == two.offset
        }
        _ => false,
    };
    pieces.windows(2).take_while(|pair| follows(pair)).count().saturating_add(1)
}

/// The first bytes of a buffer, which grows to the largest that was asked for. So a reader costs
/// nothing before it is used: making one is on the way of every resume.
fn room(buffer: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
    buffer.get_mut(..bytes).expect("the buffer was made to have so many")
}

fn zero_fill(chunk: &mut [u8; CHUNK_BYTES], pages: u16) {
    let (places, _) = chunk.as_chunks_mut::<{ crate::layout::PAGE_BYTES }>();
    for page in bits(pages) {
        if let Some(place) = places.get_mut(page) {
            place.fill(0);
        }
    }
}

fn record_place(layers: &Layers, entry: &BlockEntry) -> Place {
    Place {
        layer: entry.record_layer,
        pack: layers.get(entry.record_layer).map(|layer| layer.pack),
        offset: entry.record_offset,
        bytes: entry.record_bytes,
    }
}

fn piece_error(
    snapshot: &Snapshot,
    number: usize,
    block: BlockIndex,
    piece: &Piece,
    fault: Fault,
) -> SourceError {
    let first = block.chunk(piece.chunk.into()).first_page().0;
    let page = PageIndex(first.saturating_add(piece.used.trailing_zeros()));
    let place = Place {
        layer: piece.layer,
        pack: snapshot.manifest().layers.get(piece.layer).map(|layer| layer.pack),
        offset: piece.offset,
        bytes: piece.stored_bytes,
    };
    error(snapshot, index_of(snapshot, number), page, place, fault)
}

fn error(
    snapshot: &Snapshot,
    index: &ImageIndex,
    page: PageIndex,
    place: Place,
    fault: Fault,
) -> SourceError {
    let (snapshot, image, fault) = (snapshot.id(), index.image.name.clone(), Box::new(fault));
    SourceError { snapshot, image, page, place, fault }
}
