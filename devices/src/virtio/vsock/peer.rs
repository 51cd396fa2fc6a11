//! The host's end of a connection: a Unix socket, and what could not be written to it yet.

use std::io;
use std::net;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::backlog::Backlog;
use super::packet::{PAYLOAD_OFFSET, Payload};
use crate::virtio::GuestIoVec;

/// The socket of a host program that talks to the guest. It never blocks.
///
/// The socket is watched edge-triggered: the kernel tells once that bytes have come, and
/// `readable` remembers it until they are all read. So nothing needs to be changed in the epoll
/// set when the guest has no room for them, and nothing spins.
#[derive(Debug)]
pub(super) struct HostPeer {
    socket: UnixStream,
    backlog: Backlog,
    readable: bool,
    /// The peer has ended its sending; the end comes after what is left to read.
    eof_ahead: bool,
    write_closed: bool,
    /// Whether the epoll set asks for writability.
    pub(super) watches_writable: bool,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes are in guest memory.
    Bytes(u32),
    /// Nothing for now.
    Nothing,
    /// The peer sends no more.
    Eof,
    /// The peer went away and left unread what it was sent, or the like.
    Broken,
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// So many bytes are with the peer; the rest waits here.
    Bytes(u32),
    /// The peer receives no more.
    Closed,
    /// The payload is not in guest memory, or the socket is broken.
    Broken,
}

impl HostPeer {
    /// A socket that does not block. Adding it to the epoll set reports what it has already.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            backlog: Backlog::default(),
            readable: false,
            eof_ahead: false,
            write_closed: false,
            watches_writable: false,
        }
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Whether a read may find something.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether everything the guest sent is with the peer.
    pub(super) fn is_flushed(&self) -> bool {
        self.backlog.is_empty()
    }

    /// The kernel reports `events`. True if the peer has gone altogether.
    pub(super) fn on_events(&mut self, events: EventSet) -> bool {
        let end = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        self.readable |= events.intersects(end | EventSet::IN);
        self.eof_ahead |= events.intersects(end);
        events.contains(EventSet::HANG_UP)
    }

    /// Reads into guest memory. `room` is not empty.
    pub(super) fn receive(&mut self, room: &GuestIoVec<'_>) -> Received {
        loop {
            return match room.receive_from(&self.socket) {
                Ok(0) => {
                    self.readable = false;
                    Received::Eof
                }
                Ok(count) => {
                    // Less than there was room for: all is read, and more will be reported. The
                    // end of the stream has been reported already and needs another read.
                    self.readable = count >= room.len_bytes() || self.eof_ahead;
                    u32::try_from(count).map_or(Received::Broken, Received::Bytes)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    Received::Nothing
                }
                Err(_) => Received::Broken,
            };
        }
    }

    /// Passes a payload on, straight from guest memory as far as the socket takes it.
    pub(super) fn send(&mut self, payload: &Payload<'_>) -> Sent {
        let mut done = 0;
        if self.backlog.is_empty() {
            let (segments, len) = (payload.chain.readable(), payload.len_bytes.into());
            let Ok(bytes) = GuestIoVec::new(payload.memory, segments, PAYLOAD_OFFSET, len) else {
                return Sent::Broken;
            };
            done = match bytes.send_to(&self.socket) {
                Ok(count) => u32::try_from(count).unwrap_or(payload.len_bytes),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => 0,
                    io::ErrorKind::BrokenPipe => return Sent::Closed,
                    _ => return Sent::Broken,
                },
            };
        }
        if done < payload.len_bytes && self.backlog.append(payload, done).is_err() {
            return Sent::Broken;
        }
        Sent::Bytes(done)
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Sent {
        match self.backlog.flush(&self.socket) {
            Ok(count) => Sent::Bytes(count),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Sent::Closed,
            Err(_) => Sent::Broken,
        }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn close_write(&mut self) {
        if !self.write_closed {
            self.write_closed = true;
            // It fails if the peer has gone, who then needs not be told.
            let _ = self.socket.shutdown(net::Shutdown::Write);
        }
    }

    /// Tells the peer that nobody reads what it sends.
    pub(super) fn close_read(&mut self) {
        self.readable = false;
        let _ = self.socket.shutdown(net::Shutdown::Read);
    }
}
