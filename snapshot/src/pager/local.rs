//! Guest RAM of this process, and what is mapped where it lies.

use std::{any::Any, io, os::fd::AsFd, sync::Arc};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use vm_memory::{GuestMemoryMmap, bitmap::Bitmap};

use super::space::{Piece, Space, SpaceError};

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
}
