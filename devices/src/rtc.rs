//! The real-time clock: an ARM PL031 (ARM DDI 0224), by `vm-superio`. Linux reads it once, to
//! set its wall clock at boot.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rotifer_snapshot::{LoadError, Stateful, Tag};
use serde::{Deserialize, Serialize};
use vm_superio::rtc_pl031::{NoEvents, RtcState};

use crate::MmioDevice;

type Pl031 = vm_superio::Rtc<NoEvents>;

/// A PL031 on the MMIO bus. Its interrupt is not wired: nobody sets alarms.
#[derive(Default)]
pub struct Rtc {
    pl031: Mutex<Pl031>,
}

impl Rtc {
    fn pl031(&self) -> MutexGuard<'_, Pl031> {
        self.pl031.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registers that a guest can write. How far a guest has set its clock apart from the host's
/// is not among them: after a restore it tells the host's time again, since a clock that was set
/// by a guest whose own time stood still would be wrong for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    load: u32,
    match_: u32,
    interrupt_mask: u32,
    interrupt_status: u32,
}

/// Shared with the bus, hence the reference.
impl Stateful for &Rtc {
    const TAG: Tag = Tag { kind: *b"PRTC", version: 1 };
    type State = State;

    fn save(&self) -> State {
        let RtcState { lr, mr, imsc, ris, offset: _ } = self.pl031().state();
        State { load: lr, match_: mr, interrupt_mask: imsc, interrupt_status: ris }
    }

    /// No value of these registers is impossible.
    fn load(&mut self, state: State) -> Result<(), LoadError> {
        let State { load: lr, match_: mr, interrupt_mask: imsc, interrupt_status: ris } = state;
        *self.pl031() = Pl031::from_state(&RtcState { lr, mr, imsc, ris, offset: 0 }, NoEvents);
        Ok(())
    }
}

impl MmioDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            self.pl031().read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            self.pl031().write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use rotifer_snapshot::Section;

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
    fn a_restored_clock_keeps_its_registers_and_tells_the_hosts_time() {
        const RTCMR: u64 = 0x004;
        const RTCLR: u64 = 0x008;
        let saved = Rtc::default();
        saved.write(RTCMR, &7_u32.to_le_bytes());
        saved.write(RTCLR, &9_u32.to_le_bytes());
        let restored = Rtc::default();
        (&restored).load_section(&(&saved).save_section()).unwrap();
        let read = |register| {
            let mut data = [0; 4];
            restored.read(register, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!((read(RTCMR), read(RTCLR)), (7, 9));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(u64::from(read(RTCDR)).abs_diff(now) < 60, "not the time that the guest had set");
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
