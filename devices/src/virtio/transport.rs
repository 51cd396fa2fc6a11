//! virtio over MMIO, section 4.2: the registers, the life of a device, its rings.
//!
//! ```text
//!          status 0 written (from anywhere)
//!   ┌──────────────────────────────────────────────────┐
//!   ▼                                                  │
//! Reset ─ ACKNOWLEDGE, DRIVER ─▶ features may be written
//!         ─ FEATURES_OK (a subset of ours, VERSION_1 in it) ─▶ rings may be written
//!         ─ DRIVER_OK (every ready ring lies in RAM) ─▶ Running: rings are frozen
//!         ─ a broken ring ─▶ DEVICE_NEEDS_RESET: nothing is taken or given any more
//! ```

mod rings;
mod state;
#[cfg(test)]
mod tests;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSubscriber, Events};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::state::TransportState;
use super::queue_io::{QueueIo, RING_FEATURES, Slot};
use super::registers::{
    CONFIG_OFFSET, MAGIC_VALUE, Register, VENDOR_ID, VERSION, interrupt, status,
};
use super::{BrokenRing, Kind, VirtioDevice};
use crate::{GuestMemory, MmioDevice};

/// Size of a device's register window.
pub const MMIO_REGION_BYTES: u64 = 0x200;
/// Where the driver writes a queue's index to kick it: the address of KVM's ioeventfd, without
/// datamatch, since one eventfd serves all queues of a device.
pub const QUEUE_NOTIFY_OFFSET: u64 = 0x050;

/// Distinguishes the kick eventfd from the device's own sources.
const KICK_TOKEN: u32 = u32::MAX;

/// Why a transport cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No eventfd.
    #[error("create an eventfd for a virtio {kind:?} device")]
    EventFd {
        /// The device.
        kind: Kind,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The device's queue sizes are not powers of two of at most 32768.
    #[error("a virtio {kind:?} device asks for a queue of {size} entries")]
    QueueSize {
        /// The device.
        kind: Kind,
        /// The size asked for.
        size: u16,
    },
}

/// The interrupt of a device, apart from its lock: a vCPU that asks why it was interrupted does
/// not wait for I/O in progress.
#[derive(Debug)]
struct Interrupt {
    status: AtomicU32,
    event: EventFd,
}

impl Interrupt {
    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        // An eventfd counter that is full has been raised already.
        let _ = self.event.write(1);
    }
}

/// A virtio device on the MMIO bus.
pub struct Transport {
    kind: Kind,
    interrupt: Interrupt,
    kick: EventFd,
    core: Mutex<Core>,
}

/// What the one lock of a device guards.
struct Core {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    slots: Vec<Slot>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

impl Transport {
    /// A transport in its state of power-on.
    ///
    /// # Errors
    /// See [`TransportError`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
    ) -> Result<Self, TransportError> {
        let kind = device.kind();
        let event_fd = || {
            EventFd::new(EFD_NONBLOCK).map_err(|source| TransportError::EventFd { kind, source })
        };
        let slots = device
            .queue_sizes()
            .iter()
            .map(|&size| {
                let queue =
                    Queue::new(size).map_err(|_| TransportError::QueueSize { kind, size })?;
                Ok(Slot::new(queue))
            })
            .collect::<Result<_, TransportError>>()?;
        Ok(Self {
            kind,
            interrupt: Interrupt { status: AtomicU32::new(0), event: event_fd()? },
            kick: event_fd()?,
            core: Mutex::new(Core {
                device,
                memory,
                slots,
                status: 0,
                device_features_select: 0,
                driver_features_select: 0,
                driver_features: 0,
                queue_select: 0,
            }),
        })
    }

    /// Which device this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The eventfd to hand to KVM as an ioeventfd at [`QUEUE_NOTIFY_OFFSET`], 4 bytes wide.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// The eventfd to hand to KVM as the irqfd of this device's interrupt, edge-triggered.
    pub fn interrupt_fd(&self) -> &EventFd {
        &self.interrupt.event
    }

    /// Completes everything in flight. The io thread is parked when this is called.
    pub fn drain(&self) {
        self.with_io(|device, io| device.drain(io));
    }

    /// Has the io thread look at every queue: what a driver made available while nobody was
    /// looking (the machine was paused, or has just been restored) is found.
    pub fn kick(&self) {
        // A full counter is a kick that is still to be seen.
        let _ = self.kick.write(1);
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // A poisoned lock means a panic of ours under it. The guest's other devices go on.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends the queues for one call and sees to interrupts, kicks and broken rings after it.
    fn with_io(
        &self,
        call: impl FnOnce(&mut dyn VirtioDevice, &mut QueueIo<'_>) -> Result<(), BrokenRing>,
    ) {
        let mut core = self.core();
        let running = core.running();
        let Core { device, memory, slots, driver_features, .. } = &mut *core;
        slots.iter_mut().for_each(Slot::begin);
        let mut io = QueueIo::new(memory, slots, *driver_features, running);
        let mut outcome = call(device.as_mut(), &mut io);
        let (mut interrupt, mut kick_again) = (false, false);
        if running {
            for (index, slot) in slots.iter_mut().enumerate() {
                match slot.finish(index, memory) {
                    Ok(aftermath) => {
                        interrupt |= aftermath.interrupt;
                        kick_again |= aftermath.kick_again;
                    }
                    Err(broken) => outcome = outcome.and(Err(broken)),
                }
            }
        }
        if let Err(broken) = outcome {
            tracing::debug!(kind = ?self.kind, %broken, "the driver broke a ring");
            core.status |= status::DEVICE_NEEDS_RESET;
            self.interrupt.raise(interrupt::CONFIG_CHANGE);
        } else if kick_again {
            self.kick();
        }
        if interrupt {
            self.interrupt.raise(interrupt::USED_BUFFER);
        }
    }

    fn on_kick(&self) {
        // Which queue was kicked is not known, nor needed: looking at an empty ring is cheap.
        let _ = self.kick.read();
        self.with_io(|device, io| {
            let queue_count = device.queue_sizes().len();
            (0..queue_count).try_for_each(|queue| device.on_kick(queue, io))
        });
    }

    fn write_register(&self, register: Register, value: u32) {
        match register {
            Register::QueueNotify => self.kick(),
            Register::InterruptAck => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            Register::Status if value == 0 => {
                self.core().reset();
                self.interrupt.status.store(0, Ordering::SeqCst);
                // A kick of the driver's former life must not reach its next one.
                let _ = self.kick.read();
            }
            Register::Status => {
                let started = self.core().set_status(value, &self.interrupt);
                if started {
                    // Chains may lie on a ring already: drivers fill rings before DRIVER_OK.
                    self.kick();
                }
            }
            _ => self.core().write(register, value),
        }
    }
}

impl Core {
    fn running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::DEVICE_NEEDS_RESET) == status::DRIVER_OK
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | RING_FEATURES | (1 << VIRTIO_F_VERSION_1)
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.slots.get(self.queue_select as usize).map(|slot| &slot.queue)
    }

    fn read(&self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC_VALUE,
            Register::Version => VERSION,
            Register::DeviceId => self.device.kind() as u32,
            Register::VendorId => VENDOR_ID,
            Register::DeviceFeatures => half(self.offered_features(), self.device_features_select),
            Register::QueueNumMax => self.selected_queue().map_or(0, |q| q.max_size().into()),
            Register::QueueReady => self.selected_queue().map_or(0, |q| q.ready().into()),
            Register::Status => self.status,
            // Configuration space of our devices changes only between resets, if at all.
            Register::ConfigGeneration => 0,
            // No shared memory: a length of all ones, section 4.2.2.
            Register::ShmLenLow | Register::ShmLenHigh => u32::MAX,
            // Write-only registers.
            _ => 0,
        }
    }

    fn write(&mut self, register: Register, value: u32) {
        match register {
            Register::DeviceFeaturesSel => self.device_features_select = value,
            Register::DriverFeaturesSel => self.driver_features_select = value,
            Register::QueueSel => self.queue_select = value,
            Register::DriverFeatures
                if self.status & (status::DRIVER | status::FEATURES_OK) == status::DRIVER =>
            {
                let features = &mut self.driver_features;
                *features = with_half(*features, self.driver_features_select, value);
            }
            Register::QueueNum
            | Register::QueueReady
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh => self.write_queue(register, value),
            // Read-only registers, or not their time: nothing happens.
            _ => {}
        }
    }

    /// The driver sets further status bits. True if the device starts running with it.
    fn set_status(&mut self, value: u32, interrupt: &Interrupt) -> bool {
        let cleared = self.status & !value & status::DRIVER_BITS;
        let new = value & !self.status & status::DRIVER_BITS;
        let unknown = value & !(status::DRIVER_BITS | status::DEVICE_NEEDS_RESET);
        if cleared != 0 || unknown != 0 {
            tracing::debug!(from = self.status, to = value, "a driver wrote an impossible status");
            return false;
        }
        self.status |= new & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if new & status::FEATURES_OK != 0 && self.features_acceptable() {
            self.status |= status::FEATURES_OK;
            let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
            self.slots.iter_mut().for_each(|slot| slot.queue.set_event_idx(event_idx));
        }
        if new & status::DRIVER_OK == 0 || self.status & status::FEATURES_OK == 0 {
            return false;
        }
        self.status |= status::DRIVER_OK;
        if self.slots.iter().any(|s| s.queue.ready() && !s.queue.is_valid(self.memory.as_ref())) {
            self.status |= status::DEVICE_NEEDS_RESET;
        }
        if self.status & status::DEVICE_NEEDS_RESET != 0 {
            // Not before DRIVER_OK, section 2.1.2.
            interrupt.raise(interrupt::CONFIG_CHANGE);
        }
        self.running()
    }

    fn features_acceptable(&self) -> bool {
        let wanted = self.driver_features;
        self.status & status::DRIVER != 0
            && wanted & !self.offered_features() == 0
            && wanted & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn reset(&mut self) {
        self.device.reset();
        self.slots.iter_mut().for_each(|slot| slot.queue.reset());
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
    }
}

impl MmioDevice for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config_offset) = offset.checked_sub(CONFIG_OFFSET) {
            return self.core().device.read_config(config_offset, data);
        }
        // Registers are 32 bits wide and accessed as such, section 4.2.2.2.
        let (Some(register), Ok(out)) = (Register::at(offset), <&mut [u8; 4]>::try_from(data))
        else {
            return;
        };
        let value = match register {
            Register::InterruptStatus => self.interrupt.status.load(Ordering::SeqCst),
            _ => self.core().read(register),
        };
        *out = value.to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(config_offset) = offset.checked_sub(CONFIG_OFFSET) {
            return self.core().device.write_config(config_offset, data);
        }
        if let (Some(register), Ok(bytes)) = (Register::at(offset), data.try_into()) {
            self.write_register(register, u32::from_le_bytes(bytes));
        }
    }
}

impl EventSubscriber for Transport {
    fn init(&self, ops: &mut EventOps<'_>) {
        let kick = (self.kick.as_raw_fd(), KICK_TOKEN, EventSet::IN);
        let sources = self.core().device.sources();
        let sources = sources.iter().map(|source| (source.fd, source.token, source.events));
        for (fd, token, events) in std::iter::once(kick).chain(sources) {
            add(ops, fd, token, events, self.kind);
        }
    }

    fn process(&self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            KICK_TOKEN => self.on_kick(),
            token => self.with_io(|device, io| device.on_source(token, io)),
        }
    }
}

fn add(ops: &mut EventOps<'_>, fd: RawFd, token: u32, events: EventSet, kind: Kind) {
    if let Err(error) = ops.add(Events::with_data_raw(fd, token, events)) {
        // Only a descriptor that is registered twice or a host out of memory gets here.
        tracing::error!(?kind, fd, %error, "watch a device's descriptor");
    }
}

/// The 32-bit half of `bits` that a select register names; zero past the second.
fn half(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn with_half(bits: u64, select: u32, value: u32) -> u64 {
    match select {
        0 => bits & !u64::from(u32::MAX) | u64::from(value),
        1 => bits & u64::from(u32::MAX) | u64::from(value) << 32,
        _ => bits,
    }
}
