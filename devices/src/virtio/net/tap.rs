//! The host's end: a tap, which takes and gives whole frames.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

use super::header::HEADER_BYTES;

/// The longest name of an interface, in bytes: `IFNAMSIZ` less the closing NUL.
pub const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

const DEVICE: &str = "/dev/net/tun";

const TCP_OFFLOADS: u32 =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const UDP_OFFLOADS: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Offloads of the tap by the features of which they are made.
const OFFLOADS: [(u32, u32); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are in the texts
pub enum TapError {
    #[error("{name:?} is no name of an interface: {reason}")]
    Name { name: String, reason: &'static str },
    #[error("there is no interface {name} here (make it with `ip tuntap add {name} mode tap`)")]
    Missing { name: String },
    #[error("open {DEVICE}, which taps need: {remedy}")]
    Device { remedy: &'static str, source: io::Error },
    #[error("use tap {name}: {remedy}")]
    Attach { name: String, remedy: &'static str, source: io::Error },
    #[error("{attempt} of tap {name}")]
    Setting { name: String, attempt: &'static str, source: io::Error },
}

/// A tap that this process alone uses.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// As the kernel knows it; what is no tap has no offloads to be set.
    offloads: Option<u32>,
    has_udp_offloads: bool,
}

impl Tap {
    /// Attaches to the tap `name` of this network namespace. It must be there: nobody would know
    /// of one that we make.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        check_name(name)?;
        if !exists(name) {
            return Err(TapError::Missing { name: name.into() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|source| TapError::Device { remedy: device_remedy(&source), source })?;
        let mut request = request(name);
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // All flags of taps are below 0x8000.
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
        let attached = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        result(attached).map_err(|source| {
            let remedy = attach_remedy(&source);
            TapError::Attach { name: name.into(), remedy, source }
        })?;
        let setting =
            |attempt| move |source| TapError::Setting { name: name.into(), attempt, source };
        let header_bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
        let set = unsafe {
            libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes)
        };
        result(set).map_err(setting("set the size of the header"))?;
        // As drivers want it, so that nothing is left to do when they start.
        let mut tap = Self { file, offloads: Some(0), has_udp_offloads: true };
        if tap.set_offloads(TCP_OFFLOADS | UDP_OFFLOADS).is_err() {
            tap.has_udp_offloads = false; // Linux has them since 6.2
            tap.set_offloads(TCP_OFFLOADS).map_err(setting("set the offloads"))?;
        }
        if !is_up(name) {
            tracing::warn!(name, "the tap is down: no frame gets through it (`ip link set up`)");
        }
        Ok(tap)
    }

    /// A socket that keeps messages apart, each of which is a header and a frame, in a tap's
    /// place. Whoever has its other end is the network.
    ///
    /// # Errors
    /// The host refuses to make it non-blocking.
    pub fn over_socket(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: sets a flag of a descriptor that is ours.
        let set = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        result(set)?;
        Ok(Self { file: socket.into(), offloads: None, has_udp_offloads: true })
    }

    /// The feature bits of what it does for the guest.
    pub(super) fn features(&self) -> u64 {
        let to_guest = OFFLOADS.map(|(feature, _)| feature);
        let to_host = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_HOST_USO,
        ];
        let udp = [VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO];
        let all = to_guest.into_iter().chain(to_host);
        all.filter(|feature| self.has_udp_offloads || !udp.contains(feature))
            .fold(0, |bits, feature| bits | 1_u64.wrapping_shl(feature))
    }

    /// Has the host's kernel give frames only as the driver understands them. True if it would
    /// have given others before.
    pub(super) fn negotiate(&mut self, has_feature: impl Fn(u32) -> bool) -> io::Result<bool> {
        let wanted = OFFLOADS.iter().filter(|(feature, _)| has_feature(*feature));
        let wanted = wanted.fold(0, |offloads, (_, offload)| offloads | offload);
        // Nothing without checksums; and the kernel knows the two of UDP only together.
        let has = |offload| wanted & offload == offload;
        let udp = if has(UDP_OFFLOADS) { UDP_OFFLOADS } else { 0 };
        let wanted = if has(libc::TUN_F_CSUM) { wanted & TCP_OFFLOADS | udp } else { 0 };
        match self.offloads {
            Some(offloads) if offloads != wanted => self.set_offloads(wanted).map(|()| true),
            _ => Ok(false),
        }
    }

    fn set_offloads(&mut self, offloads: u32) -> io::Result<()> {
        let argument = libc::c_ulong::from(offloads);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let set = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, argument) };
        result(set)?;
        self.offloads = Some(offloads);
        Ok(())
    }

    /// Throws away up to `count` frames that wait.
    pub(super) fn discard(&self, count: usize) {
        let mut byte = 0_u8;
        for _ in 0..count {
            // SAFETY: reads at most one byte into `byte`; what else there is of the frame is lost.
            let done = unsafe { libc::read(self.file.as_raw_fd(), (&raw mut byte).cast(), 1) };
            // A tap refuses to read into less than a header, and loses the frame nevertheless.
            if done < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock {
                return;
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check_name(name: &str) -> Result<(), TapError> {
    let reason = if name.is_empty() || name == "." || name == ".." {
        "nothing is called so"
    } else if name.len() > NAME_BYTES_MAX {
        "it has more than 15 bytes"
    } else if name.bytes().any(|b| !b.is_ascii_graphic() || b"/:%".contains(&b)) {
        "it has a character that is none of names"
    } else {
        return Ok(());
    };
    Err(TapError::Name { name: name.into(), reason })
}

fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: the pointer is to a string that ends with NUL and outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

fn is_up(name: &str) -> bool {
    let mut request = request(name);
    // SAFETY: makes a socket, which is ours alone; SIOCGIFFLAGS then reads and writes one ifreq,
    // which outlives the call and whose flags it has filled if it succeeds.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return true; // it is not known to be down
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let asked = libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request);
        asked != 0 || libc::c_int::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0
    }
}

/// For the interface `name`, which is no longer than [`NAME_BYTES_MAX`].
fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain bytes, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(NAME_BYTES_MAX)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn result(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn device_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => "the host has none (`modprobe tun`)",
        Some(libc::EACCES | libc::EPERM) => "this user may not; give it the right to the device",
        _ => "the host refuses",
    }
}

fn attach_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another process, or another interface of this machine, uses it",
        Some(libc::EPERM) => {
            "it is another user's; make it with `ip tuntap add ... user`, or have CAP_NET_ADMIN"
        }
        Some(libc::EINVAL) => {
            "it is no tap, or one of several queues; make it with `ip tuntap add ... mode tap`"
        }
        _ => "the host refuses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused_before_the_host_is_asked() {
        for name in ["", "..", "a/b", "tap 0", "tap%d", "tap\0", "sixteen-letters-", "täp"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_not_made() {
        let error = Tap::open("no-such-tap").unwrap_err();
        assert!(error.to_string().contains("ip tuntap add no-such-tap mode tap"), "{error}");
        assert!(!exists("no-such-tap"));
    }

    #[test]
    fn an_interface_that_is_no_tap_is_refused() {
        match Tap::open("lo").unwrap_err() {
            TapError::Attach { name, .. } => assert_eq!(name, "lo"),
            TapError::Device { .. } => {} // this machine has no taps at all
            other => panic!("{other}"),
        }
    }
}
