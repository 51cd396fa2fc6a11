//! The networks of one host: made, changed, listed, removed, swept.

mod building;
mod error;
mod sweep;

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use ipnet::Ipv4Net;
use rustix::fs::{FlockOperation, flock};

pub use self::{error::Error, sweep::Swept};
use crate::{
    drops::{self, Drops},
    files::{Config, Files, Name, Owner, Prepared, Record},
    guest, link, namespace, netlink,
    nft::Element,
    policy::{Policy, Verdicts},
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

    /// Makes a network, from the pool if it has one ready: then nothing is left to do but to say whose
    /// it is, if it is ready for this policy. Whatever fails, nothing is left; whoever is killed
    /// leaves a namespace that nobody knows.
    pub fn create(&self, name: &Name, policy: &Policy, options: Options) -> Result<(), Error> {
        policy.check()?;
        let owner = options.owner_pid.map(|pid| Owner::of(pid).ok_or(Error::NoOwner { pid }));
        let owner = owner.transpose()?;
        let _no_sweep = self.files.lock(false)?;
        if self.files.network(name).exists() {
            return Err(Error::Exists { name: name.clone() });
        }
        self.prepare_host()?;
        let (slot, generation) = self.provide(policy)?;
        let record = Record { slot, policy: policy.clone(), generation, owner };
        let done = self.give_tap(slot, options.tap_user);
        let done =
            done.and_then(|()| Ok(self.files.write(&self.files.network(name), &record, false)?));
        if !matches!(done, Ok(true)) {
            let _the_first_error_counts = self.tear_down(slot);
        }
        if done? { Ok(()) } else { Err(Error::Exists { name: name.clone() }) }
    }

    /// A namespace of which nobody knows yet, with a policy of this number in place.
    fn provide(&self, policy: &Policy) -> Result<(u32, u32), Error> {
        let host = self.own_addresses()?;
        let verdicts = self.judge(policy, &host);
        let Some((slot, prepared)) = self.files.take_ready()? else {
            return Ok((self.make(&verdicts)?, FIRST));
        };
        if prepared == Some(Prepared { policy: policy.clone(), host }) {
            return Ok((slot, FIRST));
        }
        let generation = FIRST + 1;
        self.apply(slot, &verdicts, generation).inspect_err(|_| {
            let _the_first_error_counts = self.tear_down(slot);
        })?;
        Ok((slot, generation))
    }

    fn give_tap(&self, slot: u32, user: Option<u32>) -> Result<(), Error> {
        let Some(user) = user else { return Ok(()) };
        let namespace = namespace::open(&self.files.slot(slot))?;
        namespace::within(&namespace, || Ok(tap::give(guest::TAP, user)?))
    }

    /// Adds a namespace to the pool, ready for a network with this policy.
    pub fn add_to_pool(&self, policy: &Policy) -> Result<(), Error> {
        policy.check()?;
        let _no_sweep = self.files.lock(false)?;
        self.prepare_host()?;
        let prepared = Prepared { policy: policy.clone(), host: self.own_addresses()? };
        let slot = self.make(&self.judge(&prepared.policy, &prepared.host))?;
        Ok(self.files.add_ready(slot, &prepared)?)
    }

    /// Starts a program in a network: the VMM, which finds the tap there under its name.
    pub fn start(&self, name: &Name, command: &mut Command) -> Result<Child, Error> {
        let namespace = self.namespace(name)?;
        let program = command.get_program().to_owned();
        namespace::within(&namespace, || {
            command.spawn().map_err(|source| Error::Start { program, source })
        })
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

    /// All networks whose records make sense.
    pub fn networks(&self) -> Result<Vec<Network>, Error> {
        let records = self.files.records()?.known;
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
        Ok(self.judge(policy, &self.own_addresses()?))
    }

    /// The host's own addresses, in order, without those of our ways out, which come and go.
    fn own_addresses(&self) -> Result<Vec<Ipv4Addr>, Error> {
        let networks = link::addresses(&mut netlink::Socket::route()?)?;
        let mut own: Vec<Ipv4Addr> = networks.iter().map(Ipv4Net::addr).collect();
        own.retain(|address| !self.config.subnet.contains(address));
        own.sort_unstable();
        own.dedup();
        Ok(own)
    }

    fn judge(&self, policy: &Policy, host: &[Ipv4Addr]) -> Verdicts {
        let mut own: Vec<Ipv4Net> = host.iter().copied().map(Ipv4Net::from).collect();
        let inside = Ipv4Net::new_assert(guest::GATEWAY, guest::PREFIX).trunc();
        own.extend([self.config.subnet, inside]);
        policy.verdicts(&Ranges::of(&own))
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
        let records = self.files.records()?.known;
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

    /// Records a change and makes it so. In this order: whoever is killed in between has left the
    /// intention behind, and a sweep completes it.
    fn change(&self, name: &Name, edit: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let _alone = self.lock_network(name)?;
        let mut record = self.record(name)?;
        edit(&mut record);
        record.generation = record.generation.wrapping_add(1).max(FIRST);
        self.files.write(&self.files.network(name), &record, true)?;
        self.apply(record.slot, &self.verdicts(&record.policy)?, record.generation)
    }

    /// Puts a policy in place in a namespace; pins that it has, too, stay.
    fn apply(&self, slot: u32, verdicts: &Verdicts, generation: u32) -> Result<(), Error> {
        let namespace = namespace::open(&self.files.slot(slot))?;
        let mut socket =
            namespace::within(&namespace, || Ok::<_, Error>(netlink::Socket::netfilter()?))?;
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
        let steps = rules::change(verdicts, generation, kept.collect());
        Ok(socket.transaction(&format!("set the policy of namespace {slot}"), steps)?)
    }

    /// Only one changes what a network may reach at a time.
    fn lock_network(&self, name: &Name) -> Result<File, Error> {
        let file = self.namespace(name)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| namespace::lock_failed(&self.files.networks(), errno.into()))?;
        Ok(file)
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

fn interface(slot: u32) -> String {
    format!("{INTERFACE_PREFIX}{slot}")
}
