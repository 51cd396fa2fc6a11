//! The networks of one host: made, changed, listed, removed, swept.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use netlink_packet_route::link::LinkAttribute;
use rustix::fs::{FlockOperation, flock};

use crate::{
    drops::{self, Drops},
    files::{self, Config, Files, Name, Owner, Record},
    guest, link, namespace, netlink,
    nft::Element,
    policy::{self, Policy, Verdicts},
    ranges::Ranges,
    rules, tap,
};

/// The host's ends of the ways out are named so, with the number of the namespace.
const INTERFACE_PREFIX: &str = "rtf-";
/// An address each for the host's end and the namespace's.
const ADDRESSES_PER_SLOT: u32 = 2;
/// The policy's number in a namespace that was just made.
const FIRST: u32 = 1;
const DNS_PORT: u16 = 53;
const METADATA_PORT: u16 = 80;

/// Something about a network did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is one.
    #[error("there is a network {name} already: delete it first, or choose another name")]
    Exists {
        /// Its name.
        name: Name,
    },
    /// There is none.
    #[error("there is no network {name}")]
    Unknown {
        /// As asked for.
        name: Name,
    },
    /// The record is there and the namespace is not.
    #[error("the namespace of the network {name} is gone: run `rotifer-network sweep`")]
    Broken {
        /// Its name.
        name: Name,
    },
    /// All addresses are in use.
    #[error("all {count} networks that fit into {subnet} are in use: configure a larger subnet")]
    Full {
        /// How many fit.
        count: u32,
        /// What the configuration says.
        subnet: Ipv4Net,
    },
    /// A process that does not run.
    #[error("there is no process {pid} that the network could belong to")]
    NoOwner {
        /// As given.
        pid: i32,
    },
    /// A file below `/proc/sys`.
    #[error("cannot set {} to {value}: is /proc/sys writable?", path.display())]
    Setting {
        /// Which.
        path: PathBuf,
        /// To what.
        value: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A socket in a namespace.
    #[error("cannot listen on {address}:{port} in the namespace of a network")]
    Listen {
        /// Where.
        address: Ipv4Addr,
        /// Where.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// A policy.
    #[error("the policy cannot be used")]
    Policy(#[from] policy::Error),
    /// Files.
    #[error("cannot keep what is known about networks")]
    Files(#[from] files::Error),
    /// Namespaces.
    #[error("cannot use a network namespace")]
    Namespace(#[from] namespace::Error),
    /// The kernel.
    #[error("the kernel refuses")]
    Netlink(#[from] netlink::Error),
    /// The tap.
    #[error("cannot make the guest's interface")]
    Tap(#[from] tap::Error),
}

/// A network, as it is shown.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The file of its namespace.
    pub namespace: PathBuf,
    /// The host's end of its way out.
    pub interface: String,
    /// The address under which the host sees it.
    pub address: Ipv4Addr,
    /// What its guest may reach.
    pub policy: Policy,
    /// How often the policy was set.
    pub generation: u32,
    /// Whose it is.
    pub owner: Option<Owner>,
}

/// What a resolver needs of a namespace.
pub struct ResolverSockets {
    /// Bound to the guest's router's address.
    pub udp: UdpSocket,
    /// As above, listening.
    pub tcp: TcpListener,
    /// For [`Host::pin`].
    pub rules: netlink::Socket,
}

/// Options of a new network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A user who may open the tap without other rights.
    pub tap_user: Option<u32>,
    /// A process with which the network ends: see [`Host::sweep`].
    pub owner_pid: Option<i32>,
}

/// What a sweep removed.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Swept {
    /// Networks whose owner is gone, or all.
    pub networks: Vec<String>,
    /// Namespaces that nobody knew.
    pub slots: Vec<u32>,
    /// Interfaces without a namespace.
    pub interfaces: Vec<String>,
}

/// The networks below one directory.
#[derive(Clone, Debug)]
pub struct Host {
    files: Files,
    config: Config,
}

impl Host {
    /// Those below `root`, which is made if it does not exist.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let files = Files::open(root)?;
        let config = files.config()?;
        Ok(Self { files, config })
    }

    /// Where they are written down.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Makes a network, from the pool if it has one ready. Whatever fails, nothing is left; whoever
    /// is killed leaves a namespace that nobody knows, or a network whose guest reaches nothing yet.
    pub fn create(&self, name: &Name, policy: &Policy, options: Options) -> Result<(), Error> {
        policy.check()?;
        let owner = options.owner_pid.map(|pid| Owner::of(pid).ok_or(Error::NoOwner { pid }));
        let owner = owner.transpose()?;
        let _no_sweep = self.files.lock(false)?;
        if self.files.network(name).exists() {
            return Err(Error::Exists { name: name.clone() });
        }
        self.prepare_host(false)?;
        let slot = match self.files.take_ready()? {
            Some(slot) => slot,
            None => self.make()?,
        };
        let record = Record { slot, policy: policy.clone(), generation: FIRST + 1, owner };
        if !self.files.write(&self.files.network(name), &record, false)? {
            self.tear_down(slot)?;
            return Err(Error::Exists { name: name.clone() });
        }
        self.finish(name, &record, options).inspect_err(|_| {
            let _the_first_error_counts = self.remove(name, slot);
        })
    }

    fn finish(&self, name: &Name, record: &Record, options: Options) -> Result<(), Error> {
        let _alone = self.lock_network(name)?;
        if let Some(user) = options.tap_user {
            let namespace = self.namespace(name)?;
            namespace::within(&namespace, || Ok::<_, Error>(tap::give(guest::TAP, user)?))?;
        }
        self.apply(name, record)
    }

    /// Adds a namespace to the pool.
    pub fn add_to_pool(&self) -> Result<(), Error> {
        let _no_sweep = self.files.lock(false)?;
        self.prepare_host(false)?;
        let slot = self.make()?;
        Ok(self.files.add_ready(slot)?)
    }

    /// How many namespaces are ready.
    pub fn pool_size(&self) -> Result<usize, Error> {
        Ok(self.files.ready()?.len())
    }

    /// Puts another policy in place, for open connections too.
    pub fn set_policy(&self, name: &Name, policy: &Policy) -> Result<(), Error> {
        policy.check()?;
        let _no_sweep = self.files.lock(false)?;
        self.change(name, |record| record.policy = policy.clone())
    }

    /// Removes a network, with what runs in it cut off from the world.
    pub fn delete(&self, name: &Name) -> Result<(), Error> {
        let _no_sweep = self.files.lock(false)?;
        let record = self.record(name)?;
        self.remove(name, record.slot)
    }

    /// All networks.
    pub fn networks(&self) -> Result<Vec<Network>, Error> {
        let records = self.files.records()?;
        Ok(records.iter().map(|(name, record)| self.show(name, record)).collect())
    }

    /// One network.
    pub fn network(&self, name: &Name) -> Result<Network, Error> {
        Ok(self.show(name, &self.record(name)?))
    }

    /// What a network's guest was refused.
    pub fn drops(&self, name: &Name) -> Result<Drops, Error> {
        let mut socket = self.netfilter(name)?;
        Ok(drops::read(&mut socket)?)
    }

    /// The record of a network.
    pub fn record(&self, name: &Name) -> Result<Record, Error> {
        self.files.record(name)?.ok_or_else(|| Error::Unknown { name: name.clone() })
    }

    /// What follows from a policy on this host, as its addresses are now.
    pub fn verdicts(&self, policy: &Policy) -> Result<Verdicts, Error> {
        let mut own: Vec<Ipv4Net> = link::addresses(&mut netlink::Socket::route()?)?;
        for address in &mut own {
            *address = Ipv4Net::from(address.addr());
        }
        let inside = Ipv4Net::new_assert(guest::GATEWAY, guest::PREFIX).trunc();
        own.extend([self.config.subnet, inside]);
        Ok(policy.verdicts(&Ranges::of(&own)))
    }

    /// The namespace of a network.
    pub fn namespace(&self, name: &Name) -> Result<File, Error> {
        let path = self.files.slot(self.record(name)?.slot);
        if !namespace::is_kept(&path) {
            return Err(Error::Broken { name: name.clone() });
        }
        Ok(namespace::open(&path)?)
    }

    /// A socket for the rules of a network.
    fn netfilter(&self, name: &Name) -> Result<netlink::Socket, Error> {
        let namespace = self.namespace(name)?;
        namespace::within(&namespace, || Ok(netlink::Socket::netfilter()?))
    }

    /// Sockets on which the guest of a namespace asks for names, and one for its rules.
    pub fn resolver_sockets(&self, slot: u32) -> Result<ResolverSockets, Error> {
        let namespace = namespace::open(&self.files.slot(slot))?;
        let address = guest::GATEWAY;
        let failed = |source| Error::Listen { address, port: DNS_PORT, source };
        namespace::within(&namespace, || {
            Ok(ResolverSockets {
                udp: UdpSocket::bind((address, DNS_PORT)).map_err(failed)?,
                tcp: TcpListener::bind((address, DNS_PORT)).map_err(failed)?,
                rules: netlink::Socket::netfilter()?,
            })
        })
    }

    /// Which network has a namespace now.
    pub fn name_of(&self, slot: u32) -> Result<Option<Name>, Error> {
        let records = self.files.records()?;
        Ok(records.into_iter().find(|(_, record)| record.slot == slot).map(|(name, _)| name))
    }

    /// A socket for a network's metadata service. The guest reaches it if its policy says so.
    pub fn metadata_socket(&self, name: &Name) -> Result<TcpListener, Error> {
        let namespace = self.namespace(name)?;
        let (address, port) = (guest::METADATA, METADATA_PORT);
        let failed = |source| Error::Listen { address, port, source };
        namespace::within(&namespace, || TcpListener::bind((address, port)).map_err(failed))
    }

    /// Lets a network's guest reach what `domain` has resolved to, as far as the policy has it now;
    /// the result is what it may reach.
    pub fn pin(
        &self,
        name: &Name,
        socket: &mut netlink::Socket,
        domain: &str,
        addresses: &[Ipv4Addr],
        timeout_ms: u64,
    ) -> Result<Vec<Ipv4Addr>, Error> {
        let _no_change = self.lock_network(name)?;
        let verdicts = self.verdicts(&self.record(name)?.policy)?;
        if !verdicts.allows_name(domain) {
            return Ok(Vec::new());
        }
        let mut allowed = addresses.to_vec();
        allowed.retain(|address| verdicts.allows_answer(*address));
        allowed.sort_unstable();
        allowed.dedup();
        if verdicts.pins_name(domain) && !allowed.is_empty() {
            let what = format!("let the network {name} reach {domain}");
            socket.transaction(&what, rules::pin(&allowed, domain, timeout_ms))?;
        }
        Ok(allowed)
    }

    /// Removes what nobody needs: halves that a crash left, networks whose owner has ended; with
    /// `all` every network. What stays gets its rules again, in case it missed a change.
    pub fn sweep(&self, all: bool) -> Result<Swept, Error> {
        let _alone = self.files.lock(true)?;
        let mut swept = Swept::default();
        self.files.remove_partial()?;
        let mut known = Vec::new();
        for (name, record) in self.files.records()? {
            let is_left = record.owner.is_some_and(|owner| !owner.is_alive());
            if all || is_left || !namespace::is_kept(&self.files.slot(record.slot)) {
                self.remove(&name, record.slot)?;
                swept.networks.push(name.to_string());
            } else {
                self.apply(&name, &record)?;
                known.push(record.slot);
            }
        }
        for slot in self.files.ready()? {
            if all || !namespace::is_kept(&self.files.slot(slot)) {
                files::remove(&self.files.pooled(slot))?;
            } else {
                known.push(slot);
            }
        }
        for slot in self.files.leased()?.into_iter().filter(|slot| !known.contains(slot)) {
            self.tear_down(slot)?;
            swept.slots.push(slot);
        }
        self.sweep_interfaces(&known, &mut swept)?;
        if known.is_empty() {
            self.forget_host()?
        } else {
            self.prepare_host(true)?
        }
        Ok(swept)
    }

    /// Makes a network and removes it again: whether this host can have any.
    pub fn try_out(&self) -> Result<(), Error> {
        let _no_sweep = self.files.lock(false)?;
        self.prepare_host(false)?;
        let slot = self.make()?;
        self.tear_down(slot)
    }

    fn sweep_interfaces(&self, known: &[u32], swept: &mut Swept) -> Result<(), Error> {
        let mut socket = netlink::Socket::route()?;
        for link in link::list(&mut socket)? {
            let slot = link.name.strip_prefix(INTERFACE_PREFIX).and_then(|n| n.parse().ok());
            let is_ours = link.alias == self.alias();
            if is_ours && slot.is_some_and(|slot: u32| !known.contains(&slot)) {
                link::delete(&mut socket, &link.name)?;
                swept.interfaces.push(link.name);
            }
        }
        Ok(())
    }

    /// Records a change and makes it so. In this order: whoever is killed in between has left the
    /// intention behind, and a sweep completes it.
    fn change(&self, name: &Name, edit: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let _alone = self.lock_network(name)?;
        let mut record = self.record(name)?;
        edit(&mut record);
        record.generation = record.generation.wrapping_add(1).max(FIRST);
        self.files.write(&self.files.network(name), &record, true)?;
        self.apply(name, &record)
    }

    fn apply(&self, name: &Name, record: &Record) -> Result<(), Error> {
        let verdicts = self.verdicts(&record.policy)?;
        let mut socket = self.netfilter(name)?;
        let pins = rules::NETWORK.list_elements(&mut socket, rules::PINNED)?;
        let kept = pins.into_iter().filter_map(|pin| {
            let domain = pin.note.filter(|domain| verdicts.pins_name(domain))?;
            let octets: [u8; 4] = pin.key.as_slice().try_into().ok()?;
            let timeout_ms = pin.expires_ms.filter(|left| *left > 0)?;
            verdicts.allows_answer(octets.into()).then_some(Element {
                key: pin.key,
                ends_range: false,
                timeout_ms: Some(timeout_ms),
                note: Some(domain),
            })
        });
        let steps = rules::change(&verdicts, record.generation, kept.collect());
        Ok(socket.transaction(&format!("set the policy of the network {name}"), steps)?)
    }

    /// Only one changes what a network may reach at a time.
    fn lock_network(&self, name: &Name) -> Result<File, Error> {
        let file = self.namespace(name)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| namespace::lock_failed(&self.files.networks(), errno.into()))?;
        Ok(file)
    }

    /// A namespace with everything in it, from which nothing is reached. What fails leaves nothing.
    fn make(&self) -> Result<u32, Error> {
        let count = self.slot_count();
        let full = Error::Full { count, subnet: self.config.subnet };
        let slot = self.files.lease(count)?.ok_or(full)?;
        self.build(slot).inspect_err(|_| {
            let _the_first_error_counts = self.tear_down(slot);
        })?;
        Ok(slot)
    }

    fn build(&self, slot: u32) -> Result<(), Error> {
        let verdicts = self.verdicts(&Policy::none())?;
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
            let steps = rules::network(&verdicts, FIRST);
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

    fn remove(&self, name: &Name, slot: u32) -> Result<(), Error> {
        files::remove(&self.files.network(name))?;
        self.tear_down(slot)
    }

    /// First the way out, so that whatever still runs in the namespace is cut off; the number is
    /// free when its file is gone, which is last.
    fn tear_down(&self, slot: u32) -> Result<(), Error> {
        link::delete(&mut netlink::Socket::route()?, &interface(slot))?;
        Ok(namespace::release(&self.files.slot(slot))?)
    }

    /// What the host needs for any network: to forward, and rules of its own.
    fn prepare_host(&self, anew: bool) -> Result<(), Error> {
        let mut socket = netlink::Socket::netfilter()?;
        if anew || !rules::HOST.exists(&mut socket)? {
            let steps = rules::host(self.config.subnet, &format!("{INTERFACE_PREFIX}*"));
            socket.transaction("make the host's rule set", steps)?;
        }
        let path = Path::new("/proc/sys/net/ipv4/ip_forward");
        if fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
            return Ok(());
        }
        set("/proc/sys/net/ipv4/ip_forward", "1")
    }

    /// Without networks there is nothing to guard.
    fn forget_host(&self) -> Result<(), Error> {
        namespace::unshare_directory(&self.files.slots());
        let mut socket = netlink::Socket::netfilter()?;
        let steps = vec![rules::HOST.add(), rules::HOST.delete()];
        Ok(socket.transaction("remove the host's rule set", steps)?)
    }

    fn show(&self, name: &Name, record: &Record) -> Network {
        Network {
            name: name.to_string(),
            namespace: self.files.slot(record.slot),
            interface: interface(record.slot),
            address: self.addresses(record.slot).1,
            policy: record.policy.clone(),
            generation: record.generation,
            owner: record.owner,
        }
    }

    fn slot_count(&self) -> u32 {
        let bits = 32 - u32::from(self.config.subnet.prefix_len());
        1u32.checked_shl(bits).unwrap_or(u32::MAX) / ADDRESSES_PER_SLOT
    }

    /// The host's and the namespace's address of the way between them: RFC 3021.
    fn addresses(&self, slot: u32) -> (Ipv4Addr, Ipv4Addr) {
        let first = u32::from(self.config.subnet.network())
            .saturating_add(slot.saturating_mul(ADDRESSES_PER_SLOT));
        (first.into(), first.saturating_add(1).into())
    }

    /// Tells our interfaces from others of such a name.
    fn alias(&self) -> String {
        format!("rotifer {}", self.files.root().display())
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

fn interface(slot: u32) -> String {
    format!("{INTERFACE_PREFIX}{slot}")
}

fn set(path: &str, value: &'static str) -> Result<(), Error> {
    fs::write(path, value).map_err(|source| Error::Setting { path: path.into(), value, source })
}

/// For settings of what a kernel may have been built without.
fn set_if_there(path: &str, value: &'static str) -> Result<(), Error> {
    if Path::new(path).exists() { set(path, value) } else { Ok(()) }
}
