//! The agent's end of a pipe or of a terminal, without blocking.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// A descriptor that is read or written when it is ready.
#[derive(Debug)]
pub struct Pipe(AsyncFd<File>);

impl Pipe {
    /// Takes over a descriptor and makes it non-blocking.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking or cannot be waited for.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the file owns an open descriptor and is never replaced inside the `AsyncFd`.
        Ok(Self(unsafe { AsyncFd::register(File::from(descriptor)) }?))
    }

    /// Reads what is there; 0 is the end. A terminal whose last process closed it has ended too.
    ///
    /// # Errors
    /// What the system call says.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|file| file.get_ref().read(buffer)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Reads what is there, as [`read`](Self::read) does, but does not wait for it.
    ///
    /// # Errors
    /// What the system call says; `WouldBlock` if nothing is there.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut file = self.0.get_ref();
        loop {
            match file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// Writes some bytes.
    ///
    /// # Errors
    /// What the system call says; `BrokenPipe` if nobody will read them.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|file| file.get_ref().write(bytes)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
