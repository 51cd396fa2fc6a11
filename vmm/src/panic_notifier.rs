//! Tells the host that the guest's kernel has panicked: QEMU's pvpanic device over MMIO
//! (docs/specs/pvpanic.rst of QEMU), for which Linux has a driver.
//!
//! Without it a panic looks like a deliberate reboot, or like a guest that computes for ever.

use std::sync::atomic::{AtomicBool, Ordering};

use rotifer_devices::MmioDevice;
use vmm_sys_util::eventfd::EventFd;

/// The one event that we want to hear of: the kernel has panicked and ends.
const PANICKED: u8 = 1 << 0;

/// One register: reading tells the events that are wanted, writing reports some.
pub struct PanicNotifier {
    panicked: AtomicBool,
    wake: EventFd,
}

impl PanicNotifier {
    /// Writes to `wake` when the guest panics.
    pub fn new(wake: EventFd) -> Self {
        Self { panicked: AtomicBool::new(false), wake }
    }

    /// Whether the guest has panicked since it was started.
    pub fn panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }
}

impl MmioDevice for PanicNotifier {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(register)) = (offset, data.first_mut()) {
            *register = PANICKED;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let panicked = offset == 0 && data.first().is_some_and(|events| events & PANICKED != 0);
        if panicked && !self.panicked.swap(true, Ordering::AcqRel) {
            // The counter was 0 or has woken the main thread already.
            let _ = self.wake.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn a_panic_is_told_once_and_nothing_else_is_taken_for_one() {
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let notifier = PanicNotifier::new(wake.try_clone().unwrap());
        let mut wanted = [0xff; 4];
        notifier.read(0, &mut wanted);
        assert_eq!(wanted, [PANICKED, 0, 0, 0]);
        notifier.write(0, &[0xfe]);
        notifier.write(4, &[0xff]);
        notifier.write(0, &[]);
        assert!(!notifier.panicked());
        notifier.write(0, &[PANICKED]);
        notifier.write(0, &[PANICKED]);
        assert!(notifier.panicked());
        assert_eq!(wake.read().unwrap(), 1);
    }
}
