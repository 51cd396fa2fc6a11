//! Virtio 1.2: the contract between the transport and its devices.
//!
//! ```text
//!   vCPU thread                         io thread
//!   ───────────                         ─────────
//!   register access ──▶ Transport ◀── kick eventfd (ioeventfd of KVM), device sources
//!                       │ status, features, rings, interrupt
//!                       │ lends QueueIo for the length of one call
//!                       ▼
//!                       dyn VirtioDevice (block, net, rng, vsock)
//! ```
//! The transport owns the queues. A device asks for chains and gives them back; it never sees a
//! ring, a status register or an interrupt, so these are right, and saved, once for all devices.
//!
//! Specification: <https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html>

pub mod block;
mod chain;
mod iovec;
pub mod net;
mod queue_io;
mod registers;
pub mod rng;
mod transport;
pub mod vsock;

#[cfg(test)]
mod conformance;
#[cfg(any(test, feature = "test-driver"))]
pub mod test_driver;

use std::os::fd::RawFd;

use rotifer_snapshot::Section;
use vmm_sys_util::epoll::EventSet;

pub use chain::{Chain, MAX_CHAIN_SEGMENTS, OutsideMemory, Segment};
pub use iovec::{DetachedIoVec, GuestIoVec};
use iovec::{HeadedIoVec, Room, RoomIoVec};
pub use queue_io::QueueIo;
pub use transport::{
    MMIO_REGION_BYTES, QUEUE_NOTIFY_OFFSET, Transport, TransportError, TransportState,
};

/// Device identifiers, section 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // the specification's names
pub enum Kind {
    Net = 1,
    Block = 2,
    Rng = 4,
    Vsock = 19,
}

/// A host file descriptor that a device wants to hear of. It stays open and the same for as long
/// as the device lives; a device with a changing set of descriptors nests an epoll of its own.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Comes back in [`VirtioDevice::on_source`].
    pub token: u32,
    /// The descriptor.
    pub fd: RawFd,
    /// What to wait for: level-triggered, unless it says otherwise.
    pub events: EventSet,
}

/// The driver broke the rules of the ring itself, so nothing on it can be trusted any more. The
/// transport answers with DEVICE_NEEDS_RESET (section 2.1.2).
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum BrokenRing {
    /// More heads are available than the ring has entries, or a ring is not in RAM.
    #[error("the available ring of queue {queue} cannot be read")]
    Available {
        /// Index of the queue.
        queue: usize,
    },
    /// A chain loops, leaves its table, has writable before readable parts, or is too long.
    #[error("a descriptor chain of queue {queue} is malformed")]
    Chain {
        /// Index of the queue.
        queue: usize,
    },
    /// The used ring is not in RAM.
    #[error("the used ring of queue {queue} cannot be written")]
    Used {
        /// Index of the queue.
        queue: usize,
    },
}

/// A virtio device as the transport sees it.
///
/// Every method runs under the transport's lock, on the io thread or (configuration space,
/// reset) on a vCPU thread, and returns soon: what blocks for long belongs behind a source.
pub trait VirtioDevice: Section + Send {
    /// Which device this is.
    fn kind(&self) -> Kind;
    /// The feature bits of this device type; the transport adds those of rings and version.
    fn features(&self) -> u64;
    /// The largest size of each queue, in entries, powers of two. The length is the number of
    /// queues and never changes.
    fn queue_sizes(&self) -> &[u16];
    /// The driver reads configuration space. Bytes past its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver writes configuration space. What is not writable is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// What to watch for [`Self::on_source`]. Asked once.
    fn sources(&self) -> Vec<Source>;
    /// The driver made chains available on `queue`. Take what can be worked on; a chain that must
    /// wait is left on the ring or kept.
    ///
    /// # Errors
    /// [`BrokenRing`] as it comes from `io`.
    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing>;
    /// A source is ready. Must take the event away even while the driver has not set the device
    /// up ([`QueueIo::pop`] then has nothing), or the io thread would spin.
    ///
    /// # Errors
    /// [`BrokenRing`] as it comes from `io`.
    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), BrokenRing>;
    /// Completes everything in flight, because the machine is about to be saved.
    ///
    /// # Errors
    /// [`BrokenRing`] as it comes from `io`.
    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing>;
    /// The driver reset the device: back to the state of power-on. When this returns, nothing
    /// in flight touches guest memory any more.
    fn reset(&mut self);
}
