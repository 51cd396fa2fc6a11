//! The guest's wall clock, after the host's.
//!
//! The kernel sets it at boot from a clock chip that counts whole seconds, and while the guest is
//! suspended it stands still. KVM tells the host's time and what the guest's counter showed at that
//! moment, so the difference is exact however long a vCPU had to wait: the kernel offers it as a PTP
//! clock (Linux, `drivers/ptp/ptp_kvm_common.c`). On hosts whose KVM does not, there is the chip.

use crate::api::error::chain;
use crate::console::kernel_log;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Where the kernel lists PTP clocks.
const PTP_CLASS: &str = "/sys/class/ptp";
/// What the one of KVM is called there.
const PTP_KVM_NAME: &str = "KVM virtual PTP";
const RTC: &str = "/dev/rtc0";
const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

/// The host's time could not be had, or not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}")]
struct ClockError {
    attempt: &'static str,
    #[source]
    source: io::Error,
}

/// The ways to the host's time.
#[derive(Debug)]
pub struct HostClock {
    /// The device of KVM's PTP clock. It is opened when it is needed, since an open one keeps a
    /// queue in memory.
    ptp: Option<PathBuf>,
    has_told: Cell<bool>,
}

impl HostClock {
    /// Looks for them, and sets the wall clock for the first time. A host that does not tell its
    /// time precisely is told of; the kernel has set the clock by the chip then.
    #[must_use]
    pub fn find_and_set() -> Self {
        let clock = Self { ptp: find_ptp(), has_told: Cell::new(false) };
        if let Err(error) = clock.set_precisely() {
            clock.tell(&error);
        }
        clock
    }

    /// Sets the wall clock again, as precisely as this host allows.
    pub fn set(&self) {
        let Err(error) = self.set_precisely() else { return };
        self.tell(&error);
        if let Err(error) = set_from_chip() {
            kernel_log(&format!("the wall clock is wrong: {}", chain(&error)));
        }
    }

    fn set_precisely(&self) -> Result<(), ClockError> {
        let Some(path) = &self.ptp else {
            let source = io::ErrorKind::NotFound.into();
            return Err(ClockError { attempt: "find KVM's PTP clock", source });
        };
        let times = read_ptp(path)
            .map_err(|source| ClockError { attempt: "read KVM's PTP clock", source })?;
        shift_wall_clock(times.difference())
            .map_err(|source| ClockError { attempt: "shift the wall clock", source })
    }

    /// Once: the host does not change while its guest runs, and most of them stay.
    fn tell(&self, error: &ClockError) {
        if !self.has_told.replace(true) {
            let cause = chain(error);
            kernel_log(&format!("the wall clock is right to a second only: {cause}"));
        }
    }
}

fn find_ptp() -> Option<PathBuf> {
    let clocks = fs::read_dir(PTP_CLASS).ok()?.flatten();
    let is_kvms = |name: io::Result<String>| name.is_ok_and(|name| name.trim() == PTP_KVM_NAME);
    { clocks }
        .find(|clock| is_kvms(fs::read_to_string(clock.path().join("clock_name"))))
        .map(|clock| Path::new("/dev").join(clock.file_name()))
}

/// `struct ptp_clock_time`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PtpTime {
    seconds: i64,
    nanoseconds: u32,
    reserved: u32,
}

/// `struct ptp_sys_offset_precise`: two clocks at one moment.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PtpTimes {
    host: PtpTime,
    guest: PtpTime,
    guest_raw_monotonic: PtpTime,
    reserved: [u32; 4],
}

nix::ioctl_readwrite!(
    /// Reads both clocks.
    ptp_sys_offset_precise,
    b'=',
    8,
    PtpTimes
);

impl PtpTimes {
    /// By how much the host's clock is ahead: seconds of either sign, and a part of a second.
    fn difference(&self) -> (i64, i64) {
        let seconds = self.host.seconds - self.guest.seconds;
        let nanoseconds = i64::from(self.host.nanoseconds) - i64::from(self.guest.nanoseconds);
        let carry = nanoseconds.div_euclid(NANOSECONDS_PER_SECOND);
        (seconds + carry, nanoseconds.rem_euclid(NANOSECONDS_PER_SECOND))
    }
}

fn read_ptp(path: &Path) -> io::Result<PtpTimes> {
    let device = File::open(path)?;
    let mut times = PtpTimes::default();
    // SAFETY: the structure is the kernel's, lives across the call, and any bytes are valid in it.
    unsafe { ptp_sys_offset_precise(device.as_raw_fd(), &raw mut times) }?;
    Ok(times)
}

/// Adds to the wall clock, whatever it shows by now.
fn shift_wall_clock((seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    // SAFETY: a timex is plain bytes, for which all zeroes is a valid value.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    change.time = libc::timeval { tv_sec: seconds, tv_usec: nanoseconds };
    // SAFETY: the pointer is to a live, initialised timex.
    match unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut change) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// `struct rtc_time`, which begins as C's `struct tm`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct ChipTime {
    second: i32,
    minute: i32,
    hour: i32,
    day: i32,
    month: i32,
    year: i32,
    of_no_use: [i32; 3],
}

nix::ioctl_read!(
    /// Reads the chip.
    rtc_rd_time,
    b'p',
    0x09,
    ChipTime
);

impl ChipTime {
    /// Seconds since 1970.
    fn since_1970(self) -> i64 {
        // SAFETY: a tm is plain bytes and a pointer that may be null.
        let mut time: libc::tm = unsafe { std::mem::zeroed() };
        (time.tm_sec, time.tm_min, time.tm_hour) = (self.second, self.minute, self.hour);
        (time.tm_mday, time.tm_mon, time.tm_year) = (self.day, self.month, self.year);
        // SAFETY: the pointer is to a live, initialised tm.
        unsafe { libc::timegm(&raw mut time) }
    }
}

/// The chip counts seconds, so the best guess is the middle of one.
fn set_from_chip() -> Result<(), ClockError> {
    let mut time = ChipTime::default();
    let read = File::open(RTC).and_then(|chip| {
        // SAFETY: the structure is the kernel's, lives across the call, and any bytes are valid.
        unsafe { rtc_rd_time(chip.as_raw_fd(), &raw mut time) }?;
        Ok(())
    });
    read.map_err(|source| ClockError { attempt: "read the clock chip", source })?;
    let time = TimeSpec::new(time.since_1970(), NANOSECONDS_PER_SECOND / 2);
    clock_settime(ClockId::CLOCK_REALTIME, time)
        .map_err(|source| ClockError { attempt: "set the wall clock", source: source.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(host: (i64, u32), guest: (i64, u32)) -> (i64, i64) {
        let time = |(seconds, nanoseconds)| PtpTime { seconds, nanoseconds, reserved: 0 };
        PtpTimes { host: time(host), guest: time(guest), ..PtpTimes::default() }.difference()
    }

    #[test]
    fn a_difference_has_a_part_of_a_second_that_is_not_negative() {
        assert_eq!(difference((100, 7), (90, 5)), (10, 2));
        assert_eq!(difference((100, 5), (90, 7)), (9, 999_999_998));
        assert_eq!(difference((90, 5), (100, 7)), (-11, 999_999_998));
        assert_eq!(difference((90, 7), (100, 5)), (-10, 2));
        assert_eq!(difference((90, 7), (90, 7)), (0, 0));
    }

    #[test]
    fn the_chips_calendar_is_that_of_1970() {
        let noon =
            ChipTime { minute: 30, hour: 12, day: 24, month: 10, year: 126, ..ChipTime::default() };
        assert_eq!(noon.since_1970(), 1_795_523_400);
        let leap = ChipTime { second: 59, day: 29, month: 1, year: 124, ..ChipTime::default() };
        assert_eq!(leap.since_1970(), 1_709_164_859);
    }

    #[test]
    fn the_structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<PtpTimes>(), 64);
        assert_eq!(size_of::<ChipTime>(), 36);
    }
}
