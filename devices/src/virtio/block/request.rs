//! A request, section 5.2.6: read once from the chain, checked against the disk, then done.
//!
//! ```text
//!   readable:  type u32 | reserved u32 | sector u64 | data to write, or ranges
//!   writable:  data that was read | status u8
//! ```
//! How the driver cuts this into descriptors is its own affair (section 2.7.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::Extent;
use super::{
    MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_WRITE_ZEROES_RANGES, MAX_WRITE_ZEROES_SECTORS,
    SECTOR_BYTES,
};
use crate::GuestMemory;
use crate::virtio::Chain;

/// Length of what stands before the data.
pub(super) const HEADER_BYTES: u64 = 16;
/// Length of one range of DISCARD and WRITE_ZEROES: sector u64, count u32, flags u32.
const RANGE_BYTES: usize = 16;

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as isize,
    IoError = VIRTIO_BLK_S_IOERR as isize,
    Unsupported = VIRTIO_BLK_S_UNSUPP as isize,
}

/// What the driver wants. Every extent lies on the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the first bytes of the writable part.
    Read(Extent),
    /// Take the readable bytes after the header.
    Write(Extent),
    Flush,
    /// Write the name of the disk to the writable part.
    Identify,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

/// A range of DISCARD or WRITE_ZEROES.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) extent: Extent,
    /// WRITE_ZEROES may free the space.
    pub(super) unmap: bool,
}

/// The disk as a request meets it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) capacity_sectors: u64,
    pub(super) read_only: bool,
}

impl Request {
    /// Reads and checks the request in `chain`, or says with which status to refuse it.
    pub(super) fn parse(
        chain: &Chain,
        memory: &GuestMemory,
        limits: Limits,
    ) -> Result<Self, Status> {
        let mut header = [0; HEADER_BYTES as usize];
        match chain.read_at(memory, 0, &mut header) {
            Ok(count) if count == header.len() => {}
            _ => return Err(Status::IoError),
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        // The last writable byte is the status.
        let in_bytes = chain.writable_bytes().saturating_sub(1);
        let out_bytes = chain.readable_bytes().saturating_sub(HEADER_BYTES);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            VIRTIO_BLK_T_IN => limits.extent(sector, in_bytes).map(Self::Read),
            VIRTIO_BLK_T_OUT => limits.writable()?.extent(sector, out_bytes).map(Self::Write),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Identify),
            VIRTIO_BLK_T_DISCARD => {
                let limits = limits.writable()?;
                // Freeing is all that DISCARD does, so its unmap flag is not for us to know.
                let kind = RangeKind {
                    max_count: MAX_DISCARD_RANGES,
                    max_sectors: MAX_DISCARD_SECTORS,
                    known_flags: 0,
                };
                kind.read(chain, memory, limits).map(Self::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let limits = limits.writable()?;
                let kind = RangeKind {
                    max_count: MAX_WRITE_ZEROES_RANGES,
                    max_sectors: MAX_WRITE_ZEROES_SECTORS,
                    known_flags: VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
                };
                kind.read(chain, memory, limits).map(Self::WriteZeroes)
            }
            _ => Err(Status::Unsupported),
        }
    }
}

impl Limits {
    fn writable(self) -> Result<Self, Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(self) }
    }

    /// `len` bytes from `sector` on, if they are whole sectors of the disk.
    fn extent(self, sector: u64, len: u64) -> Result<Extent, Status> {
        let end = sector.checked_add(len / SECTOR_BYTES);
        if !len.is_multiple_of(SECTOR_BYTES) || end.is_none_or(|end| end > self.capacity_sectors) {
            return Err(Status::IoError);
        }
        // Below the capacity, so the product is the size of a file at most.
        Ok(Extent { offset: sector.saturating_mul(SECTOR_BYTES), len })
    }
}

/// What DISCARD and WRITE_ZEROES allow in their ranges.
struct RangeKind {
    max_count: usize,
    max_sectors: u32,
    known_flags: u32,
}

impl RangeKind {
    fn read(
        &self,
        chain: &Chain,
        memory: &GuestMemory,
        limits: Limits,
    ) -> Result<Vec<Range>, Status> {
        let len = chain.readable_bytes().saturating_sub(HEADER_BYTES);
        let len = usize::try_from(len).map_err(|_| Status::IoError)?;
        let most = self.max_count.saturating_mul(RANGE_BYTES);
        if len == 0 || len % RANGE_BYTES != 0 || len > most {
            return Err(Status::IoError);
        }
        let mut bytes = vec![0; len];
        chain.read_at(memory, HEADER_BYTES, &mut bytes).map_err(|_| Status::IoError)?;
        let (ranges, _) = bytes.as_chunks::<RANGE_BYTES>();
        ranges.iter().map(|range| self.range(*range, limits)).collect()
    }

    fn range(&self, bytes: [u8; RANGE_BYTES], limits: Limits) -> Result<Range, Status> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([c0, c1, c2, c3]);
        let flags = u32::from_le_bytes(flags);
        if flags & !self.known_flags != 0 {
            return Err(Status::Unsupported);
        }
        if count > self.max_sectors {
            return Err(Status::IoError);
        }
        let len = u64::from(count).saturating_mul(SECTOR_BYTES);
        let extent = limits.extent(sector, len)?;
        Ok(Range { extent, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
    }
}
