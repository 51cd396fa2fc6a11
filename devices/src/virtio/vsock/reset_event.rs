//! The event queue, section 5.10.6.7: after a restore the guest hears that the transport was
//! reset, so all its connections are gone.
//!
//! ```text
//!   Idle ── load ──▶ Pending ── the guest has a buffer posted ──▶ Delivered
//!    ▲                                                               │ it posts another one
//!    └───────────────────────────────────────────────────────────────┘
//! ```
//! New connections are held back until then. A driver handles its RX ring and its event queue
//! on different paths, and drops *every* connection when it comes to the event: one that a host
//! client opened right after the restore would be lost. Drivers post a buffer again after they
//! have handled the event in it, which tells that it is safe.

use super::EVENT_QUEUE;
use crate::virtio::{BrokenRing, Chain, QueueIo};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` in `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// See the module.
#[derive(Debug, Default)]
pub(super) enum ResetEvent {
    #[default]
    Idle,
    Pending,
    Delivered {
        /// The other buffers, taken from the ring so that the next one is noticed.
        others: Vec<Chain>,
    },
}

impl ResetEvent {
    /// Whether connections must wait.
    pub(super) fn holds_connections(&self) -> bool {
        !matches!(self, Self::Idle)
    }

    /// The guest may have posted buffers.
    pub(super) fn on_kick(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        if matches!(self, Self::Pending) {
            self.deliver(io)?;
        } else if matches!(self, Self::Delivered { .. })
            && let Some(posted) = io.pop(EVENT_QUEUE)?
        {
            io.undo_pop(EVENT_QUEUE, posted);
            self.give_back(io);
        }
        Ok(())
    }

    fn deliver(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        while let Some(chain) = io.pop(EVENT_QUEUE)? {
            let memory = io.memory();
            let is_written = chain.write_at(memory, 0, &TRANSPORT_RESET);
            if is_written != Ok(TRANSPORT_RESET.len()) {
                io.complete(EVENT_QUEUE, chain, 0)?;
                continue;
            }
            io.complete(EVENT_QUEUE, chain, TRANSPORT_RESET.len() as u32)?;
            let mut others = Vec::new();
            while let Some(other) = io.pop(EVENT_QUEUE)? {
                others.push(other);
            }
            *self = Self::Delivered { others };
            return Ok(());
        }
        Ok(())
    }

    /// Puts what was taken back on the ring, the last first, and holds nothing back any more.
    pub(super) fn give_back(&mut self, io: &mut QueueIo<'_>) {
        if let Self::Delivered { others } = self {
            while let Some(chain) = others.pop() {
                io.undo_pop(EVENT_QUEUE, chain);
            }
            *self = Self::Idle;
        }
    }
}
