//! Makes a vCPU thread come out of the guest.
//!
//! The flag `immediate_exit` of the run structure ends the next KVM_RUN; the signal ends the
//! present one. Both together leave no moment at which a kick could get lost.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

const IMMEDIATE_EXIT: usize = std::mem::offset_of!(kvm_run, immediate_exit);

/// A second mapping of a vCPU's run structure: it needs no access to the vCPU, which another
/// thread owns, and outlives it.
pub struct Kick {
    run: MmapRegion,
}

impl Kick {
    pub(super) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open for as long as `vcpu` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let file = File::from(fd.try_clone_to_owned()?);
        let run = MmapRegion::from_file(FileOffset::new(file, 0), IMMEDIATE_EXIT + 1).map_err(
            |error| match error {
                MmapRegionError::Mmap(source) => source,
                other => io::Error::other(other),
            },
        )?;
        Ok(Self { run })
    }

    /// Has the vCPU, which `thread` runs or will run, come out.
    pub fn kick<T: Killable>(&self, thread: &T) -> io::Result<()> {
        self.run
            .as_volatile_slice()
            .store(1_u8, IMMEDIATE_EXIT, Ordering::SeqCst)
            .map_err(io::Error::other)?;
        thread.kill(SIGRTMIN()).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

/// Has the kick signal interrupt system calls, and nothing else. Once per process, before the
/// first vCPU runs.
///
/// # Errors
/// The host refuses the handler.
pub fn prepare() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}
