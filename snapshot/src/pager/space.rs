//! Where guest RAM lies: in its image, in the process that runs the guest, and in the guest.

use std::{ffi::c_void, io, sync::Arc};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, bitmap::Bitmap,
};

use super::error::PagerError;
use crate::layout::{
    BLOCK_BYTES, BlockIndex, CHUNK_BYTES, IMAGE_BYTES_MAX, PAGE_BYTES, PageIndex, block_count,
};

/// Why guest RAM cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// A chunk would be the end of one region and the beginning of another.
    #[error("the RAM at {start:#x} has {len_bytes} bytes, which is no multiple of {unit_bytes}")]
    Uneven {
        /// Where the region begins in the guest.
        start: u64,
        /// Its length.
        len_bytes: u64,
        /// The unit.
        unit_bytes: usize,
    },
    /// More than an image holds.
    #[error("{bytes} bytes of RAM are more than {IMAGE_BYTES_MAX}")]
    TooLarge {
        /// All regions together.
        bytes: u64,
    },
    /// More than a machine has.
    #[error("{count} regions of RAM are more than {REGIONS_MAX}")]
    TooMany {
        /// Their number.
        count: usize,
    },
    /// No memory is there.
    #[error("the RAM at {start:#x} cannot lie at {host:#x} of a process")]
    Nowhere {
        /// Where the region begins in the guest.
        start: u64,
        /// Where it is said to begin in the process.
        host: u64,
    },
}

/// Regions of RAM of one machine.
const REGIONS_MAX: usize = 8;

/// The regions of guest RAM, one after the other as its image has them.
#[derive(Debug, Clone)]
pub(super) struct Space {
    parts: Arc<[Part]>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    offset_bytes: u64,
    len_bytes: u64,
    host: usize,
    guest: GuestAddress,
}

/// A region of RAM: where it is in the guest and in the process that runs it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Region {
    pub guest: u64,
    pub host: u64,
    pub len_bytes: u64,
}

/// A piece of the image, inside one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it begins in the image.
    pub offset_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
}

impl Space {
    /// The space of this memory.
    pub fn of<B: Bitmap>(memory: &GuestMemoryMmap<B>) -> Result<Self, SpaceError> {
        let regions: Vec<_> = memory
            .iter()
            .map(|region| Region {
                guest: region.start_addr().0,
                host: region.as_ptr() as u64,
                len_bytes: region.len(),
            })
            .collect();
        Self::of_regions(&regions)
    }

    /// The space of memory that some process says it has. Nothing but the kernel can say whether that
    /// is so, and it does, at every call.
    pub fn of_regions(regions: &[Region]) -> Result<Self, SpaceError> {
        if regions.len() > REGIONS_MAX {
            return Err(SpaceError::TooMany { count: regions.len() });
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut bytes = 0_u64;
        for (number, region) in regions.iter().enumerate() {
            let is_last = number.saturating_add(1) == regions.len();
            let unit_bytes = if is_last { CHUNK_BYTES } else { BLOCK_BYTES };
            let Region { guest: start, host, len_bytes } = *region;
            if !len_bytes.is_multiple_of(unit_bytes as u64) {
                return Err(SpaceError::Uneven { start, len_bytes, unit_bytes });
            }
            let is_somewhere = host.is_multiple_of(PAGE_BYTES as u64)
                && host.checked_add(len_bytes).is_some_and(|end| usize::try_from(end).is_ok());
            if !is_somewhere {
                return Err(SpaceError::Nowhere { start, host });
            }
            let (host, guest) = (host as usize, GuestAddress(start));
            parts.push(Part { offset_bytes: bytes, len_bytes, host, guest });
            bytes = bytes.saturating_add(len_bytes);
        }
        if bytes > IMAGE_BYTES_MAX {
            return Err(SpaceError::TooLarge { bytes });
        }
        Ok(Self { parts: parts.into(), bytes })
    }

    /// The regions, for another process.
    pub fn regions(&self) -> Vec<Region> {
        let region = |part: &Part| Region {
            guest: part.guest.0,
            host: part.host as u64,
            len_bytes: part.len_bytes,
        };
        self.parts.iter().map(region).collect()
    }

    /// Blocks of the image; the last one may be cut.
    pub fn block_count(&self) -> u32 {
        block_count(self.bytes)
    }

    /// Bytes of the image.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What of a piece lies in the region in which it begins.
    pub fn in_one_region(&self, piece: Piece) -> Piece {
        let left = self
            .find(piece.offset_bytes)
            .map_or(0, |(part, inside)| part.len_bytes.saturating_sub(inside));
        Piece { len_bytes: piece.len_bytes.min(left), ..piece }
    }

    /// The regions.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        self.parts
            .iter()
            .map(|part| Piece { offset_bytes: part.offset_bytes, len_bytes: part.len_bytes })
    }

    /// The page at an address of this process.
    pub fn page_at(&self, host: usize) -> Option<PageIndex> {
        let (part, inside) = self.parts.iter().find_map(|part| {
            let inside = host.checked_sub(part.host)? as u64;
            (inside < part.len_bytes).then_some((part, inside))
        })?;
        PageIndex::at_offset(part.offset_bytes.checked_add(inside)?)
    }

    /// The address in this process of a piece, if it is one.
    pub fn host(&self, piece: Piece) -> Option<usize> {
        let (part, inside) = self.find(piece.offset_bytes)?;
        let end = inside.checked_add(piece.len_bytes)?;
        (end <= part.len_bytes).then_some(part.host.checked_add(inside as usize)?)
    }

    /// The address in the guest of a place in the image; 0 for a place that is not in it.
    pub fn guest(&self, offset_bytes: u64) -> GuestAddress {
        let found = self.find(offset_bytes);
        GuestAddress(found.map_or(0, |(part, inside)| part.guest.0.saturating_add(inside)))
    }

    /// What went wrong with a piece.
    pub fn error(&self, attempt: &'static str, piece: Piece, source: io::Error) -> PagerError {
        PagerError::Memory { attempt, address: self.guest(piece.offset_bytes), source }
    }

    /// The memory of a piece, as system calls want it.
    pub fn range(&self, piece: Piece) -> io::Result<(*mut c_void, usize)> {
        let start = self.host(piece).ok_or(Errno::FAULT)?;
        Ok((std::ptr::with_exposed_provenance_mut(start), piece.len_bytes as usize))
    }

    fn find(&self, offset_bytes: u64) -> Option<(&Part, u64)> {
        self.parts.iter().find_map(|part| {
            let inside = offset_bytes.checked_sub(part.offset_bytes)?;
            (inside < part.len_bytes).then_some((part, inside))
        })
    }
}

impl Piece {
    /// Some pages.
    pub fn of_pages(first: PageIndex, count: u32) -> Self {
        let len_bytes = u64::from(count).saturating_mul(PAGE_BYTES as u64);
        Self { offset_bytes: first.offset_bytes(), len_bytes }
    }

    /// A block, of which the image may have less.
    pub fn of_block(block: BlockIndex) -> Self {
        Self { offset_bytes: block.offset_bytes(), len_bytes: BLOCK_BYTES as u64 }
    }

    /// Where it ends in the image.
    pub fn end_bytes(&self) -> u64 {
        self.offset_bytes.saturating_add(self.len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(ranges: &[(u64, usize)]) -> Result<Space, SpaceError> {
        let ranges: Vec<_> =
            ranges.iter().map(|(start, len)| (GuestAddress(*start), *len)).collect();
        Space::of(&GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn a_place_is_found_in_the_image_in_the_process_and_in_the_guest() {
        let space = space(&[(1 << 30, 4 << 20), (4 << 30, 3 << 16)]).unwrap();
        assert_eq!(space.block_count(), 3);
        let page = PageIndex::at_offset((4 << 20) + (1 << 16)).unwrap();
        let host = space.host(Piece::of_pages(page, 16)).unwrap();
        assert_eq!(space.page_at(host), Some(page));
        assert_eq!(space.guest(page.offset_bytes()), GuestAddress((4 << 30) + (1 << 16)));
        let beyond = Piece { offset_bytes: 1 << 20, len_bytes: 4 << 20 };
        assert_eq!(space.in_one_region(beyond).len_bytes, 3 << 20);
    }

    #[test]
    fn a_piece_lies_in_one_region() {
        let space = space(&[(1 << 30, 4 << 20), (4 << 30, 2 << 20)]).unwrap();
        assert_eq!(space.host(Piece { offset_bytes: 3 << 20, len_bytes: 2 << 20 }), None);
        assert!(space.host(Piece { offset_bytes: 3 << 20, len_bytes: 1 << 20 }).is_some());
        assert_eq!(space.host(Piece { offset_bytes: 6 << 20, len_bytes: 1 }), None);
        assert_eq!(space.page_at(1), None);
    }

    #[test]
    fn what_a_stranger_says_of_its_memory_is_checked() {
        let region = |host, len_bytes| Region { guest: 1 << 30, host, len_bytes };
        let good = region(1 << 40, 2 << 20);
        assert_eq!(Space::of_regions(&[good]).unwrap().regions(), [good]);
        for host in [!4095, 4097] {
            let error = Space::of_regions(&[region(host, 2 << 20)]).unwrap_err();
            assert!(matches!(error, SpaceError::Nowhere { .. }), "{error}");
        }
        assert!(matches!(Space::of_regions(&[good; 9]), Err(SpaceError::TooMany { count: 9 })));
        let large = Space::of_regions(&[region(1 << 40, 1 << 45)]);
        assert!(matches!(large, Err(SpaceError::TooLarge { .. })));
    }

    #[test]
    fn regions_that_share_a_block_are_refused() {
        assert!(matches!(
            space(&[(0, 1 << 20), (4 << 30, 2 << 20)]),
            Err(SpaceError::Uneven { start: 0, unit_bytes: BLOCK_BYTES, .. })
        ));
        assert!(space(&[(0, 1 << 20)]).is_ok());
    }
}
