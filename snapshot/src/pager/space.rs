//! Where guest RAM lies: in its image, in this process, and in the guest.

use std::{any::Any, ffi::c_void, io, os::fd::AsFd, sync::Arc};

use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, MprotectFlags, ProtFlags},
};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, bitmap::Bitmap,
};

use super::error::PagerError;
use crate::layout::{
    BLOCK_BYTES, CHUNK_BYTES, IMAGE_BYTES_MAX, PAGE_BYTES, PageIndex, block_count,
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
}

/// The regions of guest RAM, one after the other as its image has them. Keeps them mapped.
#[derive(Clone)]
pub(super) struct Space {
    parts: Arc<[Part]>,
    bytes: u64,
    _mappings: Arc<dyn Any + Send + Sync>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    offset_bytes: u64,
    len_bytes: u64,
    host: usize,
    guest: GuestAddress,
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
    pub fn of<B: Bitmap + Clone + Send + Sync + 'static>(
        memory: &GuestMemoryMmap<B>,
    ) -> Result<Self, SpaceError> {
        let mut parts: Vec<Part> = Vec::new();
        let mut bytes = 0_u64;
        let count = memory.num_regions();
        for (number, region) in memory.iter().enumerate() {
            let is_last = number.saturating_add(1) == count;
            let unit_bytes = if is_last { CHUNK_BYTES } else { BLOCK_BYTES };
            let (start, len_bytes) = (region.start_addr(), region.len());
            if !len_bytes.is_multiple_of(unit_bytes as u64) {
                return Err(SpaceError::Uneven { start: start.0, len_bytes, unit_bytes });
            }
            let host = region.as_ptr() as usize;
            parts.push(Part { offset_bytes: bytes, len_bytes, host, guest: start });
            bytes = bytes.saturating_add(len_bytes);
        }
        if bytes > IMAGE_BYTES_MAX {
            return Err(SpaceError::TooLarge { bytes });
        }
        Ok(Self { parts: parts.into(), bytes, _mappings: Arc::new(memory.clone()) })
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

    /// Forgets what is in this piece. Whatever was touched too early, or lies beside it in a huge
    /// page, would else be taken for loaded.
    pub fn clear(&self, piece: Piece) -> io::Result<()> {
        let (start, len_bytes) = self.range(piece)?;
        // SAFETY: the range is guest RAM that is kept mapped and whose content is ours to decide.
        // Rust has no reference into it.
        unsafe { rustix::mm::madvise(start, len_bytes, Advice::LinuxDontNeed)? };
        Ok(())
    }

    /// From now on an access to this piece is an error.
    pub fn seal(&self, piece: Piece) -> io::Result<()> {
        let (start, len_bytes) = self.range(piece)?;
        // SAFETY: the range is guest RAM that is kept mapped. Rust has no reference into it.
        unsafe { rustix::mm::mprotect(start, len_bytes, MprotectFlags::empty())? };
        Ok(())
    }

    /// Puts a piece of a file there instead of what is there now, privately: the file stays as it is
    /// whatever the guest writes. In huge pages, if the file has them.
    pub fn map(&self, piece: Piece, file: impl AsFd) -> io::Result<()> {
        let (start, len_bytes) = self.range(piece)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is guest RAM that is kept mapped and whose content is ours to decide;
        // it is unmapped with the rest of the region. Rust has no reference into it. Whoever made
        // the file saw to it that it never becomes shorter.
        unsafe {
            rustix::mm::mmap(start, len_bytes, protection, flags, file, piece.offset_bytes)?;
        }
        // A host without huge pages refuses, and works without.
        // SAFETY: as above; the advice changes no content.
        let _ = unsafe { rustix::mm::madvise(start, len_bytes, Advice::LinuxHugepage) };
        Ok(())
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
    fn regions_that_share_a_block_are_refused() {
        assert!(matches!(
            space(&[(0, 1 << 20), (4 << 30, 2 << 20)]),
            Err(SpaceError::Uneven { start: 0, unit_bytes: BLOCK_BYTES, .. })
        ));
        assert!(space(&[(0, 1 << 20)]).is_ok());
    }
}
