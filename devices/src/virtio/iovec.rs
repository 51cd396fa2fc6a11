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
        let pieces = chain::slice(segments, offset, len_bytes);
        let len_bytes = push_parts(&mut iovecs, memory, pieces)?;
        Ok(Self { iovecs, len_bytes, memory: PhantomData })
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

/// Bytes of ours and, behind them, a part of a chain: one message.
#[derive(Debug)]
pub struct HeadedIoVec<'m> {
    iovecs: Vec<libc::iovec>,
    memory: PhantomData<(&'m [u8], &'m GuestMemory)>,
}

impl<'m> HeadedIoVec<'m> {
    /// `header`, and then the concatenated `segments` from `offset` on.
    ///
    /// # Errors
    /// [`OutsideMemory`] if a segment is not in RAM.
    pub fn new(
        header: &'m [u8],
        memory: &'m GuestMemory,
        segments: &[Segment],
        offset: u64,
    ) -> Result<Self, OutsideMemory> {
        let mut iovecs = Vec::with_capacity(segments.len().saturating_add(1));
        iovecs.push(libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: header.len(),
        });
        push_parts(&mut iovecs, memory, chain::slice(segments, offset, u64::MAX))?;
        Ok(Self { iovecs, memory: PhantomData })
    }

    /// Writes all of it to what takes messages (a tap, a socket): one `writev`.
    ///
    /// # Errors
    /// What the kernel reports, `WouldBlock` among it.
    pub fn send_to(&self, messages: &impl AsFd) -> io::Result<()> {
        let count = libc::c_int::try_from(self.iovecs.len()).unwrap_or(libc::c_int::MAX);
        let fd = messages.as_fd().as_raw_fd();
        // SAFETY: as in `GuestIoVec::read_from`; the header is borrowed as well, and `writev`
        // only reads.
        match unsafe { libc::writev(fd, self.iovecs.as_ptr(), count) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Room in guest memory for messages, kept from one to the next: what is behind a message that
/// came stays for those to come.
#[derive(Debug)]
pub struct RoomIoVec {
    /// Keeps mapped what the addresses are in.
    memory: Option<GuestMemory>,
    iovecs: Vec<libc::iovec>,
    /// Those before this one are used up.
    first: usize,
    len_bytes: u64,
    /// Where a message goes that is longer than the room, so that it can be told.
    beyond: Box<u8>,
}

// SAFETY: the addresses are of guest memory, which `memory` keeps mapped and which any thread may
// access, and of `beyond`, which is its own.
unsafe impl Send for RoomIoVec {}

impl Default for RoomIoVec {
    fn default() -> Self {
        Self { memory: None, iovecs: Vec::new(), first: 0, len_bytes: 0, beyond: Box::new(0) }
    }
}

/// What one message needs of the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Its bytes.
    pub len_bytes: u64,
    /// Its addresses.
    parts: usize,
}

impl RoomIoVec {
    /// Adds `segments` at the end. Returns none, and adds nothing, where the kernel would take no
    /// more addresses.
    ///
    /// # Errors
    /// [`OutsideMemory`] if a segment is not in RAM; nothing is added.
    pub fn push(
        &mut self,
        memory: &GuestMemory,
        segments: &[Segment],
    ) -> Result<Option<Room>, OutsideMemory> {
        self.memory.get_or_insert_with(|| memory.clone());
        // One is kept for `beyond`.
        if self.iovecs.len().saturating_add(segments.len()) >= MAX_IOVECS {
            self.iovecs.drain(..self.first);
            self.first = 0;
        }
        let before = self.iovecs.len();
        if before.saturating_add(segments.len()) >= MAX_IOVECS {
            return Ok(None);
        }
        let pieces = segments.iter().copied();
        match push_parts(&mut self.iovecs, memory, pieces) {
            Ok(len_bytes) => {
                self.len_bytes = self.len_bytes.saturating_add(len_bytes);
                Ok(Some(Room { len_bytes, parts: self.iovecs.len().saturating_sub(before) }))
            }
            Err(outside) => {
                self.iovecs.truncate(before);
                Err(outside)
            }
        }
    }

    /// Takes away what was pushed first.
    pub fn pop(&mut self, room: Room) {
        self.first = self.first.saturating_add(room.parts);
        self.len_bytes = self.len_bytes.saturating_sub(room.len_bytes);
        if self.first >= self.iovecs.len() {
            self.iovecs.clear();
            self.first = 0;
        }
    }

    /// Takes away what was pushed last.
    pub fn take_back(&mut self, room: Room) {
        self.iovecs.truncate(self.iovecs.len().saturating_sub(room.parts));
        self.len_bytes = self.len_bytes.saturating_sub(room.len_bytes);
    }

    /// Takes away everything.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        (self.first, self.len_bytes) = (0, 0);
    }

    /// Bytes of all that is left.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Receives one message into the room: one `readv`. More bytes than [`Self::len_bytes`] mean
    /// that the message was longer, and is lost.
    ///
    /// # Errors
    /// What the kernel reports, `WouldBlock` among it.
    pub fn receive_from(&mut self, messages: &impl AsFd) -> io::Result<u64> {
        let beyond = (&raw mut *self.beyond).cast();
        self.iovecs.push(libc::iovec { iov_base: beyond, iov_len: 1 });
        let count = self.count().try_into().unwrap_or(libc::c_int::MAX);
        let iovecs = self.iovecs.get(self.first..).unwrap_or_default();
        // SAFETY: every iovec but the last is a part of a mapping of guest RAM, which
        // `self.memory` keeps mapped and to which no Rust reference exists; the last one is a
        // byte of ours, borrowed mutably for the call.
        let done = unsafe { libc::readv(messages.as_fd().as_raw_fd(), iovecs.as_ptr(), count) };
        let done = u64::try_from(done).map_err(|_| io::Error::last_os_error());
        self.iovecs.pop();
        done
    }

    fn count(&self) -> usize {
        self.iovecs.len().saturating_sub(self.first)
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

/// Adds the host addresses of `pieces`; returns their bytes.
fn push_parts(
    iovecs: &mut Vec<libc::iovec>,
    memory: &GuestMemory,
    pieces: impl Iterator<Item = Segment>,
) -> Result<u64, OutsideMemory> {
    let mut total: u64 = 0;
    for piece in pieces {
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
    Ok(total)
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    offset.try_into().map_err(|_| io::ErrorKind::InvalidInput.into())
}
