//! An image that all machines of a host share: it is loaded and verified once.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{Advice, MapFlags, ProtFlags},
};
use vm_memory::{
    Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileMemoryError, VolatileSlice, mmap,
};

use super::eager::{block_buffer, runs};
use crate::{
    layout::{BLOCK_BYTES, BlockIndex, IMAGE_BYTES_MAX, PAGE_BYTES, block_count},
    source::{PageSource, SourceError},
};

/// State of a block that is there, whole and verified.
const RESIDENT: u8 = 1;
/// A file that is handed over neither shrinks under a mapping nor grows, and is written by nobody
/// but who mapped it before it was sealed (Linux 5.1).
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);
/// When all is there, it is written by nobody at all.
const LAST_SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SEAL);

/// The decoded image of a snapshot in a memory file, in huge pages where the host has them
/// (`shmem_enabled`). Behind the image lies one byte for each block: whether it is there.
///
/// Only its maker can write it, and nobody any more when all is there. Others map it, with [`ImageView`].
pub struct SharedImage {
    view: ImageView,
    /// Whoever loads holds it, so that nobody loads a block again. None if all is there.
    loading: Mutex<Option<Loading>>,
    loaded_blocks: AtomicU32,
}

/// What it takes to load blocks.
struct Loading {
    /// All of the file, to write.
    window: MmapRegion<()>,
    /// Content on its way.
    buffer: Box<[u8; BLOCK_BYTES]>,
    /// Blocks that have data and are not there.
    missing_blocks: u32,
}

/// A [`SharedImage`], to read.
pub struct ImageView {
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
    /// The image of this source, of which nothing is loaded yet.
    ///
    /// # Errors
    /// See [`SharedImageError`].
    pub fn create(source: &dyn PageSource) -> Result<Self, SharedImageError> {
        let image_bytes = source.image_bytes();
        let file_bytes = file_bytes(image_bytes)?;
        let failed = |error: rustix::io::Errno| SharedImageError::Create {
            file_bytes,
            source: error.into(),
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("rotifer-image", flags).map_err(failed)?;
        rustix::fs::ftruncate(&file, file_bytes).map_err(failed)?;
        let file = Arc::new(File::from(file));
        let offset = FileOffset::from_arc(Arc::clone(&file), 0);
        let window = MmapRegion::from_file(offset, file_bytes as usize);
        let window = window.map_err(SharedImageError::Map)?;
        rustix::fs::fcntl_add_seals(&*file, SEALS).map_err(failed)?;
        // A host without huge pages refuses, and works without.
        // SAFETY: the range is the mapping just made; the advice changes no content.
        let _ = unsafe {
            rustix::mm::madvise(window.as_ptr().cast(), window.size(), Advice::LinuxHugepage)
        };
        let view = ImageView::map(file, image_bytes, file_bytes)?;
        let blocks = (0..block_count(image_bytes)).map(BlockIndex);
        let missing_blocks = blocks.filter(|block| source.has_data(*block)).count() as u32;
        let loading = Loading { window, buffer: block_buffer(), missing_blocks };
        let loading = Mutex::new((missing_blocks > 0).then_some(loading));
        Ok(Self { view, loading, loaded_blocks: AtomicU32::new(0) })
    }

    /// What others see of it.
    pub fn view(&self) -> &ImageView {
        &self.view
    }

    /// Sees to it that a block is there. Returns whether it was loaded for that: it is verified once
    /// for all who share it.
    pub(super) fn load(
        &self,
        block: BlockIndex,
        source: &mut dyn PageSource,
    ) -> Result<bool, SharedLoadError> {
        if self.view.is_resident(block) || !source.has_data(block) {
            return Ok(false);
        }
        // Whoever panicked with it published nothing.
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Loading { window, buffer, missing_blocks }) = &mut *loading else {
            return Ok(false);
        };
        if self.view.is_resident(block) {
            return Ok(false);
        }
        let pages = source.load_block(block, buffer)?;
        let image = window.as_volatile_slice();
        for (first, count) in runs(&pages) {
            let begin = first.saturating_mul(PAGE_BYTES);
            let end = begin.saturating_add(count.saturating_mul(PAGE_BYTES));
            let place = (block.offset_bytes() as usize).saturating_add(begin);
            image.write_slice(buffer.get(begin..end).unwrap_or_default(), place)?;
        }
        let place = state_place(self.view.image_bytes, block)
            .ok_or(VolatileMemoryError::OutOfBounds { addr: block.0 as usize })?;
        let state: &AtomicU8 = window.get_atomic_ref(place)?;
        state.store(RESIDENT, Ordering::Release);
        self.loaded_blocks.fetch_add(1, Ordering::Relaxed);
        *missing_blocks = missing_blocks.saturating_sub(1);
        if *missing_blocks == 0 {
            *loading = None;
        }
        Ok(true)
    }

    /// Sees to it that nobody writes the image any more, its maker neither, if all of it is there. It may
    /// take a moment: let those go on first who wait for the last block.
    pub(super) fn seal_if_complete(&self) {
        if self.loading.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            // Before Linux 6.7 the kernel refuses while somebody looks at the image. Others cannot write
            // it either way.
            let _it_may_refuse = rustix::fs::fcntl_add_seals(&self.view, LAST_SEALS);
        }
    }

    /// What of the image is there.
    pub(super) fn loaded_bytes(&self) -> u64 {
        let blocks = u64::from(self.loaded_blocks.load(Ordering::Relaxed));
        blocks.saturating_mul(BLOCK_BYTES as u64)
    }
}

impl ImageView {
    /// The image that another process made.
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
        Self::map(Arc::new(File::from(file)), image_bytes, file_bytes)
    }

    /// Bytes of the image.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// Whether a block is there.
    pub fn is_resident(&self, block: BlockIndex) -> bool {
        let place = state_place(self.image_bytes, block);
        let state = place.and_then(|place| self.window.get_atomic_ref::<AtomicU8>(place).ok());
        state.is_some_and(|state| state.load(Ordering::Acquire) == RESIDENT)
    }

    /// A block that is there.
    pub(super) fn block(
        &self,
        block: BlockIndex,
    ) -> Result<VolatileSlice<'_>, VolatileMemoryError> {
        self.window.get_slice(block.offset_bytes() as usize, BLOCK_BYTES)
    }

    fn map(file: Arc<File>, image_bytes: u64, file_bytes: u64) -> Result<Self, SharedImageError> {
        let offset = FileOffset::from_arc(Arc::clone(&file), 0);
        let protection = ProtFlags::READ.bits() as i32;
        let flags = (MapFlags::SHARED | MapFlags::NORESERVE).bits() as i32;
        let window = MmapRegion::build(Some(offset), file_bytes as usize, protection, flags);
        Ok(Self { file, image_bytes, window: window.map_err(SharedImageError::Map)? })
    }
}

impl AsFd for ImageView {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl std::fmt::Debug for ImageView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageView").field("image_bytes", &self.image_bytes).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SharedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedImage")
            .field("image_bytes", &self.view.image_bytes)
            .finish_non_exhaustive()
    }
}

/// Where a block's state is.
fn state_place(image_bytes: u64, block: BlockIndex) -> Option<usize> {
    let count = block_count(image_bytes);
    let states = (count as usize).checked_mul(BLOCK_BYTES)?;
    (block.0 < count).then_some(states.checked_add(block.0 as usize)?)
}

/// Whole blocks, and a byte for each of them.
fn file_bytes(image_bytes: u64) -> Result<u64, SharedImageError> {
    if image_bytes == 0 || image_bytes > IMAGE_BYTES_MAX {
        return Err(SharedImageError::Length { image_bytes });
    }
    let blocks = u64::from(block_count(image_bytes));
    Ok(blocks.saturating_mul((BLOCK_BYTES as u64).saturating_add(1)))
}
