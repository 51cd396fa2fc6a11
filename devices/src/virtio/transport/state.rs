//! The part of a transport that survives a suspend: registers, rings, and its device's section.

use std::sync::atomic::Ordering;

use rotifer_snapshot::{LoadError, Stateful, Tag};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use super::{Core, Transport, interrupt, status};

/// Registers and rings of one virtio-mmio device, and its own state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub(super) device_kind: u32,
    pub(super) status: u32,
    pub(super) interrupt_status: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) queues: Vec<RingState>,
    /// The device's section, as its [`rotifer_snapshot::Section`] encodes it.
    pub(super) device: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RingState {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}

const TAG: Tag = Tag { kind: *b"VMMI", version: 1 };

impl Transport {
    /// The state as of now: the io thread is parked and the device drained.
    pub fn save(&self) -> TransportState {
        let core = self.core();
        let queues = core.slots.iter().map(|slot| {
            let queue = &slot.queue;
            RingState {
                size: queue.size(),
                ready: queue.ready(),
                desc_table: queue.desc_table(),
                avail_ring: queue.avail_ring(),
                used_ring: queue.used_ring(),
                next_avail: queue.next_avail(),
                next_used: queue.next_used(),
            }
        });
        TransportState {
            device_kind: self.kind as u32,
            status: core.status,
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
            device_features_select: core.device_features_select,
            driver_features_select: core.driver_features_select,
            driver_features: core.driver_features,
            queue_select: core.queue_select,
            queues: queues.collect(),
            device: core.device.save_section(),
        }
    }

    /// Takes on a state, which may come from a hostile file. The caller kicks the device when
    /// the machine runs again ([`Transport::kick`]).
    ///
    /// # Errors
    /// [`LoadError`] names the field; the transport is then not to be used.
    pub fn load(&self, state: &TransportState) -> Result<(), LoadError> {
        let mut core = self.core();
        check(&core, self.kind as u32, state)?;
        let event_idx = state.driver_features & (1 << super::VIRTIO_RING_F_EVENT_IDX) != 0;
        for (slot, ring) in core.slots.iter_mut().zip(&state.queues) {
            slot.queue = ring.queue(slot.queue.max_size(), event_idx)?;
        }
        core.device.load_section(&state.device)?;
        core.status = state.status;
        core.device_features_select = state.device_features_select;
        core.driver_features_select = state.driver_features_select;
        core.driver_features = state.driver_features;
        core.queue_select = state.queue_select;
        if core.running() {
            let memory = core.memory.as_ref();
            let bad = core.slots.iter().position(|s| s.queue.ready() && !s.queue.is_valid(memory));
            if let Some(index) = bad {
                return Err(invalid("queue", index as u64, "its rings lie outside of memory"));
            }
        }
        self.interrupt.status.store(state.interrupt_status, Ordering::SeqCst);
        Ok(())
    }
}

/// For the machine's table of devices, which shares transports with the bus.
impl Stateful for &Transport {
    const TAG: Tag = TAG;
    type State = TransportState;

    fn save(&self) -> TransportState {
        Transport::save(self)
    }

    fn load(&mut self, state: TransportState) -> Result<(), LoadError> {
        Transport::load(self, &state)
    }
}

fn check(core: &Core, kind: u32, state: &TransportState) -> Result<(), LoadError> {
    const STATUS_BITS: u32 = status::DRIVER_BITS | status::DEVICE_NEEDS_RESET;
    const INTERRUPT_BITS: u32 = interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE;
    let foreign = state.driver_features & !core.offered_features();
    let rules: [(&'static str, u64, bool, &'static str); 5] = [
        ("device_kind", state.device_kind.into(), state.device_kind == kind, "another device"),
        ("status", state.status.into(), state.status & !STATUS_BITS == 0, "no such status"),
        (
            "interrupt_status",
            state.interrupt_status.into(),
            state.interrupt_status & !INTERRUPT_BITS == 0,
            "no such interrupt",
        ),
        ("driver_features", foreign, foreign == 0, "features that this device does not have"),
        (
            "queues",
            state.queues.len() as u64,
            state.queues.len() == core.slots.len(),
            "this device has another number of queues",
        ),
    ];
    match rules.into_iter().find(|(_, _, holds, _)| !holds) {
        Some((field, value, _, reason)) => Err(invalid(field, value, reason)),
        None => Ok(()),
    }
}

fn invalid(field: &'static str, value: u64, reason: &'static str) -> LoadError {
    LoadError::Invalid { tag: TAG, field, value, reason }
}

impl RingState {
    fn queue(&self, max_size: u16, event_idx_enabled: bool) -> Result<Queue, LoadError> {
        QueueState {
            max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        }
        .try_into()
        .map_err(|_| invalid("queue size", self.size.into(), "or an address is misaligned"))
    }
}
