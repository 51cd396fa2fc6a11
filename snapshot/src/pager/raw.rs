//! System calls on userfaultfd that the `userfaultfd` crate lacks, or whose answer it drops.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::{
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, Updater, opcode},
    mm::UserfaultfdFlags,
};

/// `UFFD_FEATURE_EVENT_REMOVE`: tell of memory that is given back.
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// `UFFD_USER_MODE_ONLY`.
const USER_MODE_ONLY: u32 = 1;
/// `UFFD_API`.
const API_VERSION: u64 = 0xaa;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    version: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    zeroed: i64,
}

/// `USERFAULTFD_IOC_NEW` on the device: a new userfaultfd of this process.
struct New {
    flags: UserfaultfdFlags,
}

// SAFETY: the kernel takes the flags as the argument itself, dereferences nothing, and returns a
// new descriptor that belongs to nobody yet.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xaa, 0x00)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.flags.bits() as usize)
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _argument: *mut std::ffi::c_void,
    ) -> rustix::io::Result<OwnedFd> {
        // SAFETY: as above: a successful call returns a new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

/// A userfaultfd from an open `/dev/userfaultfd`.
pub(super) fn create_from_device(device: impl AsFd) -> rustix::io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: `New` describes this request of this kind of descriptor; any other kind refuses it.
    let userfault = unsafe { rustix::ioctl::ioctl(device, New { flags })? };
    agree(&userfault)?;
    Ok(userfault)
}

/// A userfaultfd from the system call; one that serves no fault of the kernel needs no rights.
pub(super) fn create_from_call(is_user_only: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    if is_user_only {
        flags |= UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
    }
    // SAFETY: the call only creates a descriptor.
    let userfault = unsafe { rustix::mm::userfaultfd(flags)? };
    agree(&userfault)?;
    Ok(userfault)
}

/// The handshake that every userfaultfd begins with.
fn agree(userfault: &OwnedFd) -> rustix::io::Result<()> {
    const OPCODE: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
    let mut api = Api { version: API_VERSION, features: FEATURE_EVENT_REMOVE, ioctls: 0 };
    // SAFETY: the structure is the one that this request reads and writes.
    unsafe { rustix::ioctl::ioctl(userfault, Updater::<OPCODE, Api>::new(&mut api)) }
}

/// Maps pages of zeroes where nothing is mapped, and wakes who waits for them. Returns how many
/// bytes were, also when it stopped early: the crate drops that number.
///
/// # Safety
/// The range belongs to a mapping of which the caller decides the content.
pub(super) unsafe fn zero_page(
    userfault: impl AsFd,
    start: usize,
    len_bytes: usize,
) -> (usize, Result<(), Errno>) {
    const OPCODE: Opcode = opcode::read_write::<ZeroPage>(0xaa, 0x04);
    let mut request = ZeroPage { start: start as u64, len: len_bytes as u64, mode: 0, zeroed: 0 };
    // SAFETY: the structure is the one that this request reads and writes; about the range the
    // caller promises.
    let result =
        unsafe { rustix::ioctl::ioctl(userfault, Updater::<OPCODE, ZeroPage>::new(&mut request)) };
    (usize::try_from(request.zeroed).unwrap_or(0), result)
}
