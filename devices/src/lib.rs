//! What the guest sees: virtio devices behind the virtio-mmio transport, a serial console, a
//! real-time clock. KVM is not in here: interrupts and doorbells are plain eventfds, so every
//! device runs and is tested on any Linux.
//!
//! Everything that a guest writes is hostile. It is read once into an owned value, checked, then
//! used; a wrong request gets a status, a broken ring stops the device until the driver resets it.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unreachable
)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

pub mod io;
pub mod rate_limiter;
pub mod rtc;
pub mod serial;
pub mod virtio;

/// Guest RAM as this process maps it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;

/// A device in the guest's physical address space. Any vCPU thread may call it at any time; a
/// device guards itself with its one lock.
pub trait MmioDevice: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the device's base.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` (1, 2, 4 or 8 bytes) at `offset` from the device's base.
    fn write(&self, offset: u64, data: &[u8]);
}
