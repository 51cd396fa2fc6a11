//! What the transport lends a device for the length of one call.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{BrokenRing, Chain};
use crate::GuestMemory;

/// The ring features that every queue of ours has.
pub(super) const RING_FEATURES: u64 =
    (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX);

/// Flags and index of a ring, before its entries (sections 2.7.6 and 2.7.8).
const RING_HEADER_BYTES: u64 = 4;
/// The index stands behind the flags.
const INDEX_OFFSET: u64 = 2;
/// `struct virtq_used_elem`: 32 bits of head and 32 of length.
const USED_ENTRY_BYTES: u64 = 8;

/// A queue and what happened on it during one call.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) queue: Queue,
    /// The device asked for another chain and there was none: tell the driver to kick again.
    exhausted: bool,
    /// Chains given back since the driver was last told.
    used_count: u16,
    /// The device has more to do than it does in one call.
    returns: bool,
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
        Self { queue, exhausted: false, used_count: 0, returns: false, budget: 0 }
    }

    pub(super) fn begin(&mut self) {
        self.exhausted = false;
        self.used_count = 0;
        self.returns = false;
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
            && self.is_notification_wanted(memory).ok_or(BrokenRing::Used { queue: index })?;
        // Without this look after arming the kick, a chain that arrived in between would lie
        // there until the next one.
        let kick_again = self.budget == 0
            || self.returns
            || (self.exhausted
                && self
                    .queue
                    .enable_notification(memory)
                    .map_err(|_| BrokenRing::Available { queue: index })?);
        Ok(Aftermath { interrupt, kick_again })
    }

    /// Whether the driver wants to hear of what was used in this call (section 2.7.10). None if
    /// its wish cannot be read.
    fn is_notification_wanted(&self, memory: &GuestMemory) -> Option<bool> {
        if !self.queue.event_idx_enabled() {
            return Some(true);
        }
        // What was used must be there to see before its absence from the driver's eyes is decided.
        fence(Ordering::SeqCst);
        let entries_bytes = 2_u64.saturating_mul(self.queue.size().into());
        let at = self.queue.avail_ring().checked_add(RING_HEADER_BYTES)?;
        let at = GuestAddress(at.checked_add(entries_bytes)?);
        let event = u16::from_le(memory.load(at, Ordering::Relaxed).ok()?);
        let passed = self.queue.next_used().wrapping_sub(event).wrapping_sub(1);
        Some(passed < self.used_count)
    }

    /// Writes entries of the used ring, and tells of them all at once.
    fn add_used(
        &mut self,
        memory: &GuestMemory,
        entries: impl IntoIterator<Item = (u16, u32)>,
    ) -> Option<()> {
        let mut next = self.queue.next_used();
        for (head, written_bytes) in entries {
            let position = u64::from(next.checked_rem(self.queue.size())?);
            let offset =
                position.saturating_mul(USED_ENTRY_BYTES).saturating_add(RING_HEADER_BYTES);
            let at = GuestAddress(self.queue.used_ring().checked_add(offset)?);
            let entry = u64::from(head) | u64::from(written_bytes) << 32;
            memory.write_obj(entry.to_le(), at).ok()?;
            next = next.wrapping_add(1);
            self.used_count = self.used_count.saturating_add(1);
        }
        let index = GuestAddress(self.queue.used_ring().checked_add(INDEX_OFFSET)?);
        memory.store(next.to_le(), index, Ordering::Release).ok()?;
        self.queue.set_next_used(next);
        Some(())
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
        self.complete_together(queue, [(chain, written_bytes)])
    }

    /// As [`Self::complete`] for chains that belong together: the driver sees none of them, or
    /// all.
    ///
    /// # Errors
    /// [`BrokenRing`]; the device returns it.
    pub fn complete_together(
        &mut self,
        queue: usize,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), BrokenRing> {
        let entries = chains.into_iter().map(|(chain, written)| (chain.head(), written));
        if !self.running {
            return Ok(());
        }
        let slot = self.slots.get_mut(queue);
        let added = slot.and_then(|slot| slot.add_used(self.memory, entries));
        added.ok_or(BrokenRing::Used { queue })
    }

    /// Whether the driver has set the device up.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Has the device called again soon, with [`super::VirtioDevice::on_kick`]: it has more to do
    /// for `queue` than it does at a time.
    pub fn come_back(&mut self, queue: usize) {
        if let Some(slot) = self.slots.get_mut(queue) {
            slot.returns = true;
        }
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
