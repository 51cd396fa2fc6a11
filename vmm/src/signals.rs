//! Signals that ask for the end of the machine, as events.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vmm_sys_util::signal::{Error, block_signal, create_sigset};

/// All end the machine in the same clean way.
const ENDING: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// A signalfd of the signals that end a machine.
pub struct Signals(File);

impl Signals {
    /// Takes the signals away from their default. Before any other thread is started: each
    /// inherits the mask.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn take() -> io::Result<Self> {
        for signal in ENDING {
            match block_signal(signal) {
                Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(error.to_string())),
            }
        }
        let set =
            create_sigset(&ENDING).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // SAFETY: the set is initialised and outlives the call; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// The signal that came, if one did.
    pub fn take_next(&mut self) -> Option<libc::c_int> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        // `ssi_signo` is its first field.
        let (signal, _) = info.split_first_chunk()?;
        Some(libc::c_int::from_ne_bytes(*signal))
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
