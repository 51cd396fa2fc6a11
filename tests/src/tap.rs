//! A tap of the host for a test, and what went through it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// That of every tap.
const ETHERNET_ADDRESS: [u8; 6] = [2, 0x40, 0, 0, 0, 1];

/// A tap that is up and has an address. Dropping it removes it.
#[derive(Debug)]
pub struct Tap {
    name: &'static str,
}

/// Packets and bytes that the host has received through a tap, and sent.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// From the guest: packets, bytes.
    pub received: [u64; 2],
    /// To the guest: packets, bytes.
    pub sent: [u64; 2],
}

impl Tap {
    /// Makes the tap `name`, with an address of its own in a network of 256. Its Ethernet address
    /// is always the same: a guest that moves from tap to tap knows it.
    ///
    /// # Panics
    /// If the host refuses; it takes CAP_NET_ADMIN.
    pub fn new(name: &'static str, address: Ipv4Addr, mtu: i32) -> Self {
        let file = attach(name);
        set(&file, "keep the tap", libc::TUNSETPERSIST, 1);
        let tap = Self { name };
        configure("set its Ethernet address", libc::SIOCSIFHWADDR, name, |request| {
            let family = libc::ARPHRD_ETHER;
            request.ifr_ifru.ifru_hwaddr = socket_address(family, 0, &ETHERNET_ADDRESS);
        });
        configure("set its MTU", libc::SIOCSIFMTU, name, |request| {
            request.ifr_ifru.ifru_mtu = mtu;
        });
        configure("set its address", libc::SIOCSIFADDR, name, |request| {
            request.ifr_ifru.ifru_addr = internet(address);
        });
        configure("set its mask", libc::SIOCSIFNETMASK, name, |request| {
            request.ifr_ifru.ifru_netmask = internet(Ipv4Addr::new(255, 255, 255, 0));
        });
        configure("bring it up", libc::SIOCSIFFLAGS, name, |request| {
            request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        });
        tap
    }

    /// What went through it.
    ///
    /// # Panics
    /// If the host does not say.
    pub fn traffic(&self) -> Traffic {
        let text = fs::read_to_string("/proc/net/dev").expect("read what interfaces have moved");
        let prefix = format!("{}:", self.name);
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(&prefix));
        let line = line.expect("the tap is an interface");
        let numbers: Vec<u64> =
            line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        // Eight columns each: bytes and packets first.
        Traffic { received: [numbers[1], numbers[0]], sent: [numbers[9], numbers[8]] }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Only once its user is gone.
        if !std::thread::panicking() {
            set(&attach(self.name), "remove the tap", libc::TUNSETPERSIST, 0);
        }
    }
}

/// Attaches to the tap `name`, and makes it if there is none.
///
/// # Panics
/// If the host refuses.
fn attach(name: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let file = file.expect("open /dev/net/tun");
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "attach to tap {name}: {}", io::Error::last_os_error());
    file
}

fn set(file: &File, attempt: &str, command: libc::Ioctl, value: libc::c_ulong) {
    // SAFETY: the command takes its argument by value.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command, value) };
    assert_eq!(result, 0, "{attempt}: {}", io::Error::last_os_error());
}

fn configure(attempt: &str, command: libc::Ioctl, name: &str, fill: impl FnOnce(&mut libc::ifreq)) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("make a socket");
    let mut request = request(name);
    fill(&mut request);
    // SAFETY: the command reads one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command, &raw const request) };
    assert_eq!(result, 0, "{attempt} ({name}): {}", io::Error::last_os_error());
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain bytes, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

fn internet(address: Ipv4Addr) -> libc::sockaddr {
    const BEHIND_PORT: usize = 2;
    socket_address(libc::AF_INET as libc::sa_family_t, BEHIND_PORT, &address.octets())
}

fn socket_address(family: libc::sa_family_t, offset: usize, bytes: &[u8]) -> libc::sockaddr {
    // SAFETY: a sockaddr is plain bytes, for which all zeroes is a valid value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = family;
    for (to, from) in address.sa_data[offset..].iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    address
}
