//! Bytes of the guest that the host peer has not taken yet.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use super::packet::{PAYLOAD_OFFSET, Payload};

/// A queue of bytes. How long it may get is for credit to say, which is checked before.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// The first so many of `bytes` are written already.
    written: usize,
}

/// A payload does not lie in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.written
    }

    /// Appends what follows the first `skip_bytes` of `payload`.
    pub(super) fn append(
        &mut self,
        payload: &Payload<'_>,
        skip_bytes: u32,
    ) -> Result<(), Unreadable> {
        // Moving the rest down when most is written keeps the memory within twice of what
        // waits, and costs each byte less than one move.
        if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        let count = payload.len_bytes.saturating_sub(skip_bytes) as usize;
        let start = self.bytes.len();
        self.bytes.resize(start.saturating_add(count), 0);
        let room = self.bytes.get_mut(start..).unwrap_or_default();
        let offset = PAYLOAD_OFFSET.saturating_add(skip_bytes.into());
        match payload.chain.read_at(payload.memory, offset, room) {
            Ok(copied) if copied == count => Ok(()),
            _ => Err(Unreadable),
        }
    }

    /// Writes what `socket` takes: the number of bytes.
    ///
    /// # Errors
    /// What the kernel reports, but for a full socket.
    pub(super) fn flush(&mut self, mut socket: &UnixStream) -> io::Result<u32> {
        let before = self.written;
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match socket.write(rest) {
                Ok(count) => self.written = self.written.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let flushed = self.written.saturating_sub(before);
        if self.is_empty() {
            // Most connections never need a backlog again.
            *self = Self::default();
        }
        Ok(u32::try_from(flushed).unwrap_or(u32::MAX))
    }
}
