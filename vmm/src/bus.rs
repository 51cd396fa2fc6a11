//! The MMIO bus: which device answers at which address.

use std::sync::Arc;

use rotifer_devices::MmioDevice;

use crate::slots::Window;

/// Every device of a machine by address. It never changes once the vCPUs run, so they share it
/// without a lock.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base.
    attached: Vec<Attached>,
}

struct Attached {
    window: Window,
    device: Arc<dyn MmioDevice>,
}

impl Bus {
    /// Puts `device` at `window`, which no other device has: windows come from
    /// [`crate::slots::Slots`].
    pub fn attach(&mut self, window: Window, device: Arc<dyn MmioDevice>) {
        let at = self.attached.partition_point(|other| other.window.base < window.base);
        self.attached.insert(at, Attached { window, device });
    }

    /// The guest reads. Where no device is, it reads zeroes, as from a bus that nobody drives.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => {
                tracing::debug!(address = format_args!("{address:#x}"), "read where no device is");
                data.fill(0);
            }
        }
    }

    /// The guest writes. Where no device is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address) {
            Some((device, offset)) => device.write(offset, data),
            None => {
                tracing::debug!(address = format_args!("{address:#x}"), "write where no device is");
            }
        }
    }

    fn find(&self, address: u64) -> Option<(&dyn MmioDevice, u64)> {
        let next = self.attached.partition_point(|other| other.window.base.0 <= address);
        let Attached { window, device } = self.attached.get(next.checked_sub(1)?)?;
        let offset = address.checked_sub(window.base.0)?;
        (offset < window.bytes).then_some((device.as_ref(), offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_memory::GuestAddress;

    use super::*;

    /// Remembers the offsets it is accessed at.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<u64>>);

    impl MmioDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().unwrap().push(offset);
            data.fill(0xaa);
        }

        fn write(&self, offset: u64, _data: &[u8]) {
            self.0.lock().unwrap().push(offset);
        }
    }

    fn window(base: u64) -> Window {
        Window { base: GuestAddress(base), bytes: 0x1000 }
    }

    #[test]
    fn each_device_hears_of_its_own_window_only_whatever_the_order_of_attaching() {
        let (low, high) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = Bus::default();
        bus.attach(window(0x3000), high.clone());
        bus.attach(window(0x1000), low.clone());
        bus.write(0x1000, &[0]);
        bus.write(0x1fff, &[0]);
        bus.write(0x3004, &[0]);
        assert_eq!(*low.0.lock().unwrap(), [0, 0xfff]);
        assert_eq!(*high.0.lock().unwrap(), [4]);
    }

    #[test]
    fn where_no_device_is_zeroes_are_read_and_writes_are_lost() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.attach(window(0x1000), device.clone());
        for address in [0, 0xfff, 0x2000, u64::MAX] {
            let mut data = [0xff; 8];
            bus.read(address, &mut data);
            assert_eq!(data, [0; 8]);
            bus.write(address, &data);
        }
        assert!(device.0.lock().unwrap().is_empty());
    }
}
