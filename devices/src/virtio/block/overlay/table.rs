//! Which blocks an overlay has: two bits for each, in units that carry a checksum.
//!
//! ```text
//!  unit (512 bytes): checksum u64 │ 2016 blocks × 2 bits, the first in the lowest bits
//! ```
//! A unit is what disks write whole or not at all, so a crash leaves an old or a new one and a
//! checksum that does not fit is damage.

use super::{BLOCK_BYTES, Damage};

/// Size of a unit.
pub(super) const UNIT_BYTES: usize = 512;
const CHECKSUM_BYTES: usize = 8;
const BLOCKS_PER_BYTE: u64 = 4;
/// Blocks whose states are in one unit.
pub(super) const BLOCKS_PER_UNIT: u64 = (UNIT_BYTES - CHECKSUM_BYTES) as u64 * BLOCKS_PER_BYTE;

/// What an overlay knows of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// Nothing: it is as in the layer below.
    Absent,
    /// Its content.
    Present,
    /// That it is zero.
    Zero,
}

/// The states of all blocks, as they are in the file or shall be.
#[derive(Debug, Clone)]
pub(super) struct Table {
    units: Vec<[u8; UNIT_BYTES]>,
    /// Those that the file does not have yet, in ascending order, each once.
    dirty: std::collections::BTreeSet<usize>,
    block_count: u64,
}

impl Table {
    /// How many units the table of a disk has.
    pub(super) fn unit_count(block_count: u64) -> u64 {
        block_count.div_ceil(BLOCKS_PER_UNIT)
    }

    /// Every block is absent. All of it is dirty.
    pub(super) fn new(block_count: u64) -> Self {
        let unit_count = Self::unit_count(block_count) as usize;
        let dirty = (0..unit_count).collect();
        Self { units: vec![[0; UNIT_BYTES]; unit_count], dirty, block_count }
    }

    /// Checks the units of a file, every bit of them.
    pub(super) fn decode(units: Vec<[u8; UNIT_BYTES]>, block_count: u64) -> Result<Self, Damage> {
        for (index, unit) in units.iter().enumerate() {
            let damaged = Damage::Table { unit: index };
            let (found, states) = unit.split_at(CHECKSUM_BYTES);
            if found != checksum(index, states) {
                return Err(damaged);
            }
            // Both bits of a block are set: there is no such state.
            if states.iter().any(|byte| byte & (byte >> 1) & 0b0101_0101 != 0) {
                return Err(damaged);
            }
        }
        let table = Self { units, dirty: std::collections::BTreeSet::new(), block_count };
        let end = Self::unit_count(block_count).saturating_mul(BLOCKS_PER_UNIT);
        match (block_count..end).find(|block| table.state(*block) != BlockState::Absent) {
            Some(block) => Err(Damage::Table { unit: (block / BLOCKS_PER_UNIT) as usize }),
            None => Ok(table),
        }
    }

    /// The state of `block`; one behind the end is absent.
    pub(super) fn state(&self, block: u64) -> BlockState {
        let (unit, byte, shift) = place(block);
        let byte = self.units.get(unit).and_then(|unit| unit.get(byte)).copied().unwrap_or(0);
        match byte >> shift & 0b11 {
            1 => BlockState::Present,
            2 => BlockState::Zero,
            _ => BlockState::Absent,
        }
    }

    pub(super) fn set(&mut self, block: u64, state: BlockState) {
        if block >= self.block_count || self.state(block) == state {
            return;
        }
        let (unit, byte, shift) = place(block);
        if let Some(place) = self.units.get_mut(unit).and_then(|unit| unit.get_mut(byte)) {
            let bits = match state {
                BlockState::Absent => 0,
                BlockState::Present => 1,
                BlockState::Zero => 2,
            };
            *place = *place & !(0b11 << shift) | bits << shift;
            self.dirty.insert(unit);
        }
    }

    /// The state of the byte at `offset`, and for how many bytes, at most `len`, it is the same.
    pub(super) fn run(&self, offset: u64, len: u64) -> (BlockState, u64) {
        let state = self.state(offset / BLOCK_BYTES);
        let mut end = next_block(offset);
        let limit = offset.saturating_add(len);
        while end < limit && self.state(end / BLOCK_BYTES) == state {
            end = next_block(end);
        }
        (state, end.min(limit).saturating_sub(offset))
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// A unit that the file does not have yet, with its checksum.
    pub(super) fn next_dirty(&mut self) -> Option<(usize, [u8; UNIT_BYTES])> {
        let index = *self.dirty.first()?;
        let unit = self.units.get_mut(index)?;
        let (to, states) = unit.split_at_mut(CHECKSUM_BYTES);
        to.copy_from_slice(&checksum(index, states));
        Some((index, *unit))
    }

    /// The file has the unit now.
    pub(super) fn is_written(&mut self, unit: usize) {
        self.dirty.remove(&unit);
    }

    pub(super) fn block_count(&self) -> u64 {
        self.block_count
    }
}

fn next_block(offset: u64) -> u64 {
    (offset / BLOCK_BYTES).saturating_add(1).saturating_mul(BLOCK_BYTES)
}

/// Unit, byte in it, and bit in that.
fn place(block: u64) -> (usize, usize, u32) {
    let unit = (block / BLOCKS_PER_UNIT) as usize;
    let index = block % BLOCKS_PER_UNIT;
    let byte = CHECKSUM_BYTES.saturating_add((index / BLOCKS_PER_BYTE) as usize);
    (unit, byte, (index % BLOCKS_PER_BYTE).saturating_mul(2) as u32)
}

/// A unit in another's place is damage, too.
pub(super) fn checksum(index: usize, states: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(index as u64).to_le_bytes()).update(states);
    let mut checksum = [0; CHECKSUM_BYTES];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}
