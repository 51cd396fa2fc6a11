//! The registers that say where rings are and how large (section 4.2.2).

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestAddress;

use super::{Core, status, with_half};
use crate::virtio::registers::Register;

impl Core {
    /// Rings are written between FEATURES_OK and DRIVER_OK, never while they are in use.
    pub(super) fn write_queue(&mut self, register: Register, value: u32) {
        const WINDOW: u32 = status::FEATURES_OK | status::DRIVER_OK | status::DEVICE_NEEDS_RESET;
        if self.status & WINDOW != status::FEATURES_OK {
            return;
        }
        let Some(slot) = self.slots.get_mut(self.queue_select as usize) else { return };
        if slot.queue.ready() && register != Register::QueueReady {
            return;
        }
        if let Err(error) = write(&mut slot.queue, register, value) {
            // Had it been ignored, driver and device would see different rings.
            tracing::debug!(?register, value, %error, "a driver wrote an impossible ring");
            self.status |= status::DEVICE_NEEDS_RESET;
        }
    }
}

/// Fails for a size that was not offered and for an address that is misaligned.
fn write(queue: &mut Queue, register: Register, value: u32) -> Result<(), Error> {
    let half = |old, select| GuestAddress(with_half(old, select, value));
    match register {
        Register::QueueNum => {
            queue.try_set_size(u16::try_from(value).map_err(|_| Error::InvalidSize)?)
        }
        Register::QueueReady => {
            queue.set_ready(value & 1 == 1);
            Ok(())
        }
        Register::QueueDescLow => queue.try_set_desc_table_address(half(queue.desc_table(), 0)),
        Register::QueueDescHigh => queue.try_set_desc_table_address(half(queue.desc_table(), 1)),
        Register::QueueDriverLow => queue.try_set_avail_ring_address(half(queue.avail_ring(), 0)),
        Register::QueueDriverHigh => queue.try_set_avail_ring_address(half(queue.avail_ring(), 1)),
        Register::QueueDeviceLow => queue.try_set_used_ring_address(half(queue.used_ring(), 0)),
        Register::QueueDeviceHigh => queue.try_set_used_ring_address(half(queue.used_ring(), 1)),
        _ => Ok(()),
    }
}
