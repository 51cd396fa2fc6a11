//! What the transport lends a device for the length of one call.

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::{BrokenRing, Chain};
use crate::GuestMemory;

/// The ring features that every queue of ours has.
pub(super) const RING_FEATURES: u64 =
    (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX);

/// A queue and what happened on it during one call.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) queue: Queue,
    /// The device asked for another chain and there was none: tell the driver to kick again.
    exhausted: bool,
    /// Chains given back since the driver was last told.
    used_count: u32,
    /// Chains that may still be taken in this call, so that a driver which refills the ring as
    /// fast as we empty it cannot keep the io thread for itself.
    budget: u16,
}

/// What must happen after a call.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Aftermath {
    /// The driver wants an interrupt for what was used.
    pub(super) interrupt: bool,
    /// Chains are left that the device would have taken: come back soon.
    pub(super) kick_again: bool,
}

impl Slot {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue, exhausted: false, used_count: 0, budget: 0 }
    }

    pub(super) fn begin(&mut self) {
        self.exhausted = false;
        self.used_count = 0;
        self.budget = self.queue.size();
    }

    /// Looks at the ring after the device is done with it.
    pub(super) fn finish(
        &mut self,
        index: usize,
        memory: &GuestMemory,
    ) -> Result<Aftermath, BrokenRing> {
        if !self.queue.ready() {
            return Ok(Aftermath::default());
        }
        let interrupt = self.used_count > 0
            && self
                .queue
                .needs_notification(memory)
                .map_err(|_| BrokenRing::Used { queue: index })?;
        // Without this look after arming the kick, a chain that arrived in between would lie
        // there until the next one.
        let kick_again = self.budget == 0
            || (self.exhausted
                && self
                    .queue
                    .enable_notification(memory)
                    .map_err(|_| BrokenRing::Available { queue: index })?);
        Ok(Aftermath { interrupt, kick_again })
    }
}

/// The queues, guest memory and negotiated features, lent for one call.
pub struct QueueIo<'a> {
    memory: &'a GuestMemory,
    slots: &'a mut [Slot],
    features: u64,
    /// False while the driver has not set the device up: then there are no chains.
    running: bool,
}

impl<'a> QueueIo<'a> {
    pub(super) fn new(
        memory: &'a GuestMemory,
        slots: &'a mut [Slot],
        features: u64,
        running: bool,
    ) -> Self {
        Self { memory, slots, features, running }
    }

    /// Guest memory.
    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// Whether feature `bit` was negotiated.
    pub fn has_feature(&self, bit: u32) -> bool {
        1_u64.checked_shl(bit).is_some_and(|mask| self.features & mask != 0)
    }

    /// The next chain that the driver made available on `queue`, if there is one, the driver is
    /// running, and this call has not taken a ring full of them yet.
    ///
    /// # Errors
    /// [`BrokenRing`]; the device returns it.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, BrokenRing> {
        let Some(slot) = self.slots.get_mut(queue) else { return Ok(None) };
        if !self.running || !slot.queue.ready() || slot.budget == 0 {
            return Ok(None);
        }
        let unreadable = BrokenRing::Available { queue };
        let mut available = slot.queue.iter(self.memory).map_err(|_| unreadable)?;
        let Some(descriptors) = available.next() else {
            slot.exhausted = true;
            return Ok(None);
        };
        slot.budget = slot.budget.saturating_sub(1);
        Chain::read(queue, descriptors).map(Some)
    }

    /// Gives a chain back, of whose writable part the first `written_bytes` are now filled. A
    /// device that works on after its driver has broken a ring gives it to nobody.
    ///
    /// # Errors
    /// [`BrokenRing`]; the device returns it.
    pub fn complete(
        &mut self,
        queue: usize,
        chain: Chain,
        written_bytes: u32,
    ) -> Result<(), BrokenRing> {
        if !self.running {
            return Ok(());
        }
        let broken = BrokenRing::Used { queue };
        let slot = self.slots.get_mut(queue).ok_or(broken)?;
        slot.queue.add_used(self.memory, chain.head(), written_bytes).map_err(|_| broken)?;
        slot.used_count = slot.used_count.saturating_add(1);
        Ok(())
    }

    /// Puts the chain that was taken last from `queue` back on the ring, to be taken again.
    pub fn undo_pop(&mut self, queue: usize, chain: Chain) {
        drop(chain);
        if let Some(slot) = self.slots.get_mut(queue) {
            slot.queue.go_to_previous_position();
            slot.budget = slot.budget.saturating_add(1);
        }
    }
}
