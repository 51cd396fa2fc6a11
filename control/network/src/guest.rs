//! What every guest's network looks like from inside, the same in each namespace.
//!
//! A snapshot holds the guest's address, its routes and its neighbours' MAC addresses; so they are
//! the same for every clone, and no clone has anything to set up when it wakes.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The tap that the VMM opens (`host_dev_name`).
pub const TAP: &str = "tap0";
/// The namespace's end of its way out.
pub const UPLINK: &str = "eth0";
/// The guest's address, with [`PREFIX`].
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
/// Its router and its resolver.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// Two hosts.
pub const PREFIX: u8 = 30;
/// The guest's MAC address (`guest_mac`).
pub const MAC: [u8; 6] = [0x06, 0x00, 0xac, 0x10, 0x00, 0x02];
/// The tap's: what guests have in their tables of neighbours.
pub const GATEWAY_MAC: [u8; 6] = [0x06, 0x00, 0xac, 0x10, 0x00, 0x01];
/// Where the metadata service is, if the policy has one.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What the guest's kernel is told (`ip=`, Linux's `nfsroot.rst`), so that nothing inside has to set it up.
pub fn boot_argument() -> String {
    let mask = Ipv4Net::new_assert(ADDRESS, PREFIX).netmask();
    format!("ip={ADDRESS}::{GATEWAY}:{mask}::eth0:off")
}

/// As people write it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
