//! A descriptor chain, read once from guest memory into a value of ours.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress};

use super::BrokenRing;
use crate::GuestMemory;

/// The longest chain that is accepted, in descriptors, indirect or not. Above every limit that
/// our devices announce (`seg_max` of block is lower), and a bound on what one chain allocates.
pub const MAX_CHAIN_SEGMENTS: usize = 256;

/// A piece of guest memory that a descriptor names. Not checked to be in RAM yet: whoever
/// accesses it finds out, and has an answer for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub address: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A chain that the driver made available. It is given back, by value, to
/// [`super::QueueIo::complete`], so it cannot be completed twice.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    /// The first this many segments are readable, the others writable (section 2.7.4.2).
    readable_count: usize,
}

/// Guest memory that a chain names is not RAM.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("a descriptor points outside of guest memory")]
pub struct OutsideMemory;

impl Chain {
    /// One that no driver has made.
    #[cfg(test)]
    pub(super) fn of(segments: impl IntoIterator<Item = Segment>, readable_count: usize) -> Self {
        Self { head: 0, segments: segments.into_iter().collect(), readable_count }
    }

    /// Reads the whole chain.
    pub(super) fn read(
        queue: usize,
        mut descriptors: DescriptorChain<&GuestMemory>,
    ) -> Result<Self, BrokenRing> {
        let broken = BrokenRing::Chain { queue };
        let mut chain =
            Self { head: descriptors.head_index(), segments: Vec::new(), readable_count: 0 };
        // The iterator ends silently where a chain is malformed, so remember whether the last
        // descriptor promised another one.
        let mut promised_next = true;
        for descriptor in descriptors.by_ref() {
            if chain.segments.len() == MAX_CHAIN_SEGMENTS {
                return Err(broken);
            }
            if !descriptor.is_write_only() {
                if chain.readable_count != chain.segments.len() {
                    return Err(broken);
                }
                chain.readable_count = chain.readable_count.saturating_add(1);
            }
            chain.segments.push(Segment { address: descriptor.addr(), len: descriptor.len() });
            promised_next = descriptor.has_next();
        }
        if promised_next { Err(broken) } else { Ok(chain) }
    }

    /// The head's index, for [`super::QueueIo::complete`].
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read, in order.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable_count).unwrap_or_default()
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable_count..).unwrap_or_default()
    }

    /// Bytes that the device may read. A chain holds less than 4 GiB (section 2.7.5.2), which
    /// reading it has checked.
    pub fn readable_bytes(&self) -> u64 {
        self.readable().iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> u64 {
        self.writable().iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// Copies the readable bytes from `offset` on into `buffer`; the number copied is smaller
    /// than the buffer where the readable part ends.
    ///
    /// # Errors
    /// [`OutsideMemory`] if a descriptor does not point into RAM.
    pub fn read_at(
        &self,
        memory: &GuestMemory,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, OutsideMemory> {
        let mut done: usize = 0;
        for piece in slice(self.readable(), offset, buffer.len() as u64) {
            let end = done.saturating_add(piece.len as usize);
            let part = buffer.get_mut(done..end).ok_or(OutsideMemory)?;
            memory.read_slice(part, piece.address).map_err(|_| OutsideMemory)?;
            done = end;
        }
        Ok(done)
    }

    /// Copies `bytes` to the writable part from `offset` on; the number copied is smaller than
    /// `bytes` where the writable part ends.
    ///
    /// # Errors
    /// [`OutsideMemory`] if a descriptor does not point into RAM.
    pub fn write_at(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, OutsideMemory> {
        let mut done: usize = 0;
        for piece in slice(self.writable(), offset, bytes.len() as u64) {
            let end = done.saturating_add(piece.len as usize);
            let part = bytes.get(done..end).ok_or(OutsideMemory)?;
            memory.write_slice(part, piece.address).map_err(|_| OutsideMemory)?;
            done = end;
        }
        Ok(done)
    }
}

/// The pieces of `segments` that hold the bytes `offset .. offset + len` of their concatenation,
/// as far as there are so many.
pub(super) fn slice(
    segments: &[Segment],
    offset: u64,
    len: u64,
) -> impl Iterator<Item = Segment> + '_ {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.len.into());
        skip = skip.saturating_sub(skipped);
        let taken = u64::from(segment.len).saturating_sub(skipped).min(left);
        left = left.saturating_sub(taken);
        // `taken` is at most `segment.len`. An address that wraps around is not in RAM, which
        // saturation keeps true.
        let address = GuestAddress(segment.address.0.saturating_add(skipped));
        (taken > 0).then_some(Segment { address, len: u32::try_from(taken).unwrap_or(u32::MAX) })
    })
}
