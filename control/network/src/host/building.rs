//! How a network comes to be, and goes.

use std::{fs, os::fd::AsFd, path::Path};

use netlink_packet_route::link::LinkAttribute;

use super::{ADDRESSES_PER_SLOT, Error, FIRST, Host, INTERFACE_PREFIX, interface};
use crate::{
    files::{self, Name},
    guest, link, namespace, netlink,
    policy::Verdicts,
    rules, tap,
};

impl Host {
    /// A namespace with everything in it. What fails leaves nothing.
    pub(super) fn make(&self, verdicts: &Verdicts) -> Result<u32, Error> {
        let count = self.slot_count();
        let full = Error::Full { count, subnet: self.config.subnet };
        let slot = self.files.lease(count)?.ok_or(full)?;
        self.build(slot, verdicts).inspect_err(|_| {
            let _the_first_error_counts = self.tear_down(slot);
        })?;
        Ok(slot)
    }

    fn build(&self, slot: u32, verdicts: &Verdicts) -> Result<(), Error> {
        let (interface, mtu) = (interface(slot), self.config.mtu);
        let (outside, inside) = self.addresses(slot);
        let mut outer = netlink::Socket::route()?;
        let host = namespace::own()?;
        namespace::share_directory(&self.files.slots())?;
        namespace::create(&self.files.slot(slot), || {
            // Before there is an interface that could get an address.
            for scope in ["all", "default"] {
                set_if_there(&format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
            }
            set("/proc/sys/net/ipv4/ip_forward", "1")?;
            let mut socket = netlink::Socket::route()?;
            tap::create(guest::TAP)?;
            let steps = rules::network(verdicts, FIRST);
            let mut netfilter = netlink::Socket::netfilter()?;
            netfilter.transaction("make the rule set of a network", steps)?;
            let pair = link::Pair {
                name: guest::UPLINK,
                peer: &interface,
                peer_namespace: host.as_fd(),
                mtu,
            };
            link::add_pair(&mut socket, &pair)?;
            inside_of(&mut socket, mtu)?;
            let uplink = link::find(&mut socket, guest::UPLINK)?;
            link::add_address(&mut socket, &uplink, inside, 31)?;
            link::bring_up(&mut socket, &uplink, Vec::new())?;
            Ok::<_, Error>(socket)
        })
        .and_then(|mut socket| {
            // These are the host's files: they are looked for in the namespace of whoever looks.
            let end = link::find(&mut outer, &interface)?;
            set_if_there(&format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
            set(&format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "1")?;
            let alias = LinkAttribute::IfAlias(self.alias());
            link::add_address(&mut outer, &end, outside, 31)?;
            link::bring_up(&mut outer, &end, vec![alias])?;
            Ok(link::add_default_route(&mut socket, outside)?)
        })
    }

    pub(super) fn remove(&self, name: &Name, slot: u32) -> Result<(), Error> {
        files::remove(&self.files.network(name))?;
        self.tear_down(slot)
    }

    /// First the way out, so that whatever still runs in the namespace is cut off; the number is
    /// free when its file is gone, which is last.
    pub(super) fn tear_down(&self, slot: u32) -> Result<(), Error> {
        link::delete(&mut netlink::Socket::route()?, &interface(slot))?;
        Ok(namespace::release(&self.files.slot(slot))?)
    }

    /// What the host needs for any network: to forward, and rules of its own.
    pub(super) fn prepare_host(&self) -> Result<(), Error> {
        self.complete_rules()?;
        let path = Path::new("/proc/sys/net/ipv4/ip_forward");
        if fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
            return Ok(());
        }
        set("/proc/sys/net/ipv4/ip_forward", "1")
    }

    /// Makes the host's rules anew unless all of them are there; says whether it did.
    pub(super) fn complete_rules(&self) -> Result<bool, Error> {
        let rules = rules::host(self.config.subnet, &format!("{INTERFACE_PREFIX}*"));
        let mut socket = netlink::Socket::netfilter()?;
        if rules::HOST.count_rules(&mut socket)? == rules.rule_count {
            return Ok(false);
        }
        socket.transaction("make the host's rule set", rules.steps)?;
        Ok(true)
    }

    /// Without networks there is nothing to guard.
    pub(super) fn forget_host(&self) -> Result<(), Error> {
        namespace::unshare_directory(&self.files.slots());
        let mut socket = netlink::Socket::netfilter()?;
        let steps = vec![rules::HOST.add(), rules::HOST.delete()];
        Ok(socket.transaction("remove the host's rule set", steps)?)
    }

    fn slot_count(&self) -> u32 {
        let bits = 32 - u32::from(self.config.subnet.prefix_len());
        1u32.checked_shl(bits).unwrap_or(u32::MAX) / ADDRESSES_PER_SLOT
    }
}

/// The guest's side: tap, addresses, and no asking where the guest is.
fn inside_of(socket: &mut netlink::Socket, mtu: u32) -> Result<(), netlink::Error> {
    let loopback = link::find(socket, "lo")?;
    link::add_address(socket, &loopback, guest::METADATA, 32)?;
    link::bring_up(socket, &loopback, Vec::new())?;
    let tap = link::find(socket, guest::TAP)?;
    let mac = LinkAttribute::Address(guest::GATEWAY_MAC.to_vec());
    link::bring_up(socket, &tap, vec![mac, LinkAttribute::Mtu(mtu)])?;
    link::add_address(socket, &tap, guest::GATEWAY, guest::PREFIX)?;
    link::add_neighbour(socket, &tap, guest::ADDRESS, guest::MAC)
}

fn set(path: &str, value: &'static str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| Error::Setting { path: path.into(), value, source })
}

/// For settings of what a kernel may have been built without.
fn set_if_there(path: &str, value: &'static str) -> Result<(), Error> {
    if Path::new(path).exists() { set(path, value) } else { Ok(()) }
}
