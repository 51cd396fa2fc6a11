//! The socket device, section 5.10: streams between the guest and Unix sockets of the host.
//!
//! * The host listens at `uds_path`. A client connects, sends `CONNECT <port>\n`, and once a
//!   program in the guest has accepted on that port reads `OK <local port>\n`.
//! * A guest that connects to CID 2, port P, is connected to the Unix socket `<uds_path>_<P>`.
//!
//! ```text
//!   Vsock (queues) ── Multiplexer (whose turn) ── Connection ── Lifecycle (who is done)
//!        │                  │                        ├── Inbound, Outbound (credit)
//!     ResetEvent           Host (listener, epoll)    └── HostPeer (socket) ── Backlog
//! ```
//! Bytes move between guest memory and host sockets by `readv` and `writev`; only what a slow
//! host program does not take is copied, into a buffer bounded by the credit that the guest has.
//! The device wants to hear of one descriptor, an epoll set with all of its sockets in it.
//!
//! Streams only: `VIRTIO_VSOCK_F_SEQPACKET` is not offered, for Unix sockets of the convention
//! above are streams.

mod backlog;
mod connection;
mod credit;
mod handshake;
mod host;
mod lifecycle;
mod multiplexer;
mod packet;
mod peer;
mod reset_event;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use rotifer_snapshot::{LoadError, Stateful, Tag};
use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::EventSet;

use self::host::PORT_ANY;
use self::multiplexer::{FIRST_LOCAL_PORT, Multiplexer};
use self::reset_event::ResetEvent;
use super::{BrokenRing, Kind, QueueIo, Source, VirtioDevice};

const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;
const EVENT_QUEUE: usize = 2;

/// Linux fills the RX ring with buffers of 4 KiB when it boots, which costs it time and memory,
/// and posts eight events.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// `VIRTIO_VSOCK_F_STREAM`.
const F_STREAM: u64 = 1 << 0;

/// The smallest identifier that a guest can have: the ones below are reserved (section 5.10.4).
pub const MIN_GUEST_CID: u64 = 3;
/// The largest one: the upper 32 bits are reserved, and all ones below them mean "any".
pub const MAX_GUEST_CID: u64 = u32::MAX as u64 - 1;

/// The only source.
const SOCKETS_TOKEN: u32 = 0;

/// Why a socket device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The guest's identifier is a reserved one.
    #[error("vsock guest CID {cid} is not between {MIN_GUEST_CID} and {MAX_GUEST_CID}")]
    GuestCid {
        /// The identifier.
        cid: u64,
    },
    /// Another program listens on the socket.
    #[error("vsock socket {path} is in use by another process")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something at the path that is not ours to remove.
    #[error("vsock socket {path}: there is a file that is not a socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// What lies at the path cannot be examined or removed.
    #[error("examine what is at vsock socket path {path}")]
    Examine {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("listen on vsock socket {path}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be watched.
    #[error("watch vsock socket {path}")]
    Watch {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The socket device. Dropping it closes all connections and removes its socket.
pub struct Vsock {
    multiplexer: Multiplexer,
    reset_event: ResetEvent,
}

/// What the guest can see of it. Connections do not survive: their other ends are not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    guest_cid: u64,
    /// The port of the next client. A guest keeps a dead connection until its program closes it,
    /// and answers RST to a client that comes from the same port meanwhile.
    next_local_port: u32,
}

impl Vsock {
    /// Listens at `uds_path` for a guest that is known as `guest_cid`. A socket file there on
    /// which nobody listens is replaced; anything else is left alone and refused.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(guest_cid: u64, uds_path: &Path) -> Result<Self, VsockError> {
        if !is_guest_cid(guest_cid) {
            return Err(VsockError::GuestCid { cid: guest_cid });
        }
        Ok(Self {
            multiplexer: Multiplexer::new(guest_cid, uds_path)?,
            reset_event: ResetEvent::default(),
        })
    }

    fn deliver(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        self.multiplexer.deliver(io, self.reset_event.holds_connections())
    }
}

fn is_guest_cid(cid: u64) -> bool {
    (MIN_GUEST_CID..=MAX_GUEST_CID).contains(&cid)
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.multiplexer.guest_cid.to_le_bytes();
        let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn sources(&self) -> Vec<Source> {
        let fd = self.multiplexer.epoll_fd();
        vec![Source { token: SOCKETS_TOKEN, fd, events: EventSet::IN }]
    }

    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        match queue {
            TX_QUEUE => {
                while let Some(chain) = io.pop(TX_QUEUE)? {
                    self.multiplexer.receive(&chain, io.memory());
                    io.complete(TX_QUEUE, chain, 0)?;
                }
            }
            EVENT_QUEUE => self.reset_event.on_kick(io)?,
            _ => {}
        }
        self.deliver(io)
    }

    fn on_source(&mut self, _token: u32, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        self.multiplexer.on_host_events();
        self.deliver(io)
    }

    /// Every chain taken is given back within the call that took it, but for event buffers.
    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        self.reset_event.give_back(io);
        self.deliver(io)
    }

    fn reset(&mut self) {
        self.multiplexer.reset();
        self.reset_event = ResetEvent::Idle;
    }
}

impl Stateful for Vsock {
    const TAG: Tag = Tag { kind: *b"VSCK", version: 1 };
    type State = VsockState;

    fn save(&self) -> VsockState {
        let Multiplexer { guest_cid, next_local_port, .. } = self.multiplexer;
        VsockState { guest_cid, next_local_port }
    }

    fn load(&mut self, state: VsockState) -> Result<(), LoadError> {
        let VsockState { guest_cid, next_local_port } = state;
        let invalid =
            |field, value, reason| LoadError::Invalid { tag: Self::TAG, field, value, reason };
        if !is_guest_cid(guest_cid) {
            return Err(invalid("guest_cid", guest_cid, "a reserved identifier"));
        }
        if !(FIRST_LOCAL_PORT..PORT_ANY).contains(&next_local_port) {
            let reason = "a port that clients do not get";
            return Err(invalid("next_local_port", next_local_port.into(), reason));
        }
        self.multiplexer.reset();
        self.multiplexer.guest_cid = guest_cid;
        self.multiplexer.next_local_port = next_local_port;
        self.reset_event = ResetEvent::Pending;
        Ok(())
    }
}
