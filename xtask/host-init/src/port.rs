//! One virtio-serial port: frames in, frames out, and whether a client is there.
//!
//! The kernel's port spins with interrupts off while a *blocking* writer waits for the other side,
//! which stops the whole machine when the client is slow. So it is used without blocking, but for
//! one thing that only a blocking write can do: to sleep until a client connects.

use std::{
    fs::{File, OpenOptions},
    io,
    sync::Mutex,
    time::Duration,
};

use host_init::{
    frame::{Decoder, Frame},
    message::{Message, TooLarge},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fcntl_setfl},
    io::Errno,
};

/// Input is read in pieces of this size.
const READ_BYTES: usize = 64 << 10;

/// Why nothing more goes through a port.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is at the other end any more.
    #[error("the client left")]
    Left,
    /// The device failed.
    #[error("the command port failed: {0}")]
    Device(#[from] io::Error),
    /// A message of ours does not fit.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Device(errno.into())
    }
}

/// An open port. One thread reads; any thread may write.
pub struct Port {
    file: File,
    /// Held for the length of one frame.
    writing: Mutex<()>,
}

impl Port {
    /// Opens the port's device.
    pub fn open(path: &str) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, writing: Mutex::new(()) })
    }

    /// Sleeps until a client is connected. Call it only while no other thread uses the port.
    pub fn wait_for_client(&self) -> Result<(), Error> {
        fcntl_setfl(&self.file, OFlags::RDWR)?;
        // A frame of no session, which clients ignore.
        let nobody = Message::Ready.into_frame(0)?.encode();
        let written = rustix::io::write(&self.file, &nobody);
        fcntl_setfl(&self.file, OFlags::RDWR | OFlags::NONBLOCK)?;
        written?;
        Ok(())
    }

    /// The next frames; sleeps until there are some.
    pub fn receive(&self, decoder: &mut Decoder) -> Result<Vec<Frame>, Error> {
        let mut frames = Vec::new();
        let mut piece = vec![0; READ_BYTES];
        while frames.is_empty() {
            match rustix::io::read(&self.file, &mut piece) {
                Ok(0) => return Err(Error::Left),
                Ok(count) => decoder.feed(&piece[..count], &mut frames),
                Err(Errno::AGAIN) => {
                    self.wait_for(PollFlags::IN)?;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(frames)
    }

    /// Sends one message of a session; sleeps while the client takes nothing.
    pub fn send(&self, session: u32, message: Message) -> Result<(), Error> {
        let bytes = message.into_frame(session)?.encode();
        let _whole = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => {
                    if self.wait_for(PollFlags::OUT)?.contains(PollFlags::HUP) {
                        return Err(Error::Left);
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn wait_for(&self, what: PollFlags) -> Result<PollFlags, Error> {
        let mut fds = [PollFd::new(&self.file, what)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(fds[0].revents()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Long enough for a command that was asked to end to do so.
pub const GRACE: Duration = Duration::from_secs(2);
