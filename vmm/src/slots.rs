//! Which window of physical memory and which interrupt a device gets.
//!
//! Slots are given out in the order of asking, never back: the same configuration always makes the
//! same machine, which is what a restored guest relies on.

use vm_allocator::{AddressAllocator, AllocPolicy, IdAllocator};
use vm_memory::GuestAddress;

use crate::arch::aarch64::layout;

/// A shared peripheral interrupt, counted from 0 as device trees and KVM's GSIs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spi(pub u32);

/// A device's registers in the guest's physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first byte.
    pub base: GuestAddress,
    /// The length.
    pub bytes: u64,
}

/// There is no room for one more device.
#[derive(Debug, thiserror::Error)]
#[error("allocate {what} for {device}: all are taken")]
pub struct Exhausted {
    /// A window or an interrupt.
    pub what: &'static str,
    /// The device's name.
    pub device: String,
    /// The cause, as the allocator tells it.
    #[source]
    pub source: vm_allocator::Error,
}

/// What is still free.
pub struct Slots {
    platform: AddressAllocator,
    virtio: AddressAllocator,
    interrupts: IdAllocator,
}

impl Slots {
    /// Everything is free.
    pub fn new() -> Self {
        const ORDERED: &str = "the bounds in `layout` are constants in order";
        let addresses = |range: std::ops::Range<u64>| {
            AddressAllocator::new(range.start, range.end - range.start).expect(ORDERED)
        };
        Self {
            platform: addresses(layout::PLATFORM_DEVICES),
            virtio: addresses(layout::VIRTIO_DEVICES),
            interrupts: IdAllocator::new(0, SPI_COUNT - 1).expect(ORDERED),
        }
    }

    /// A window for a device that is not virtio.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn platform_window(&mut self, device: &str) -> Result<Window, Exhausted> {
        allocate(&mut self.platform, layout::PLATFORM_WINDOW_BYTES, device)
    }

    /// A window for a virtio-mmio device.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn virtio_window(&mut self, device: &str) -> Result<Window, Exhausted> {
        allocate(&mut self.virtio, layout::VIRTIO_WINDOW_BYTES, device)
    }

    /// An interrupt.
    ///
    /// # Errors
    /// [`Exhausted`].
    pub fn interrupt(&mut self, device: &str) -> Result<Spi, Exhausted> {
        let what = "an interrupt";
        self.interrupts.allocate_id().map(Spi).map_err(|source| Exhausted {
            what,
            device: device.into(),
            source,
        })
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

/// How many interrupts there are for devices.
const SPI_COUNT: u32 = layout::INTERRUPT_COUNT - layout::FIRST_SPI_INTID;

fn allocate(from: &mut AddressAllocator, bytes: u64, device: &str) -> Result<Window, Exhausted> {
    let what = "a window of physical memory";
    from.allocate(bytes, bytes, AllocPolicy::FirstMatch)
        .map(|range| Window { base: GuestAddress(range.start()), bytes })
        .map_err(|source| Exhausted { what, device: device.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_in_order_and_never_twice() {
        let mut slots = Slots::new();
        let windows: Vec<_> = (0..3).map(|_| slots.virtio_window("disk").unwrap().base.0).collect();
        assert_eq!(windows, [0x0a00_0000, 0x0a00_1000, 0x0a00_2000]);
        let interrupts: Vec<_> = (0..3).map(|_| slots.interrupt("disk").unwrap().0).collect();
        assert_eq!(interrupts, [0, 1, 2]);
        assert_eq!(slots.platform_window("serial").unwrap().base.0, 0x0900_0000);
    }

    #[test]
    fn one_device_too_many_is_refused_by_name() {
        let mut slots = Slots::new();
        let error = (0..=SPI_COUNT).map(|_| slots.interrupt("disk7")).find_map(Result::err);
        assert_eq!(error.unwrap().to_string(), "allocate an interrupt for disk7: all are taken");
        let error = (0..=256).map(|_| slots.platform_window("uart9")).find_map(Result::err);
        assert!(error.unwrap().to_string().contains("uart9"));
    }
}
