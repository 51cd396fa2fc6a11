//! Which parts of memory need the pager at all.

use std::ops::Range;

use super::space::{Piece, Space};
use crate::layout::{BLOCK_BYTES, BlockIndex};

/// Pieces of memory that are registered. Each is a mapping of its own for the kernel, of which a
/// process may have 65530.
const PIECES_MAX: usize = 1024;

/// The blocks that have data, in as few pieces as that takes. Blocks of zeroes are the kernel's: it
/// fills them faster than anybody who is asked, in huge pages too. If data and zeroes alternate too
/// often, the shorter runs of zeroes are taken along.
pub(super) fn with_data(space: &Space, has_data: impl Fn(BlockIndex) -> bool) -> Vec<Piece> {
    let mut gap_blocks = 0;
    loop {
        let pieces = with_gaps(space, &has_data, gap_blocks);
        // With gaps of any length there is one piece in each region.
        if pieces.len() <= PIECES_MAX || gap_blocks >= space.block_count() {
            return pieces;
        }
        gap_blocks = gap_blocks.saturating_mul(2).max(1);
    }
}

/// Exactly those blocks of the pieces that are wanted, in as few pieces as that takes.
pub(super) fn within(
    space: &Space,
    pieces: &[Piece],
    is_wanted: impl Fn(BlockIndex) -> bool,
) -> Vec<Piece> {
    join_all(
        space,
        pieces.iter().flat_map(blocks).map(BlockIndex).filter(|block| is_wanted(*block)),
        0,
    )
}

/// The blocks that are in none of these pieces, which are sorted.
pub(super) fn others(space: &Space, pieces: &[Piece]) -> impl Iterator<Item = BlockIndex> {
    let ends = pieces.iter().map(|piece| blocks(piece).end);
    let begins = pieces.iter().map(|piece| blocks(piece).start);
    let gaps = std::iter::once(0).chain(ends).zip(begins.chain([space.block_count()]));
    gaps.flat_map(|(begin, end)| (begin..end).map(BlockIndex))
}

/// As above, with runs of up to so many blocks of zeroes taken along.
fn with_gaps(space: &Space, has_data: &impl Fn(BlockIndex) -> bool, gap_blocks: u32) -> Vec<Piece> {
    let blocks = (0..space.block_count()).map(BlockIndex).filter(|block| has_data(*block));
    join_all(space, blocks, gap_blocks)
}

/// Sorted blocks in as few pieces as that takes, if gaps of so many blocks are taken along.
fn join_all(
    space: &Space,
    blocks: impl Iterator<Item = BlockIndex>,
    gap_blocks: u32,
) -> Vec<Piece> {
    let gap_bytes = u64::from(gap_blocks).saturating_mul(BLOCK_BYTES as u64);
    let mut pieces: Vec<Piece> = Vec::new();
    for block in blocks {
        let piece = space.in_one_region(Piece::of_block(block));
        let joined = pieces.last().and_then(|last| join(space, *last, piece, gap_bytes));
        match (joined, pieces.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => pieces.push(piece),
        }
    }
    pieces
}

/// The blocks in which a piece lies.
fn blocks(piece: &Piece) -> Range<u32> {
    let of = |bytes: u64| u32::try_from(bytes.div_ceil(BLOCK_BYTES as u64)).unwrap_or(u32::MAX);
    let begin = piece.offset_bytes.checked_div(BLOCK_BYTES as u64).unwrap_or(0);
    of(begin.saturating_mul(BLOCK_BYTES as u64))..of(piece.end_bytes())
}

/// Both pieces as one, if they are of one region and no further apart than allowed.
fn join(space: &Space, first: Piece, second: Piece, gap_bytes: u64) -> Option<Piece> {
    let gap = second.offset_bytes.checked_sub(first.end_bytes())?;
    let len_bytes = second.end_bytes().checked_sub(first.offset_bytes)?;
    let both = Piece { offset_bytes: first.offset_bytes, len_bytes };
    (gap <= gap_bytes && space.in_one_region(both) == both).then_some(both)
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn blocks(regions: &[(u64, usize)], has_data: impl Fn(BlockIndex) -> bool) -> Vec<(u64, u64)> {
        let regions = regions.iter().map(|(start, len)| (GuestAddress(*start), *len));
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions.collect::<Vec<_>>()).unwrap();
        let pieces = with_data(&Space::of(&memory).unwrap(), has_data);
        pieces.iter().map(|piece| (piece.offset_bytes >> 16, piece.len_bytes >> 16)).collect()
    }

    #[test]
    fn neighbours_are_one_piece_and_zeroes_are_left_out() {
        let found = blocks(&[(0, 20 << 20)], |block| [1, 2, 3, 9].contains(&block.0));
        assert_eq!(found, [(32, 96), (9 * 32, 32)]);
        assert!(blocks(&[(0, 20 << 20)], |_| false).is_empty());
    }

    #[test]
    fn a_piece_ends_with_its_region() {
        let found = blocks(&[(0, 4 << 20), (1 << 32, (2 << 20) + (1 << 16))], |_| true);
        assert_eq!(found, [(0, 64), (64, 33)]);
    }

    #[test]
    fn the_kernel_is_not_asked_for_too_many_mappings() {
        // Every other block, and a long stretch of zeroes that is worth being left out.
        let found = blocks(&[(0, 32 << 30)], |block| block.0 % 2 == 0 && block.0 < 16000);
        assert_eq!(found, [(0, 15999 * 32)]);
    }
}
