//! What is written down about networks, in a directory that goes away with a reboot, as they do.
//!
//! ```text
//! /run/rotifer/network/
//!   config.json         optional: subnet, MTU
//!   lock                shared by whoever makes, changes or deletes; exclusive for a sweep
//!   slots/7             keeps namespace 7 alive; its creation is the lease of number 7
//!   pool/7.json         namespace 7 is ready for whoever takes it, by removing this; for which policy
//!   networks/NAME.json  the network NAME: its slot, its policy
//! ```
//!
//! A record appears and changes by one rename. A slot without a record is half made or half gone,
//! and a sweep removes it.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use ipnet::Ipv4Net;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use serde::{Deserialize, Serialize};

use crate::policy::Policy;

/// Where everything is, unless somebody says otherwise.
pub const ROOT: &str = "/run/rotifer/network";
const NAME_BYTES_MAX: usize = 63;
/// A record or a configuration: a policy has at most so many entries of a domain name's length.
const FILE_BYTES_MAX: u64 = 1 << 20;
const MTU_MIN: u32 = 1280;
const MTU_MAX: u32 = 65_535;

/// A file cannot be read or written, or says nonsense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No name for a network.
    #[error(
        "{name:?} cannot be a network's name: it has 1 to {NAME_BYTES_MAX} of a-z, 0-9 and -, and \
         does not begin with -"
    )]
    Name {
        /// As given.
        name: String,
    },
    /// The system refuses.
    #[error("cannot {what} {}", path.display())]
    Access {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that is not as we write it.
    #[error("cannot understand {}: repair or remove it", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A value of the configuration.
    #[error("{field} is {value} in {}: {remedy}", path.display())]
    Configuration {
        /// Where it stands.
        path: PathBuf,
        /// Which.
        field: &'static str,
        /// As given.
        value: String,
        /// What may stand there.
        remedy: &'static str,
    },
}

/// A network's name: that of its VM, usually.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let of_ours = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(of_ours)
            && !text.starts_with('-');
        if is_name { Ok(Self(text.into())) } else { Err(Error::Name { name: text.into() }) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// What an administrator may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses between the host and the namespaces: two for each network.
    pub subnet: Ipv4Net,
    /// Of the taps and of the way out.
    pub mtu: u32,
}

impl Default for Config {
    fn default() -> Self {
        let subnet = Ipv4Net::new_assert(Ipv4Addr::new(10, 231, 0, 0), 16);
        Self { subnet, mtu: 1500 }
    }
}

/// A process that a network belongs to: when it ends, the network is left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its number.
    pub pid: i32,
    /// When it started, in ticks since the boot: numbers are used again.
    pub start: u64,
}

impl Owner {
    /// The process of that number, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; field 22 is the 20th after it (proc(5)).
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let is_dead = fields.next().is_some_and(|state| state == "Z" || state == "X");
        let start = fields.nth(18)?.parse().ok()?;
        (!is_dead).then_some(Self { pid, start })
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }
}

/// What is known about a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The number of its namespace.
    pub slot: u32,
    /// What its guest may reach.
    pub policy: Policy,
    /// How often the policy was set.
    pub generation: u32,
    /// Whose it is, if it is to end with somebody.
    pub owner: Option<Owner>,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Records {
    /// By name.
    pub known: BTreeMap<Name, Record>,
    /// Why others cannot be read.
    pub unreadable: Vec<Error>,
}

/// What a namespace of the pool is ready for: if it is asked for exactly that, it needs nothing more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepared {
    /// What its guest may reach.
    pub policy: Policy,
    /// The host's own addresses when its rules were made, which no guest may reach.
    pub host: Vec<Ipv4Addr>,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Opens the directory, and makes what of it is not there.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let files = Self { root: root.to_owned() };
        for directory in [files.slots(), files.networks(), files.pool()] {
            fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        }
        Ok(files)
    }

    /// Everything is in it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Files that keep namespaces.
    pub fn slots(&self) -> PathBuf {
        self.root.join("slots")
    }

    /// Records of networks.
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// Records of namespaces that are ready.
    pub fn pool(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// The file that keeps a namespace.
    pub fn slot(&self, slot: u32) -> PathBuf {
        self.slots().join(slot.to_string())
    }

    /// The record of a network.
    pub fn network(&self, name: &Name) -> PathBuf {
        self.networks().join(format!("{name}.json"))
    }

    /// The record of a namespace in the pool.
    pub fn pooled(&self, slot: u32) -> PathBuf {
        self.pool().join(format!("{slot}.json"))
    }

    /// The administrator's choices, or the defaults.
    pub fn config(&self) -> Result<Config, Error> {
        let path = self.root.join("config.json");
        let config: Config = read(&path)?.unwrap_or_default();
        let wrong = |field, value: &dyn fmt::Display, remedy| {
            Err(Error::Configuration {
                path: path.clone(),
                field,
                value: value.to_string(),
                remedy,
            })
        };
        let subnet = config.subnet;
        if subnet != subnet.trunc() || subnet.prefix_len() > 30 {
            return wrong("subnet", &subnet, "it is a range such as 10.231.0.0/16, of 4 or more");
        }
        if !(MTU_MIN..=MTU_MAX).contains(&config.mtu) {
            return wrong("mtu", &config.mtu, "it is 1280 to 65535");
        }
        Ok(config)
    }

    /// Waits until nobody sweeps, or with `exclusive` until nobody does anything. The lock ends
    /// with the file, or the process.
    pub fn lock(&self, exclusive: bool) -> Result<File, Error> {
        let path = self.root.join("lock");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        let operation =
            if exclusive { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
        flock(&file, operation).map_err(|errno| failed("lock", &path)(errno.into()))?;
        Ok(file)
    }

    /// Takes a free number below `count`: whoever makes its file has it.
    pub fn lease(&self, count: u32) -> Result<Option<u32>, Error> {
        let taken = self.leased()?;
        for slot in (0..count).filter(|slot| taken.binary_search(slot).is_err()) {
            let path = self.slot(slot);
            match OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path) {
                Ok(_) => return Ok(Some(slot)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("create", &path)(error)),
            }
        }
        Ok(None)
    }

    /// Numbers that are taken, in order.
    pub fn leased(&self) -> Result<Vec<u32>, Error> {
        let mut slots: Vec<u32> =
            list(&self.slots())?.iter().filter_map(|name| name.parse().ok()).collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// All networks. One whose record makes no sense is no reason not to see the others.
    pub fn records(&self) -> Result<Records, Error> {
        let mut records = Records::default();
        for file in list(&self.networks())? {
            let Some(Ok(name)) = file.strip_suffix(".json").map(str::parse::<Name>) else {
                continue;
            };
            match self.record(&name) {
                Ok(Some(record)) => drop(records.known.insert(name, record)),
                Ok(None) => {}
                Err(error) => records.unreadable.push(error),
            }
        }
        Ok(records)
    }

    /// One network, if there is one of that name.
    pub fn record(&self, name: &Name) -> Result<Option<Record>, Error> {
        read(&self.network(name))
    }

    /// Numbers of the namespaces that are ready, in order.
    pub fn ready(&self) -> Result<Vec<u32>, Error> {
        let number = |name: &String| name.strip_suffix(".json")?.parse().ok();
        let mut slots: Vec<u32> = list(&self.pool())?.iter().filter_map(number).collect();
        slots.sort_unstable();
        Ok(slots)
    }

    /// Says that a namespace is ready.
    pub fn add_ready(&self, slot: u32, prepared: &Prepared) -> Result<(), Error> {
        self.write(&self.pooled(slot), prepared, true).map(drop)
    }

    /// Takes a namespace out of the pool: whoever removes its file has it. What it is ready for is
    /// not known if the file makes no sense.
    pub fn take_ready(&self) -> Result<Option<(u32, Option<Prepared>)>, Error> {
        for slot in self.ready()? {
            let path = self.pooled(slot);
            let prepared = read(&path).ok().flatten();
            match fs::remove_file(&path) {
                Ok(()) => return Ok(Some((slot, prepared))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("remove", &path)(error)),
            }
        }
        Ok(None)
    }

    /// Writes a file, whole or not at all; says whether it did, if none may be there.
    pub fn write(
        &self,
        path: &Path,
        content: &impl Serialize,
        replace: bool,
    ) -> Result<bool, Error> {
        let text = serde_json::to_string(content)
            .map_err(|source| Error::Content { path: path.to_owned(), source })?;
        let thread = rustix::thread::gettid();
        let partial = path.with_extension(format!("{}.partial", thread.as_raw_nonzero()));
        fs::write(&partial, text).map_err(failed("write", &partial))?;
        let is_there = self.rename(&partial, path, replace)?;
        if !is_there {
            let _scratch = fs::remove_file(&partial);
        }
        Ok(is_there)
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> Result<bool, Error> {
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, from, CWD, to, flags) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) if !replace => Ok(false),
            Err(errno) => Err(failed("name", to)(errno.into())),
        }
    }

    /// Removes what writers left behind that were killed. Nobody may be writing.
    pub fn remove_partial(&self) -> Result<(), Error> {
        for directory in [self.networks(), self.pool()] {
            let files = list(&directory)?;
            let mut partial = files.iter().filter(|name| name.ends_with(".partial"));
            partial.try_for_each(|name| remove(&directory.join(name)))?;
        }
        Ok(())
    }
}

/// Removes a file. One that is gone is no error.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, Error> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(data) if data.len() > FILE_BYTES_MAX => {
            return Err(failed("read", path)(io::ErrorKind::FileTooLarge.into()));
        }
        _ => {}
    }
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(failed("read", path))?,
    };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|source| Error::Content { path: path.to_owned(), source })
}

fn list(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(directory).map_err(failed("list", directory))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", directory))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Access { what, path, source }
}

#[cfg(test)]
mod tests;
