//! Loading pieces: read, verify, decompress, and only then hand out.

use zstd::bulk::Decompressor;

use crate::id::Digest;
use crate::layout::{CHUNK_BYTES, PAGE_BYTES};
use crate::pack::Pack;
use crate::page_set::bits;
use crate::record::{Codec, Piece};
use crate::source::Fault;

use super::room;

/// Buffers for pieces on their way.
pub(super) struct PieceLoader {
    stored: Vec<u8>,
    content: Vec<u8>,
    /// Made when the first compressed piece comes; most snapshots have none.
    decompressor: Option<Decompressor<'static>>,
}

impl PieceLoader {
    pub(super) fn new() -> Self {
        Self { stored: Vec::new(), content: Vec::new(), decompressor: None }
    }

    /// Puts the pages that a piece gives into its chunk, and touches no others.
    pub(super) fn load(
        &mut self,
        pack: Option<&Pack>,
        piece: &Piece,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<(), Fault> {
        if piece.is_plain_chunk() {
            read(pack, piece.offset, out)?;
            return verify(piece, out);
        }
        let content = self.content(pack, piece)?;
        let (places, _) = out.as_chunks_mut::<PAGE_BYTES>();
        let (pages, _) = content.as_chunks::<PAGE_BYTES>();
        for (page, content) in bits(piece.stored).zip(pages) {
            let place = places.get_mut(page).filter(|_| bits(piece.used).any(|used| used == page));
            if let Some(place) = place {
                *place = *content;
            }
        }
        Ok(())
    }

    /// Loads pieces into the chunks from the first one's on: one piece of any kind, or several
    /// whole chunks that follow each other in the pack and in the block. An error says which of
    /// the pieces is at fault.
    pub(super) fn load_run(
        &mut self,
        pack: Option<&Pack>,
        run: &[Piece],
        out: &mut [[u8; CHUNK_BYTES]],
    ) -> Result<(), (usize, Fault)> {
        let (Some(first), Some(chunk)) = (run.first(), out.first_mut()) else { return Ok(()) };
        if run.len() == 1 {
            return self.load(pack, first, chunk).map_err(|fault| (0, fault));
        }
        let out = out.get_mut(..run.len()).unwrap_or_default();
        read(pack, first.offset, out.as_flattened_mut()).map_err(|fault| (0, fault))?;
        run.iter().zip(out).enumerate().try_for_each(|(place, (piece, chunk))| {
            verify(piece, chunk).map_err(|fault| (place, fault))
        })
    }

    /// Verifies a piece without handing it out.
    pub(super) fn check(&mut self, pack: Option<&Pack>, piece: &Piece) -> Result<(), Fault> {
        self.content(pack, piece).map(|_| ())
    }

    /// The verified pages of a piece, one after the other.
    fn content(&mut self, pack: Option<&Pack>, piece: &Piece) -> Result<&[u8], Fault> {
        let Self { stored, content, decompressor } = self;
        // A piece is no longer than a chunk: its record was checked.
        let stored = room(stored, piece.stored_bytes as usize);
        read(pack, piece.offset, stored)?;
        verify(piece, stored)?;
        match piece.codec {
            Codec::Raw => Ok(stored),
            Codec::Zstd => {
                let content = room(content, piece.content_bytes());
                decompress(decompressor, stored, content)?;
                Ok(content)
            }
        }
    }
}

fn read(pack: Option<&Pack>, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
    let pack = pack.ok_or(Fault::PackAbsent)?;
    pack.content.read_exact_at(out, offset).map_err(Fault::Read)
}

/// The output is a buffer of the right length, so a frame that claims to be longer is refused
/// before anything is allocated for it.
fn decompress(
    decompressor: &mut Option<Decompressor<'static>>,
    stored: &[u8],
    content: &mut [u8],
) -> Result<(), Fault> {
    let decompressor = match decompressor {
        Some(decompressor) => decompressor,
        None => decompressor.insert(Decompressor::new().map_err(Fault::Decompress)?),
    };
    let expected = content.len();
    let found = decompressor.decompress_to_buffer(stored, content).map_err(Fault::Decompress)?;
    if found == expected { Ok(()) } else { Err(Fault::DecompressedBytes { expected, found }) }
}

fn verify(piece: &Piece, stored: &[u8]) -> Result<(), Fault> {
    let (expected, found) = (piece.digest, Digest::of(stored));
    if expected == found { Ok(()) } else { Err(Fault::Digest { expected, found }) }
}
