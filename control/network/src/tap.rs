//! The tap of a namespace: `/dev/net/tun` knows no netlink.

use std::{
    ffi::c_ulong,
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

const DEVICE: &str = "/dev/net/tun";
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETPERSIST: c_ulong = 0x4004_54cb;
const TUNSETOWNER: c_ulong = 0x4004_54cc;

/// A tap cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device that makes them.
    #[error("cannot open {DEVICE}: load the kernel's module tun, and run as root")]
    Open(#[source] io::Error),
    /// One step.
    #[error("cannot {what} the tap {name}")]
    Set {
        /// What was attempted.
        what: &'static str,
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// Makes a tap in the namespace of this thread that stays until it or the namespace is removed. It
/// has one queue; who opens it chooses its offloads.
pub fn create(name: &str) -> Result<(), Error> {
    let file = attach(name)?;
    set(&file, TUNSETPERSIST, 1).map_err(|source| failed("keep", name, source))
}

/// Lets a user open the tap who may do nothing else with networks.
pub fn give(name: &str, user: u32) -> Result<(), Error> {
    let file = attach(name)?;
    set(&file, TUNSETOWNER, user.into()).map_err(|source| failed("give away", name, source))
}

/// The device, attached to a tap of this thread's namespace that is made if it does not exist.
pub fn attach(name: &str) -> Result<File, Error> {
    let file = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(Error::Open)?;
    let flags = u16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap_or_default();
    let mut request = [0u8; 40];
    let name_bytes = name.as_bytes();
    let is_whole = request
        .get_mut(..name_bytes.len())
        .filter(|field| field.len() < libc::IFNAMSIZ)
        .map(|field| field.copy_from_slice(name_bytes));
    if is_whole.is_none() {
        return Err(failed("name", name, io::ErrorKind::InvalidInput.into()));
    }
    if let Some(field) = request.get_mut(libc::IFNAMSIZ..libc::IFNAMSIZ + 2) {
        field.copy_from_slice(&flags.to_ne_bytes());
    }
    // SAFETY: the kernel reads and writes a `struct ifreq`, which is no longer than `request`.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
    if status < 0 {
        return Err(failed("open", name, io::Error::last_os_error()));
    }
    Ok(file)
}

fn set(file: &File, request: c_ulong, value: u64) -> io::Result<()> {
    // SAFETY: these requests take a number and touch no memory of ours.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), request as _, value as c_ulong) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn failed(what: &'static str, name: &str, source: io::Error) -> Error {
    Error::Set { what, name: name.to_owned(), source }
}
