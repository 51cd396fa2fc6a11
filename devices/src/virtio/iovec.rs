//! File I/O straight into and out of guest memory.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::GuestMemoryBackend;

use super::chain::{self, OutsideMemory};
use super::{MAX_CHAIN_SEGMENTS, Segment};
use crate::GuestMemory;

/// Host addresses of a part of a chain, checked to be RAM, for vectored I/O by the kernel. No
/// reference to guest memory is ever made: only the kernel reads and writes through these.
#[derive(Debug)]
pub struct GuestIoVec<'m> {
    iovecs: Vec<libc::iovec>,
    len_bytes: u64,
    memory: PhantomData<&'m GuestMemory>,
}

impl<'m> GuestIoVec<'m> {
    /// The bytes `offset .. offset + len_bytes` of the concatenated `segments`, or fewer where
    /// these end.
    ///
    /// # Errors
    /// [`OutsideMemory`] if a segment is not in RAM.
    pub fn new(
        memory: &'m GuestMemory,
        segments: &[Segment],
        offset: u64,
        len_bytes: u64,
    ) -> Result<Self, OutsideMemory> {
        let mut iovecs = Vec::with_capacity(segments.len());
        let mut total: u64 = 0;
        for piece in chain::slice(segments, offset, len_bytes) {
            // A segment that crosses from one region of RAM into the next becomes two.
            for part in memory.get_slices(piece.address, piece.len as usize) {
                let part = part.map_err(|_| OutsideMemory)?;
                if iovecs.len() == MAX_IOVECS {
                    return Err(OutsideMemory);
                }
                iovecs.push(libc::iovec {
                    iov_base: part.ptr_guard_mut().as_ptr().cast(),
                    iov_len: part.len(),
                });
                total = total.saturating_add(part.len() as u64);
            }
        }
        Ok(Self { iovecs, len_bytes: total, memory: PhantomData })
    }

    /// The addresses alone, for I/O that goes on after a call of ours. Whoever has them done by
    /// the kernel sees to it that the memory stays mapped.
    pub fn detach(self) -> DetachedIoVec {
        DetachedIoVec { iovecs: self.iovecs, len_bytes: self.len_bytes }
    }

    /// Bytes in all parts.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Reads from `file` at `offset` into guest memory: one `preadv`. Fewer bytes than
    /// [`Self::len_bytes`] mean the file ended or the kernel stopped early.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn read_from(&self, file: &impl AsFd, offset: u64) -> io::Result<u64> {
        let (count, offset) = (self.count(), file_offset(offset)?);
        // SAFETY: every iovec is a part of a mapping of guest RAM, which `memory` keeps borrowed
        // and thus mapped. The guest may change that memory at any time, so no Rust reference
        // to it exists; the kernel alone accesses it.
        let done =
            unsafe { libc::preadv(file.as_fd().as_raw_fd(), self.iovecs.as_ptr(), count, offset) };
        u64::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes guest memory to `file` at `offset`: one `pwritev`.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn write_to(&self, file: &impl AsFd, offset: u64) -> io::Result<u64> {
        let (count, offset) = (self.count(), file_offset(offset)?);
        // SAFETY: as in `read_from`.
        let done =
            unsafe { libc::pwritev(file.as_fd().as_raw_fd(), self.iovecs.as_ptr(), count, offset) };
        u64::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Reads from a stream (socket, pipe) into guest memory: one `readv`.
    ///
    /// # Errors
    /// What the kernel reports, `WouldBlock` among it.
    pub fn receive_from(&self, stream: &impl AsFd) -> io::Result<u64> {
        // SAFETY: as in `read_from`.
        let done =
            unsafe { libc::readv(stream.as_fd().as_raw_fd(), self.iovecs.as_ptr(), self.count()) };
        u64::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes guest memory to a stream (socket, pipe): one `writev`. On a socket whose peer is
    /// gone the caller wants `SIGPIPE` ignored, as every Rust program has it.
    ///
    /// # Errors
    /// What the kernel reports, `WouldBlock` among it.
    pub fn send_to(&self, stream: &impl AsFd) -> io::Result<u64> {
        // SAFETY: as in `read_from`.
        let done =
            unsafe { libc::writev(stream.as_fd().as_raw_fd(), self.iovecs.as_ptr(), self.count()) };
        u64::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn count(&self) -> libc::c_int {
        self.iovecs.len().try_into().unwrap_or(libc::c_int::MAX)
    }
}

/// Host addresses of guest memory that nothing is known to keep mapped.
#[derive(Debug)]
pub struct DetachedIoVec {
    iovecs: Vec<libc::iovec>,
    len_bytes: u64,
}

// SAFETY: these are addresses and lengths. Nothing is done with them here, and whoever does
// something must vouch for the memory on any thread.
unsafe impl Send for DetachedIoVec {}

impl DetachedIoVec {
    /// Where the kernel finds the addresses. They stay there, even when `self` is moved, until
    /// it is dropped.
    pub fn as_ptr(&self) -> *const libc::iovec {
        self.iovecs.as_ptr()
    }

    /// How many there are, at most [`MAX_IOVECS`].
    pub fn count(&self) -> u32 {
        self.iovecs.len() as u32
    }

    /// Bytes in all parts.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

/// The kernel takes no more in one call (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;
const _: () = assert!(MAX_CHAIN_SEGMENTS <= MAX_IOVECS);

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    offset.try_into().map_err(|_| io::ErrorKind::InvalidInput.into())
}
