//! The userfaultfd, and the memory it stands for: missing pages come from here and nowhere else.

use std::{
    ffi::c_void,
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

use rustix::io::Errno;
use userfaultfd::{Error, Event, EventBuffer, FeatureFlags, RegisterMode, Uffd, UffdBuilder};

use super::{
    error::PagerError,
    raw,
    space::{Piece, Space},
};
use crate::layout::{BLOCK_BYTES, CHUNK_BYTES, PAGE_BYTES, PageIndex};

/// `UFFDIO_REGISTER_MODE_MINOR` (Linux 5.13): pages that are there but not mapped.
const MINOR: RegisterMode = RegisterMode::from_bits_retain(1 << 2);

/// A userfaultfd of this process, which also serves the faults of the kernel: KVM's, and those of
/// system calls that read and write guest memory.
#[derive(Debug)]
pub struct Userfault(Uffd);

/// Why there is no userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum UserfaultError {
    /// The host refuses to create one.
    #[error(
        "create a userfaultfd: run as root, or as a user who may open /dev/userfaultfd (Linux 6.1)"
    )]
    Create(#[source] Error),
    /// The descriptor that was handed in does not create one.
    #[error("create a userfaultfd from the descriptor that was handed in as /dev/userfaultfd")]
    Device(#[source] io::Error),
}

impl Userfault {
    /// Opens `/dev/userfaultfd`, or asks by system call where the host has no such file.
    ///
    /// # Errors
    /// The host does not let this process have one.
    pub fn open() -> Result<Self, UserfaultError> {
        let mut builder = UffdBuilder::new();
        builder.close_on_exec(true).non_blocking(true).user_mode_only(false);
        builder.require_features(FeatureFlags::EVENT_REMOVE);
        match builder.create() {
            Ok(uffd) => Ok(Self(uffd)),
            // The file is there, but not for us. The call may be (vm.unprivileged_userfaultfd).
            Err(refused @ Error::OpenDevUserfaultfd(_)) => raw::create_from_call(false)
                .map(Self::of)
                .map_err(|_| UserfaultError::Create(refused)),
            Err(refused) => Err(UserfaultError::Create(refused)),
        }
    }

    /// Creates one from `/dev/userfaultfd` that was opened elsewhere, for a jail without `/dev`. It
    /// is this process whose faults it serves, not the one that opened the file.
    ///
    /// # Errors
    /// The descriptor is something else, or the host is too old.
    pub fn from_device(device: BorrowedFd<'_>) -> Result<Self, UserfaultError> {
        let created = raw::create_from_device(device);
        created.map(Self::of).map_err(|error| UserfaultError::Device(error.into()))
    }

    /// That of another process, which handed it over.
    pub(super) fn from_machine(descriptor: OwnedFd) -> io::Result<Self> {
        // A read must not wait for a machine that says nothing.
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self::of(descriptor))
    }

    /// One that any user may have. Not for machines: a fault of KVM would not reach it.
    #[cfg(test)]
    pub(super) fn user_only() -> io::Result<Self> {
        Ok(raw::create_from_call(true).map(Self::of)?)
    }

    fn of(descriptor: OwnedFd) -> Self {
        // SAFETY: the descriptor is open, and its only owner gives it away. If it is no userfaultfd,
        // the kernel refuses what is asked of it.
        Self(unsafe { Uffd::from_raw_fd(descriptor.into_raw_fd()) })
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether pages were put where they belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Filled {
    /// All of them are there.
    All,
    /// Somebody gives memory back and waits for us to hear of it: read events, then try again.
    NotNow,
}

/// Guest RAM, and the userfaultfd that serves its missing pages.
pub(super) struct LazyMemory {
    userfault: Userfault,
    space: Space,
    page_bytes: usize,
}

impl LazyMemory {
    pub fn new(userfault: Userfault, space: Space) -> Self {
        Self { userfault, space, page_bytes: rustix::param::page_size() }
    }

    pub fn space(&self) -> &Space {
        &self.space
    }

    /// How many pages of an image one page of the host holds.
    pub fn pages_per_host_page(&self) -> usize {
        self.page_bytes.checked_div(PAGE_BYTES).unwrap_or(1).max(1)
    }

    /// The host's page that holds a page of the image.
    pub fn host_page_of(&self, page: PageIndex) -> Piece {
        let count = self.pages_per_host_page() as u32;
        let first = page.0.checked_rem(count).map_or(page.0, |rest| page.0.saturating_sub(rest));
        Piece::of_pages(PageIndex(first), count)
    }

    /// What happened since the last call: nothing, if there are no events.
    pub fn events<'a>(
        &self,
        buffer: &'a mut EventBuffer,
    ) -> Result<impl Iterator<Item = Result<Event, Error>> + 'a, Error> {
        self.userfault.0.read_events(buffer)
    }

    /// From now on every missing page of this piece is asked for here.
    pub fn register(&self, piece: Piece) -> io::Result<()> {
        self.register_with(piece, RegisterMode::MISSING)
    }

    /// As [`register`](Self::register), for a piece of a file in memory: pages that the file has are
    /// asked for as well.
    pub fn register_file(&self, piece: Piece) -> io::Result<()> {
        self.register_with(piece, RegisterMode::MISSING | MINOR)
    }

    fn register_with(&self, piece: Piece, mode: RegisterMode) -> io::Result<()> {
        let (start, len_bytes) = self.space.range(piece)?;
        let registered = self.userfault.0.register_with_mode(start, len_bytes, mode);
        registered.map(|_ioctls| ()).map_err(io_error)
    }

    /// From now on the kernel fills this piece with zeroes.
    pub fn unregister(&self, piece: Piece) -> io::Result<()> {
        let (start, len_bytes) = self.space.range(piece)?;
        self.userfault.0.unregister(start, len_bytes).map_err(io_error)
    }

    /// Lets those go on who wait for a page of this piece; they fault again if it is not there.
    pub fn wake(&self, piece: Piece) -> io::Result<()> {
        let (start, len_bytes) = self.space.range(piece)?;
        self.userfault.0.wake(start, len_bytes).map_err(io_error)
    }

    /// Lets those go on who wait for this page.
    pub fn wake_at(&self, page: PageIndex) -> Result<(), PagerError> {
        let piece = self.host_page_of(page);
        let woken = self.wake(piece);
        woken.map_err(|source| self.space.error("wake who waits for", piece, source))
    }

    /// Puts bytes into the missing pages of memory and wakes who waits for them. Pages that are
    /// there stay as they are.
    pub fn copy(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<Filled> {
        let piece = Piece { offset_bytes, len_bytes: bytes.len() as u64 };
        let fill = |start: *mut c_void, rest: Piece| {
            let done = rest.offset_bytes.saturating_sub(offset_bytes) as usize;
            let from = bytes.get(done..).unwrap_or_default();
            let len_bytes = from.len().min(rest.len_bytes as usize);
            // SAFETY: the source is a slice of at least this length; the kernel fills only pages of
            // the userfaultfd's ranges, which are guest RAM that nobody has seen.
            match unsafe { self.userfault.0.copy(from.as_ptr().cast(), start, len_bytes, true) } {
                Ok(count) => (count, Ok(())),
                // With an errno in the place of the number if there was no progress.
                Err(Error::PartiallyCopied(count)) if count <= len_bytes => {
                    (count, Err(Errno::AGAIN))
                }
                Err(Error::PartiallyCopied(_)) => (0, Err(Errno::AGAIN)),
                Err(error) => (0, Err(errno_of(&error))),
            }
        };
        self.fill(piece, BLOCK_BYTES as u64, fill)
    }

    /// Maps zeroes where pages are missing and wakes who waits for them, in as few calls as the
    /// kernel allows.
    pub fn zero(&self, piece: Piece) -> io::Result<Filled> {
        let fill = |start: *mut c_void, rest: Piece| {
            let len_bytes = rest.len_bytes as usize;
            // SAFETY: the kernel fills only pages of the userfaultfd's ranges, which are guest RAM
            // that nobody has seen.
            unsafe { raw::zero_page(&self.userfault, start as usize, len_bytes) }
        };
        self.fill(piece, u64::MAX, fill)
    }

    /// Calls `fill` for what is left of the piece until nothing is.
    fn fill(
        &self,
        piece: Piece,
        mut limit_bytes: u64,
        fill: impl Fn(*mut c_void, Piece) -> (usize, Result<(), Errno>),
    ) -> io::Result<Filled> {
        let mut offset_bytes = piece.offset_bytes;
        while offset_bytes < piece.end_bytes() {
            let left = piece.end_bytes().saturating_sub(offset_bytes);
            let rest = Piece { offset_bytes, len_bytes: left.min(limit_bytes) };
            let (start, _) = self.space.range(rest)?;
            let (count, result) = fill(start, rest);
            offset_bytes = offset_bytes.saturating_add(count as u64);
            match result {
                // It stopped at a page; the next attempt says why.
                Ok(()) | Err(Errno::AGAIN) if count > 0 => {}
                Err(Errno::INTR) => {}
                Ok(()) | Err(Errno::AGAIN) => return Ok(Filled::NotNow),
                Err(Errno::EXIST) => {
                    let page = Piece { offset_bytes, len_bytes: self.page_bytes as u64 };
                    self.wake(page)?;
                    offset_bytes = page.end_bytes();
                }
                // Pieces that span mappings of different kinds are filled one by one.
                Err(Errno::NOENT) if rest.len_bytes > BLOCK_BYTES as u64 => {
                    limit_bytes = BLOCK_BYTES as u64;
                }
                Err(Errno::NOENT) if rest.len_bytes > CHUNK_BYTES as u64 => {
                    limit_bytes = CHUNK_BYTES as u64;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Filled::All)
    }
}

impl AsFd for LazyMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.userfault.as_fd()
    }
}

fn errno_of(error: &Error) -> Errno {
    match error {
        Error::CopyFailed(errno) | Error::ZeropageFailed(errno) | Error::SystemError(errno) => {
            Errno::from_raw_os_error(*errno as i32)
        }
        _ => Errno::IO,
    }
}

fn io_error(error: Error) -> io::Error {
    errno_of(&error).into()
}
