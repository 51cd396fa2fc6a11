//! The host's side of a disk: a raw image file or a block device, its lock and its end.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use vm_memory::{Bytes, GuestAddress};

use super::overlay::{BLOCK_BYTES, Block};
use super::{BlockError, Options, SECTOR_BYTES};
use crate::GuestMemory;
use crate::virtio::{GuestIoVec, OutsideMemory, Segment, chain};

/// A range of bytes on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Extent {
    /// What is left when the first `done` bytes are.
    pub(super) fn after(self, done: u64) -> Self {
        let done = done.min(self.len);
        Self { offset: self.offset.saturating_add(done), len: self.len.saturating_sub(done) }
    }
}

/// An open image. Whoever calls has checked every extent against the capacity.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// For messages.
    path: PathBuf,
    capacity_sectors: u64,
    /// A block device cannot shrink as a file can, and its metadata does not know its size.
    regular: bool,
    error_count: u64,
}

impl Disk {
    /// Opens the image that `options` name.
    pub(super) fn open(options: &Options) -> Result<Self, BlockError> {
        let (path, read_only) = (&options.path, &options.image_read_only());
        let purpose = if *read_only { "reading" } else { "reading and writing" };
        // Opened for writing, a directory says only that it is one.
        if path.is_dir() {
            return Err(BlockError::NotADisk { path: path.clone(), what: "a directory" });
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A FIFO would block us until somebody else opens it.
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        match opened {
            Ok(file) => Self::with_file(file, options),
            Err(source)
                if source.kind() == ErrorKind::ReadOnlyFilesystem
                    || source.kind() == ErrorKind::PermissionDenied
                        && !read_only
                        && File::open(path).is_ok() =>
            {
                Err(BlockError::NotWritable { path: path.clone(), id: options.id.clone() })
            }
            Err(source) => Err(BlockError::Open { path: path.clone(), purpose, source }),
        }
    }

    /// Takes an image that is open already.
    pub(super) fn with_file(mut file: File, options: &Options) -> Result<Self, BlockError> {
        let path = &options.path;
        let failed =
            |attempt| move |source| BlockError::Inspect { path: path.clone(), attempt, source };
        let metadata = file.metadata().map_err(failed("inspect"))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a directory" } else { "neither a file nor a device" };
            return Err(BlockError::NotADisk { path: path.clone(), what });
        }
        // root may write what nobody is meant to write.
        if !options.image_read_only() && metadata.permissions().mode() & 0o222 == 0 {
            return Err(BlockError::NotWritable { path: path.clone(), id: options.id.clone() });
        }
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(failed("find the end of"))?;
        if size_bytes < SECTOR_BYTES {
            return Err(BlockError::TooSmall { path: path.clone(), size_bytes });
        }
        if !size_bytes.is_multiple_of(SECTOR_BYTES) {
            tracing::warn!(
                path = %path.display(),
                size_bytes,
                "the end of the disk image is no whole sector, and invisible to the guest"
            );
        }
        lock(&file, path, options.image_read_only())?;
        Ok(Self {
            file,
            path: path.clone(),
            capacity_sectors: size_bytes / SECTOR_BYTES,
            regular: kind.is_file(),
            error_count: 0,
        })
    }

    /// One that is as slow as who writes to the other end of `stream`. It has one sector, since
    /// a stream knows no offset but zero.
    #[cfg(test)]
    pub(super) fn slow(stream: std::os::fd::OwnedFd) -> Self {
        let path = PathBuf::from("stream");
        Self { file: stream.into(), path, capacity_sectors: 1, regular: false, error_count: 0 }
    }

    /// The image, for I/O that is not done by a call of ours.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity_sectors.saturating_mul(SECTOR_BYTES) // the size of a file at most
    }

    /// Reads a block, which is zero behind the end of the disk.
    pub(super) fn read_block(&self, block: u64, bytes: &mut Block) -> io::Result<()> {
        let start = block.saturating_mul(BLOCK_BYTES);
        let there = self.capacity_bytes().saturating_sub(start).min(BLOCK_BYTES);
        let (there, behind) = bytes.split_at_mut(there as usize);
        behind.fill(0);
        self.file.read_exact_at(there, start)
    }

    /// Fills the bytes of `segments` after the first `skip` with `extent`.
    pub(super) fn read(
        &self,
        memory: &GuestMemory,
        segments: &[Segment],
        skip: u64,
        extent: Extent,
    ) -> io::Result<()> {
        transfer(memory, segments, skip, extent, |part, at| part.read_from(&self.file, at))
    }

    /// Writes the bytes of `segments` after the first `skip` to `extent`.
    pub(super) fn write(
        &self,
        memory: &GuestMemory,
        segments: &[Segment],
        skip: u64,
        extent: Extent,
    ) -> io::Result<()> {
        self.check_end(extent)?;
        transfer(memory, segments, skip, extent, |part, at| part.write_to(&self.file, at))
    }

    /// Returns when everything written so far would survive a power failure.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The guest does not need these bytes any more. Only a hint: a file system that cannot make
    /// holes keeps them.
    pub(super) fn discard(&self, extent: Extent) -> io::Result<()> {
        match self.allocate(Zeroing::Free, extent) {
            Err(error) if is_unsupported(&error) => Ok(()),
            outcome => outcome,
        }
    }

    /// Makes these bytes zero, and frees their space if `unmap` allows it.
    pub(super) fn write_zeroes(&self, extent: Extent, unmap: bool) -> io::Result<()> {
        self.check_end(extent)?;
        let ways: &[Zeroing] =
            if unmap { &[Zeroing::Free, Zeroing::Keep] } else { &[Zeroing::Keep] };
        for way in ways {
            match self.allocate(*way, extent) {
                Err(error) if is_unsupported(&error) => {}
                outcome => return outcome,
            }
        }
        let mut done: u64 = 0;
        while done < extent.len {
            let left = usize::try_from(extent.len.saturating_sub(done)).unwrap_or(usize::MAX);
            let zeroes = ZEROES.get(..left).unwrap_or(&ZEROES);
            self.file.write_all_at(zeroes, extent.offset.saturating_add(done))?;
            done = done.saturating_add(zeroes.len() as u64);
        }
        Ok(())
    }

    fn allocate(&self, way: Zeroing, extent: Extent) -> io::Result<()> {
        if extent.len == 0 {
            return Ok(()); // which fallocate refuses
        }
        retry(|| {
            let mode = match way {
                Zeroing::Free => FallocateMode::PunchHole,
                Zeroing::Keep => FallocateMode::ZeroRange,
            };
            Ok(fallocate(&self.file, mode, true, extent.offset, extent.len)?)
        })
    }

    /// A file that somebody truncated would grow again by a write past its end, and the guest
    /// would later read zeroes where its data had been.
    pub(super) fn check_end(&self, extent: Extent) -> io::Result<()> {
        let end = extent.offset.saturating_add(extent.len);
        // Before each write, so as cheap as can be: metadata cost a small write 2 % of its time.
        // Where the file stands then is nobody's concern, since all I/O names its offset.
        if self.regular && (&self.file).seek(SeekFrom::End(0))? < end {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Tells the operator of a failed request. A guest can cause any number of them, so only
    /// the 1st, 2nd, 4th, 8th ... are logged.
    pub(super) fn report(&mut self, operation: &'static str, sector: u64, error: &io::Error) {
        self.error_count = self.error_count.saturating_add(1);
        if self.error_count.is_power_of_two() {
            let reason = match error.kind() {
                ErrorKind::UnexpectedEof => "the image is shorter than when it was opened".into(),
                _ => rotifer_snapshot::report(error),
            };
            tracing::error!(
                path = %self.path.display(), operation, sector, reason,
                error_count = self.error_count, "the guest gets an I/O error"
            );
        }
    }
}

/// What becomes of the space of a range that reads as zeroes from now on.
#[derive(Debug, Clone, Copy)]
enum Zeroing {
    Free,
    Keep,
}

/// Written where the file system cannot make zeroes by itself.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Moves all of `extent`, of which the kernel may do a part at a time.
pub(super) fn transfer(
    memory: &GuestMemory,
    segments: &[Segment],
    skip: u64,
    extent: Extent,
    some: impl Fn(&GuestIoVec<'_>, u64) -> io::Result<u64>,
) -> io::Result<()> {
    let mut done: u64 = 0;
    while done < extent.len {
        let left = extent.len.saturating_sub(done);
        let part = GuestIoVec::new(memory, segments, skip.saturating_add(done), left)
            .map_err(io::Error::other)?;
        match retry(|| some(&part, extent.offset.saturating_add(done)))? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => done = done.saturating_add(count),
        }
    }
    Ok(())
}

/// Copies the bytes of `segments` after the first `skip` to `bytes`.
pub(super) fn gather(
    memory: &GuestMemory,
    segments: &[Segment],
    skip: u64,
    bytes: &mut [u8],
) -> io::Result<()> {
    let mut done: usize = 0;
    for piece in chain::slice(segments, skip, bytes.len() as u64) {
        let end = done.saturating_add(piece.len as usize);
        let part = bytes.get_mut(done..end).unwrap_or_default();
        memory.read_slice(part, piece.address).map_err(|_| io::Error::other(OutsideMemory))?;
        done = end;
    }
    if done == bytes.len() { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Copies `bytes` to those of `segments` after the first `skip`.
pub(super) fn scatter(
    memory: &GuestMemory,
    segments: &[Segment],
    skip: u64,
    bytes: &[u8],
) -> io::Result<()> {
    let mut left = bytes;
    for piece in chain::slice(segments, skip, bytes.len() as u64) {
        let (part, rest) = left.split_at_checked(piece.len as usize).unwrap_or((left, &[]));
        memory.write_slice(part, piece.address).map_err(|_| io::Error::other(OutsideMemory))?;
        left = rest;
    }
    if left.is_empty() { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Fills `len` bytes of `segments` after the first `skip` with zeroes.
pub(super) fn zero_fill(
    memory: &GuestMemory,
    segments: &[Segment],
    skip: u64,
    len: u64,
) -> io::Result<()> {
    for piece in chain::slice(segments, skip, len) {
        let (mut at, mut left) = (piece.address, piece.len as usize);
        while left > 0 {
            let zeroes = ZEROES.get(..left).unwrap_or(&ZEROES);
            let outside = |_| io::Error::other(OutsideMemory);
            memory.write_slice(zeroes, at).map_err(outside)?;
            at = GuestAddress(at.0.saturating_add(zeroes.len() as u64));
            left = left.saturating_sub(zeroes.len());
        }
    }
    Ok(())
}

/// Two machines must not write one image, nor one write what another one reads. The lock is
/// `flock`'s: it belongs to the open file, goes with it to a process that inherits the
/// descriptor, and ends with the last copy of it, even if that process is killed.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), BlockError> {
    let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let by = if read_only { "written" } else { "used" };
            Err(BlockError::InUse { path: path.into(), by })
        }
        Err(TryLockError::Error(error)) => {
            // Some network file systems have no locks; that is no reason not to run.
            tracing::warn!(path = %path.display(), %error, "the disk image cannot be locked");
            Ok(())
        }
    }
}

pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}
