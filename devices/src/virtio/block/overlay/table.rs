//! Which blocks an overlay has: two bits for each, in units that carry a checksum.
//!
//! ```text
//!  unit (512 bytes): checksum u64 │ 2016 blocks × 2 bits, the first in the lowest bits
//! ```
//! A unit is what disks write whole or not at all, so a crash leaves an old or a new one and a
//! checksum that does not fit is damage.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
#[derive(Debug)]
pub(super) struct Table {
    units: Vec<[u8; UNIT_BYTES]>,
    /// Those that the file does not have yet, in ascending order, each once.
    dirty: BTreeSet<usize>,
    /// Whether there are any, for others to see.
    is_behind: Arc<AtomicBool>,
    block_count: u64,
}

/// What a unit of nothing but zeroes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blank {
    /// Damage: its checksum is wrong.
    Damaged,
    /// One that was never written, all of whose blocks are absent. So a fresh table costs nothing,
    /// however large the disk is.
    Absent,
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
        let is_behind = Arc::new(true.into());
        Self { units: vec![[0; UNIT_BYTES]; unit_count], dirty, is_behind, block_count }
    }

    /// Every block is absent, as in a file whose units are all blank.
    pub(super) fn blank(block_count: u64) -> Self {
        let units = vec![[0; UNIT_BYTES]; Self::unit_count(block_count) as usize];
        Self { units, dirty: BTreeSet::new(), is_behind: Arc::default(), block_count }
    }

    /// Checks the units of a file, every bit of them.
    pub(super) fn decode(
        units: Vec<[u8; UNIT_BYTES]>,
        block_count: u64,
        blank: Blank,
    ) -> Result<Self, Damage> {
        for (index, unit) in units.iter().enumerate() {
            if blank == Blank::Absent && *unit == [0; UNIT_BYTES] {
                continue;
            }
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
        let table = Self { units, dirty: BTreeSet::new(), is_behind: Arc::default(), block_count };
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
            self.is_behind.store(true, Ordering::Release);
        }
    }

    /// The blocks that are not absent, in ascending order.
    pub(super) fn marked(&self) -> impl Iterator<Item = (u64, BlockState)> + '_ {
        let units = (0_u64..).zip(&self.units);
        let marked = units.filter(|(_, unit)| unit.iter().skip(CHECKSUM_BYTES).any(|it| *it != 0));
        let blocks = marked.flat_map(|(index, _)| {
            let first = index.saturating_mul(BLOCKS_PER_UNIT);
            first..first.saturating_add(BLOCKS_PER_UNIT)
        });
        let states = blocks.map(|block| (block, self.state(block)));
        states.filter(|(_, state)| *state != BlockState::Absent)
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
        self.is_behind.store(self.is_dirty(), Ordering::Release);
    }

    /// True while the file lacks something that is here.
    pub(super) fn is_behind(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_behind)
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
