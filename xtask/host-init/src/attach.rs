//! What is done at the first contact: all that a state saved in a file cannot hold.

use std::{fs, io, io::Write};

use host_init::message::{Hello, Share};
use rustix::{
    mount::{MountFlags, mount},
    thread::{CpuSet, clock_nanosleep_absolute, sched_getaffinity, sched_setaffinity},
    time::{ClockId, Timespec, clock_settime},
};

/// Where the disk that outlives the machine is mounted.
const STATE: &str = "/var/rotifer";
const STATE_DEVICE: &str = "/dev/vda";
/// 9p: large messages, and no caching, since both sides write.
const SHARE_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=none,access=any";

/// A share or the disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory for a mount.
    #[error("cannot create {path} on the emulated host: {source}")]
    Create {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The mount itself.
    #[error("cannot mount {what} on {path} of the emulated host: {source}")]
    Mount {
        /// The tag or the device.
        what: String,
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Starts the timers, sets the clock, refreshes the randomness and mounts what is not mounted yet.
pub fn attach(hello: &Hello) -> Result<(), Error> {
    if let Err(errno) = start_timers() {
        eprintln!("host-init: cannot start the timers: {errno}");
    }
    set_clock(hello.time_ns);
    if let Ok(mut random) = fs::OpenOptions::new().write(true).open("/dev/urandom") {
        let _the_kernel_takes_all = random.write_all(&hello.seed);
    }
    for Share { tag, path } in &hello.shares {
        mount_once(tag, path, "9p", SHARE_OPTIONS)?;
    }
    if fs::exists(STATE_DEVICE).unwrap_or(false) {
        mount_once(STATE_DEVICE, STATE, "ext4", "")?;
    }
    Ok(())
}

/// QEMU 10.0 does not save the timers of EL2, by which this kernel keeps time: the event that a CPU
/// had asked for may never come, and the kernel asks for no later one while it waits for it. A
/// sleep until the beginning of time is earlier than any, so it is asked for on each CPU.
fn start_timers() -> rustix::io::Result<()> {
    let all = sched_getaffinity(None)?;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one)?;
        let the_beginning = Timespec { tv_sec: 0, tv_nsec: 1 };
        clock_nanosleep_absolute(ClockId::Monotonic, &the_beginning)?;
    }
    sched_setaffinity(None, &all)
}

fn set_clock(time_ns: u64) {
    let second_ns = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(time_ns / second_ns).unwrap_or(0),
        tv_nsec: i64::try_from(time_ns % second_ns).unwrap_or(0),
    };
    if let Err(errno) = clock_settime(ClockId::Realtime, time) {
        eprintln!("host-init: cannot set the clock: {errno}");
    }
}

fn mount_once(what: &str, path: &str, kind: &str, options: &str) -> Result<(), Error> {
    if is_mounted(path) {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|source| Error::Create { path: path.into(), source })?;
    let options = std::ffi::CString::new(options).unwrap_or_default();
    mount(what, path, kind, MountFlags::NODEV, options.as_c_str()).map_err(|errno| Error::Mount {
        what: what.into(),
        path: path.into(),
        source: errno.into(),
    })
}

fn is_mounted(path: &str) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(path))
}
