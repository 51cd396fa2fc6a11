//! Block records: which pieces a block is made of.
//!
//! A *piece* is some pages of one chunk, stored together in one pack and covered by one digest. A
//! later snapshot that overwrites a part of them goes on using the rest: `stored` says which pages
//! the content has, `used` which of them count. The `used` masks of a chunk are disjoint, so a
//! block has at most 512 pieces. A page in none of them is zero, or on a disk what its base has.

use crate::id::Digest;
use crate::layout::{
    CHUNKS_PER_BLOCK, LAYERS_MAX, PACK_BYTES_MAX, PAGE_BYTES, PIECES_PER_BLOCK_MAX,
};
use crate::page_set::PageSet;
use crate::wire::{Cursor, Put, Truncated};

/// Bytes of one piece in a record.
pub const PIECE_ENTRY_BYTES: usize = 52;
/// Bytes of the largest record.
pub const RECORD_BYTES_MAX: usize = PIECES_PER_BLOCK_MAX * PIECE_ENTRY_BYTES;

/// How a piece is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// The pages, one after the other.
    Raw,
    /// One zstd frame of them.
    Zstd,
}

/// Some pages of one chunk, from one place of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The chunk's number in its block.
    pub chunk: u8,
    /// Pages that the content has, lowest page in the lowest bit; they follow each other in it.
    pub stored: u16,
    /// Those of them that are the block's pages; the others have been overwritten since.
    pub used: u16,
    /// The slot of the layer whose pack has the content.
    pub layer: u8,
    /// How it is stored.
    pub codec: Codec,
    /// Where it begins in the pack.
    pub offset: u64,
    /// Bytes it takes there.
    pub stored_bytes: u32,
    /// Digest of these bytes, as they are stored: so the decompressor is given none but those that
    /// the writer of the snapshot stored.
    pub digest: Digest,
}

/// Why a record cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It ends inside of a piece.
    #[error("the record is cut")]
    Truncated(#[from] Truncated),
    /// A field of a piece, or what the pieces are together.
    #[error("{field} = {value} is not possible: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Which rule it breaks.
        reason: &'static str,
    },
}

impl Piece {
    /// Bytes of the content when decoded.
    pub fn content_bytes(&self) -> usize {
        (self.stored.count_ones() as usize).saturating_mul(PAGE_BYTES)
    }

    /// Whether it is a whole chunk that can be read straight to where it belongs.
    pub(crate) fn is_plain_chunk(&self) -> bool {
        self.codec == Codec::Raw && self.stored == u16::MAX && self.used == u16::MAX
    }

    /// Where the content ends in the pack.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.stored_bytes.into())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.put(&self.digest.0);
        out.put_u64(self.offset);
        out.put_u32(self.stored_bytes);
        out.put_u16(self.stored);
        out.put_u16(self.used);
        out.put_u8(self.chunk);
        out.put_u8(self.layer);
        out.put_u8(match self.codec {
            Codec::Raw => 0,
            Codec::Zstd => 1,
        });
        out.put_u8(0);
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self, RecordError> {
        let digest = Digest(cursor.array()?);
        let offset = cursor.u64()?;
        let stored_bytes = cursor.u32()?;
        let stored = cursor.u16()?;
        let used = cursor.u16()?;
        let chunk = cursor.u8()?;
        let layer = cursor.u8()?;
        let codec = match cursor.u8()? {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            other => return Err(invalid("codec", other, "0 (raw) or 1 (zstd)")),
        };
        let reserved = cursor.u8()?;
        if reserved != 0 {
            return Err(invalid("reserved", reserved, "0"));
        }
        let piece = Self { chunk, stored, used, layer, codec, offset, stored_bytes, digest };
        piece.check()?;
        Ok(piece)
    }

    fn check(&self) -> Result<(), RecordError> {
        let content_bytes = self.content_bytes() as u64;
        let stored_bytes = u64::from(self.stored_bytes);
        if usize::from(self.chunk) >= CHUNKS_PER_BLOCK {
            return Err(invalid("chunk", self.chunk, "below 32"));
        }
        if usize::from(self.layer) >= LAYERS_MAX {
            return Err(invalid("layer", self.layer, "below 32"));
        }
        if self.used == 0 || self.used & !self.stored != 0 {
            return Err(invalid("used", self.used, "at least one page, and only stored ones"));
        }
        let possible = match self.codec {
            Codec::Raw => stored_bytes == content_bytes,
            Codec::Zstd => stored_bytes != 0 && stored_bytes < content_bytes,
        };
        if !possible {
            return Err(invalid("stored_bytes", stored_bytes, "as many as the pages, or fewer"));
        }
        if self.end() > PACK_BYTES_MAX {
            return Err(invalid("offset", self.offset, "inside of a pack"));
        }
        Ok(())
    }
}

/// Sorts pieces as a record has them, and encodes them.
pub(crate) fn encode(pieces: &mut [Piece]) -> Vec<u8> {
    pieces.sort_unstable_by_key(order);
    let mut out = Vec::with_capacity(pieces.len().saturating_mul(PIECE_ENTRY_BYTES));
    pieces.iter().for_each(|piece| piece.encode(&mut out));
    out
}

/// Reads a record into `pieces`, which keeps its memory from one record to the next.
///
/// # Errors
/// See [`RecordError`]; `pieces` is then empty.
pub(crate) fn decode(bytes: &[u8], pieces: &mut Vec<Piece>) -> Result<(), RecordError> {
    pieces.clear();
    let result = decode_each(bytes, pieces);
    if result.is_err() {
        pieces.clear();
    }
    result
}

fn decode_each(bytes: &[u8], pieces: &mut Vec<Piece>) -> Result<(), RecordError> {
    if bytes.is_empty() || bytes.len() > RECORD_BYTES_MAX {
        return Err(invalid("record bytes", bytes.len() as u64, "1 to 512 pieces"));
    }
    let mut cursor = Cursor::new(bytes);
    let mut seen = PageSet::EMPTY;
    let mut last = None;
    while cursor.left() > 0 {
        let piece = Piece::decode(&mut cursor)?;
        let key = order(&piece);
        if last.is_some_and(|last| last >= key) {
            return Err(invalid("chunk", piece.chunk, "pieces are sorted by their first page"));
        }
        let chunk = usize::from(piece.chunk);
        if seen.chunk(chunk) & piece.used != 0 {
            return Err(invalid("used", piece.used, "no page is in two pieces"));
        }
        seen.insert_chunk(chunk, piece.used);
        last = Some(key);
        pieces.push(piece);
    }
    Ok(())
}

/// The pages that pieces give data to.
pub(crate) fn pages(pieces: &[Piece]) -> PageSet {
    let mut pages = PageSet::EMPTY;
    pieces.iter().for_each(|piece| pages.insert_chunk(piece.chunk.into(), piece.used));
    pages
}

/// The slots of the layers that pieces come from, a bit each.
pub(crate) fn layers(pieces: &[Piece]) -> u32 {
    pieces.iter().fold(0, |mask, piece| mask | layer_bit(piece.layer))
}

/// The bit of a layer's slot.
pub(crate) fn layer_bit(layer: u8) -> u32 {
    1_u32.checked_shl(layer.into()).unwrap_or(0)
}

/// Pieces are sorted by the first page that they give.
fn order(piece: &Piece) -> (u8, u32) {
    (piece.chunk, piece.used.trailing_zeros())
}

fn invalid(field: &'static str, value: impl Into<u64>, reason: &'static str) -> RecordError {
    RecordError::Invalid { field, value: value.into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(chunk: u8, stored: u16, used: u16) -> Piece {
        let stored_bytes = stored.count_ones() << 12;
        let digest = Digest([7; 32]);
        Piece {
            chunk,
            stored,
            used,
            layer: 2,
            codec: Codec::Raw,
            offset: 4096,
            stored_bytes,
            digest,
        }
    }

    fn refusal(pieces: &[Piece]) -> String {
        let mut bytes = Vec::new();
        pieces.iter().for_each(|piece| piece.encode(&mut bytes));
        let mut decoded = vec![piece(0, 1, 1)];
        let error = decode(&bytes, &mut decoded).unwrap_err().to_string();
        assert!(decoded.is_empty());
        error
    }

    #[test]
    fn a_record_comes_back_sorted() {
        let mut pieces = [piece(3, 0b110, 0b100), piece(3, 1, 1), piece(0, 0xffff, 0xffff)];
        let bytes = encode(&mut pieces);
        assert_eq!(bytes.len(), 3 * PIECE_ENTRY_BYTES);
        let mut decoded = Vec::new();
        decode(&bytes, &mut decoded).unwrap();
        assert_eq!(decoded, [piece(0, 0xffff, 0xffff), piece(3, 1, 1), piece(3, 0b110, 0b100)]);
        assert_eq!((layers(&decoded), pages(&decoded).count()), (4, 18));
    }

    #[test]
    fn what_no_writer_writes_is_refused_by_field() {
        assert!(refusal(&[]).starts_with("record bytes = 0"));
        assert!(refusal(&[piece(32, 1, 1)]).starts_with("chunk = 32"));
        assert!(refusal(&[piece(0, 1, 3)]).starts_with("used = 3"));
        assert!(refusal(&[piece(0, 1, 0)]).starts_with("used = 0"));
        assert!(refusal(&[Piece { layer: 32, ..piece(0, 1, 1) }]).starts_with("layer = 32"));
        let compressed = Piece { codec: Codec::Zstd, ..piece(0, 1, 1) };
        assert!(refusal(&[compressed]).starts_with("stored_bytes = 4096"));
        assert!(refusal(&[Piece { offset: u64::MAX, ..piece(0, 1, 1) }]).starts_with("offset"));
        assert!(refusal(&[piece(0, 3, 3), piece(0, 2, 2)]).contains("no page is in two pieces"));
        assert!(refusal(&[piece(1, 1, 1), piece(0, 1, 1)]).contains("sorted"));
    }

    #[test]
    fn a_cut_record_is_refused() {
        let bytes = encode(&mut [piece(0, 1, 1)]);
        assert!(matches!(
            decode(&bytes[..51], &mut Vec::new()),
            Err(RecordError::Truncated(Truncated { needed: 1, left: 0 }))
        ));
    }
}
