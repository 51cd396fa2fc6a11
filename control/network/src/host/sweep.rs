//! What crashes leave behind, and who puts it right.

use super::{Error, Host, INTERFACE_PREFIX};
use crate::{
    chain,
    files::{self, Name, Record},
    link, namespace, netlink,
    policy::Policy,
};

/// What a sweep did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Swept {
    /// Networks that it removed: their owner or their namespace is gone, or all.
    pub networks: Vec<String>,
    /// Namespaces that nobody knew.
    pub slots: Vec<u32>,
    /// Interfaces without a namespace.
    pub interfaces: Vec<String>,
    /// What it could not do, each with the reason. It went on with all else.
    pub failures: Vec<String>,
}

impl Swept {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { networks, slots, interfaces, failures } = self;
        networks.is_empty() && slots.is_empty() && interfaces.is_empty() && failures.is_empty()
    }

    fn note<T>(&mut self, what: &str, done: Result<T, Error>) -> Option<T> {
        done.map_err(|error| self.failures.push(format!("{what}: {}", chain(&error)))).ok()
    }
}

impl Host {
    /// Removes what nobody needs: halves that a crash left, networks whose owner has ended; with
    /// `all` every network. What stays gets its rules again, in case it missed a change. What
    /// cannot be put right is reported, and keeps nothing else from it.
    pub fn sweep(&self, all: bool) -> Result<Swept, Error> {
        let _alone = self.files.lock(true)?;
        let mut swept = Swept::default();
        self.files.remove_partial()?;
        let records = self.files.records()?;
        for error in records.unreadable.iter() {
            swept.failures.push(chain(error));
        }
        let mut known = Vec::new();
        for (name, record) in records.known {
            if self.look_after(&name, &record, all, &mut swept) {
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
        // A record that cannot be read may be that of any of them.
        if all || records.unreadable.is_empty() {
            for slot in self.files.leased()?.into_iter().filter(|slot| !known.contains(slot)) {
                let done = self.tear_down(slot);
                if swept.note(&format!("namespace {slot}"), done).is_some() {
                    swept.slots.push(slot);
                }
            }
            self.sweep_interfaces(&known, &mut swept)?;
        }
        let (what, done) = if self.files.leased()?.is_empty() {
            ("the host's rules", self.forget_host())
        } else {
            ("the host", self.prepare_host())
        };
        swept.note(what, done);
        Ok(swept)
    }

    /// Whether the network has its namespace still.
    fn look_after(&self, name: &Name, record: &Record, all: bool, swept: &mut Swept) -> bool {
        let is_left = record.owner.is_some_and(|owner| !owner.is_alive());
        let what = format!("the network {name}");
        if all || is_left || !namespace::is_kept(&self.files.slot(record.slot)) {
            if swept.note(&what, self.remove(name, record.slot)).is_some() {
                swept.networks.push(name.to_string());
                return false;
            }
            return true;
        }
        let verdicts = self.verdicts(&record.policy);
        let done = verdicts.and_then(|now| self.apply(record.slot, &now, record.generation));
        swept.note(&what, done);
        true
    }

    /// Puts the host's rules back where somebody has removed some, and networks need them; says
    /// whether that was so.
    pub fn guard(&self) -> Result<bool, Error> {
        let _no_sweep = self.files.lock(false)?;
        if self.files.leased()?.is_empty() { Ok(false) } else { self.complete_rules() }
    }

    /// Makes a network and removes it again: whether this host can have any.
    pub fn try_out(&self) -> Result<(), Error> {
        let _no_sweep = self.files.lock(false)?;
        self.prepare_host()?;
        let slot = self.make(&self.verdicts(&Policy::none())?)?;
        self.tear_down(slot)
    }

    fn sweep_interfaces(&self, known: &[u32], swept: &mut Swept) -> Result<(), Error> {
        let mut socket = netlink::Socket::route()?;
        for link in link::list(&mut socket)? {
            let slot = link.name.strip_prefix(INTERFACE_PREFIX).and_then(|n| n.parse().ok());
            let is_ours = link.alias == self.alias();
            if is_ours && slot.is_some_and(|slot: u32| !known.contains(&slot)) {
                let done = link::delete(&mut socket, &link.name).map_err(Error::from);
                if swept.note(&link.name, done).is_some() {
                    swept.interfaces.push(link.name);
                }
            }
        }
        Ok(())
    }
}
