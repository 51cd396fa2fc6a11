//! Guest RAM of this process, and what is mapped where it lies.

use std::{any::Any, ffi::c_void, io, os::fd::AsFd, sync::Arc};

use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use vm_memory::{GuestMemoryMmap, VolatileSlice, bitmap::Bitmap};

use super::space::{Piece, Space, SpaceError};
use crate::layout::BLOCK_BYTES;

/// Guest RAM that is mapped here, and stays mapped as long as this lives.
#[derive(Clone)]
pub(super) struct LocalMemory {
    space: Space,
    _mappings: Arc<dyn Any + Send + Sync>,
}

impl LocalMemory {
    pub fn of<B: Bitmap + Clone + Send + Sync + 'static>(
        memory: &GuestMemoryMmap<B>,
    ) -> Result<Self, SpaceError> {
        Ok(Self { space: Space::of(memory)?, _mappings: Arc::new(memory.clone()) })
    }

    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Forgets what is in this piece. Whatever was touched too early, or lies beside it in a huge
    /// page, would else be taken for loaded.
    pub fn clear(&self, piece: Piece) -> io::Result<()> {
        let (start, len_bytes) = self.space.range(piece)?;
        // SAFETY: the range is guest RAM that is kept mapped and whose content is ours to decide.
        // Rust has no reference into it.
        unsafe { rustix::mm::madvise(start, len_bytes, Advice::LinuxDontNeed)? };
        Ok(())
    }

    /// From now on an access to this piece is an error.
    pub fn seal(&self, piece: Piece) -> io::Result<()> {
        let (start, len_bytes) = self.space.range(piece)?;
        // SAFETY: the range is guest RAM that is kept mapped. Rust has no reference into it.
        unsafe { rustix::mm::mprotect(start, len_bytes, MprotectFlags::empty())? };
        Ok(())
    }

    /// Puts a piece of a file there instead of what is there now, privately: the file stays as it is
    /// whatever the guest writes. In huge pages, if the file has them.
    pub fn map(&self, piece: Piece, file: impl AsFd) -> io::Result<()> {
        let (start, len_bytes) = self.space.range(piece)?;
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

    /// Sees to it that these pages are there and can be written, as if they had been.
    pub fn populate(&self, piece: Piece) -> io::Result<()> {
        let (start, len_bytes) = self.space.range(piece)?;
        // A page of the host may hold several of the image.
        let inside = (start as usize) & rustix::param::page_size().wrapping_sub(1);
        let (start, len_bytes) =
            (start.wrapping_byte_sub(inside), len_bytes.saturating_add(inside));
        // SAFETY: the range is guest RAM that is kept mapped; the advice changes no content. Rust has
        // no reference into it.
        unsafe { rustix::mm::madvise(start, len_bytes, Advice::LinuxPopulateWrite)? };
        Ok(())
    }

    /// Puts these bytes there instead of what is there now, in memory of this machine alone, in huge
    /// pages if the host has them. Whoever looks sees all of it or what was there before.
    pub fn replace(&self, piece: Piece, content: VolatileSlice<'_>) -> io::Result<()> {
        let (place, len_bytes) = self.space.range(piece)?;
        let room = Room::like(place, len_bytes)?;
        // A host without huge pages refuses, and works without.
        // SAFETY: the range is the room; the advice changes no content.
        let _ = unsafe { rustix::mm::madvise(room.start, len_bytes, Advice::LinuxHugepage) };
        // SAFETY: the range is the room, of which nobody else knows.
        content.copy_to_volatile_slice(unsafe { VolatileSlice::new(room.start.cast(), len_bytes) });
        // SAFETY: the destination is guest RAM that is kept mapped and whose content is ours to
        // decide; Rust has no reference into it, nor into the room.
        unsafe {
            let flags = MremapFlags::MAYMOVE;
            rustix::mm::mremap_fixed(room.start, len_bytes, len_bytes, flags, place)?;
        }
        // It has moved away.
        std::mem::forget(room);
        Ok(())
    }
}

/// Memory of our own, unmapped in the end.
struct Room {
    start: *mut c_void,
    len_bytes: usize,
}

impl Room {
    /// Anywhere, but aligned as `place` is: huge pages have to be, and move as a whole then.
    fn like(place: *mut c_void, len_bytes: usize) -> io::Result<Self> {
        let all_bytes = len_bytes.saturating_add(BLOCK_BYTES);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, anywhere.
        let all = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), all_bytes, protection, flags)?
        };
        let before = (place as usize).wrapping_sub(all as usize) & BLOCK_BYTES.wrapping_sub(1);
        let start = all.wrapping_byte_add(before);
        let behind = BLOCK_BYTES.saturating_sub(before);
        for (start, len_bytes) in [(all, before), (start.wrapping_byte_add(len_bytes), behind)] {
            if len_bytes > 0 {
                // SAFETY: both ends of what was just mapped, of which nobody else knows.
                unsafe { rustix::mm::munmap(start, len_bytes)? };
            }
        }
        Ok(Self { start, len_bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this alone.
        let _it_cannot_be_refused = unsafe { rustix::mm::munmap(self.start, self.len_bytes) };
    }
}
