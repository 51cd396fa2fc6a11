//! An image that all machines of a host share: it is loaded and verified once.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::Advice,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileMemoryError, mmap};

use crate::{
    layout::{BLOCK_BYTES, BlockIndex, IMAGE_BYTES_MAX, block_count},
    page_set::PageSet,
    source::{PageSource, SourceError},
};

/// State of a block that is there, whole and verified.
const RESIDENT: u8 = 1;
/// So that a file that is handed over neither shrinks under a mapping nor grows.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// The decoded image of a snapshot in a memory file, in huge pages where the host has them
/// (`shmem_enabled`). Behind the image lies one byte for each block: whether it is there.
///
/// Who holds the descriptor can write the image, and so decides what the machines that share it
/// run. It is for processes that trust each other.
pub struct SharedImage {
    file: Arc<File>,
    image_bytes: u64,
    /// All of the file.
    window: MmapRegion<()>,
}

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
pub enum SharedImageError {
    /// More than an image holds, or nothing.
    #[error("an image of {image_bytes} bytes cannot be shared")]
    Length {
        /// Its length.
        image_bytes: u64,
    },
    /// The host gives no such file.
    #[error("create a memory file of {file_bytes} bytes")]
    Create {
        /// Its length.
        file_bytes: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What was handed over is no such image.
    #[error("the descriptor is no shared image of {image_bytes} bytes, sealed against shrinking")]
    Foreign {
        /// The length that was expected.
        image_bytes: u64,
    },
    /// There is no room in this process.
    #[error("map the shared image")]
    Map(#[source] mmap::MmapRegionError),
}

/// Why a block does not come through the image.
#[derive(Debug, thiserror::Error)]
pub(super) enum SharedLoadError {
    /// Its content cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The image does not take it.
    #[error(transparent)]
    Image(#[from] VolatileMemoryError),
}

impl SharedImage {
    /// An image of which nothing is loaded yet.
    ///
    /// # Errors
    /// See [`SharedImageError`].
    pub fn create(image_bytes: u64) -> Result<Self, SharedImageError> {
        let file_bytes = file_bytes(image_bytes)?;
        let create = || -> rustix::io::Result<OwnedFd> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = rustix::fs::memfd_create("rotifer-image", flags)?;
            rustix::fs::ftruncate(&file, file_bytes)?;
            rustix::fs::fcntl_add_seals(&file, SEALS)?;
            Ok(file)
        };
        let file = create()
            .map_err(|error| SharedImageError::Create { file_bytes, source: error.into() })?;
        Self::map(file, image_bytes, file_bytes)
    }

    /// The image that another process created.
    ///
    /// # Errors
    /// See [`SharedImageError`].
    pub fn open(file: OwnedFd, image_bytes: u64) -> Result<Self, SharedImageError> {
        let file_bytes = file_bytes(image_bytes)?;
        let length = rustix::fs::fstat(&file).map(|stat| stat.st_size as u64);
        let seals = rustix::fs::fcntl_get_seals(&file);
        if length != Ok(file_bytes) || !seals.is_ok_and(|seals| seals.contains(SEALS)) {
            return Err(SharedImageError::Foreign { image_bytes });
        }
        Self::map(file, image_bytes, file_bytes)
    }

    /// Bytes of the image.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// Whether a block is there.
    pub fn is_resident(&self, block: BlockIndex) -> bool {
        self.state(block).is_some_and(|state| state.load(Ordering::Acquire) == RESIDENT)
    }

    /// Puts a verified block there. Two who do it at once write the same.
    fn publish(
        &self,
        block: BlockIndex,
        bytes: &[u8; BLOCK_BYTES],
    ) -> Result<(), VolatileMemoryError> {
        let start = block.offset_bytes() as usize;
        self.window.as_volatile_slice().write_slice(bytes, start)?;
        if let Some(state) = self.state(block) {
            state.store(RESIDENT, Ordering::Release);
        }
        Ok(())
    }

    /// The content of a block that is there.
    fn read(
        &self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<(), VolatileMemoryError> {
        self.window.as_volatile_slice().read_slice(out, block.offset_bytes() as usize)
    }

    /// Loads a block through the image: it is there afterwards, and was verified once for all who
    /// share it.
    pub(super) fn load_block(
        &self,
        block: BlockIndex,
        source: &mut dyn PageSource,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SharedLoadError> {
        if self.is_resident(block) {
            self.read(block, out)?;
            return Ok(source.pages(block)?);
        }
        let pages = source.load_block(block, out)?;
        self.publish(block, out)?;
        Ok(pages)
    }

    fn state(&self, block: BlockIndex) -> Option<&AtomicU8> {
        let count = block_count(self.image_bytes);
        let states = (count as usize).checked_mul(BLOCK_BYTES)?;
        let place = states.checked_add(block.0 as usize)?;
        if block.0 >= count {
            return None;
        }
        self.window.get_atomic_ref(place).ok()
    }

    fn map(file: OwnedFd, image_bytes: u64, file_bytes: u64) -> Result<Self, SharedImageError> {
        let file = Arc::new(File::from(file));
        let offset = FileOffset::from_arc(Arc::clone(&file), 0);
        let window = MmapRegion::from_file(offset, file_bytes as usize);
        let window = window.map_err(SharedImageError::Map)?;
        // A host without huge pages refuses, and works without.
        // SAFETY: the range is the mapping just made; the advice changes no content.
        let _ = unsafe {
            rustix::mm::madvise(window.as_ptr().cast(), window.size(), Advice::LinuxHugepage)
        };
        Ok(Self { file, image_bytes, window })
    }
}

impl AsFd for SharedImage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl std::fmt::Debug for SharedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedImage")
            .field("image_bytes", &self.image_bytes)
            .finish_non_exhaustive()
    }
}

/// Whole blocks, and a byte for each of them.
fn file_bytes(image_bytes: u64) -> Result<u64, SharedImageError> {
    if image_bytes == 0 || image_bytes > IMAGE_BYTES_MAX {
        return Err(SharedImageError::Length { image_bytes });
    }
    let blocks = u64::from(block_count(image_bytes));
    Ok(blocks.saturating_mul((BLOCK_BYTES as u64).saturating_add(1)))
}
