//! The real-time clock: an ARM PL031 (ARM DDI 0224), by `vm-superio`. Linux reads it once, to
//! set its wall clock at boot.

use std::sync::{Mutex, PoisonError};

use crate::MmioDevice;

/// A PL031 on the MMIO bus. It has no guest-visible state worth saving: the time is the host's,
/// and nobody sets alarms, since its interrupt is not wired.
#[derive(Default)]
pub struct Rtc {
    pl031: Mutex<vm_superio::Rtc<vm_superio::rtc_pl031::NoEvents>>,
}

impl MmioDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            self.pl031.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            self.pl031.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// RTCDR, the data register: seconds since 1970.
    const RTCDR: u64 = 0x000;
    const PERIPHERAL_ID_0: u64 = 0xfe0;

    #[test]
    fn the_clock_tells_the_hosts_time() {
        let rtc = Rtc::default();
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut data = [0; 4];
        let before = now();
        rtc.read(RTCDR, &mut data);
        let time = u64::from(u32::from_le_bytes(data));
        assert!((before..=now()).contains(&time), "{time} is not between {before} and now");
    }

    #[test]
    fn the_identification_is_that_of_a_pl031() {
        let mut data = [0; 4];
        Rtc::default().read(PERIPHERAL_ID_0, &mut data);
        assert_eq!(data, [0x31, 0, 0, 0]);
    }

    #[test]
    fn accesses_of_other_widths_and_offsets_read_zero_and_change_nothing() {
        let rtc = Rtc::default();
        for width in [1, 2, 8] {
            let mut data = vec![0xff; width];
            rtc.read(RTCDR, &mut data);
            assert_eq!(data, vec![0; width]);
            rtc.write(RTCDR, &data);
        }
        let mut data = [0xff; 4];
        rtc.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
