//! The process beside the VMs: it answers their guests' questions for names, keeps a pool of
//! namespaces ready, puts the host's rules back where somebody has removed them, and removes networks
//! whose owner has ended.
//!
//! It holds no state: what there is, it reads from the directory, at the start and whenever it
//! changes. When it dies, guests get no names, what is pinned expires, and nothing opens.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::read_system_conf,
};
use rustix::{
    fs::inotify,
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::{
    io::unix::AsyncFd,
    task::{AbortHandle, JoinSet, spawn_blocking},
};

use crate::{
    chain,
    files::{self, Name, Owner},
    host::{self, Host},
    namespace, netlink,
    policy::Policy,
    resolver,
};

/// Answers that are kept for all guests.
const CACHED_ANSWERS_MAX: u64 = 4096;
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
const UPSTREAM_ATTEMPTS: usize = 3;
/// After a failure that nothing wakes us from.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Networks.
    #[error("cannot look after networks")]
    Host(#[from] host::Error),
    /// Files.
    #[error("cannot read what is known about networks")]
    Files(#[from] files::Error),
    /// No resolver to ask.
    #[error(
        "cannot tell which resolver to ask: name one with --upstream, or repair /etc/resolv.conf"
    )]
    Upstream(#[source] NetError),
    /// The directory cannot be watched.
    #[error("cannot watch for changes of networks")]
    Watch(#[source] io::Error),
}

/// What it does beside answering.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whom it asks; those of `/etc/resolv.conf` if there are none.
    pub upstreams: Vec<SocketAddr>,
    /// How many namespaces are ready at any time.
    pub pool_size: usize,
    /// What they are ready for.
    pub pool_policy: Policy,
}

/// Looks after the networks until it is dropped, or cannot go on.
pub async fn run(host: Host, options: Options) -> Result<(), Error> {
    let upstream = upstream(&options.upstreams).map_err(Error::Upstream)?;
    // Before anything is looked at, so that no change is missed.
    let watch = watch(&host).map_err(Error::Watch)?;
    let rules = netlink::rule_changes().and_then(register).map_err(Error::Watch)?;
    sweep(&host).await?;
    let mut server = Server {
        host,
        upstream,
        guests: HashMap::new(),
        owners: HashMap::new(),
        tasks: JoinSet::new(),
    };
    loop {
        server.attend_to_guests()?;
        server.attend_to_owners()?;
        if server.host.pool_size()? < options.pool_size {
            add_to_pool(&server.host, &options.pool_policy).await;
            continue;
        }
        tokio::select! {
            changed = next_change(&watch) => changed.map_err(Error::Watch)?,
            changed = next_change(&rules) => {
                changed.map_err(Error::Watch)?;
                guard(&server.host).await;
            }
            Some(_ended) = server.tasks.join_next() => {}
        }
    }
}

async fn sweep(host: &Host) -> Result<(), Error> {
    let swept = blocking(host, |host| host.sweep(false)).await?;
    for failure in &swept.failures {
        tracing::error!(failure, "a network cannot be looked after");
    }
    if !swept.is_empty() {
        tracing::info!(?swept, "looked after what an earlier run left behind");
    }
    Ok(())
}

/// Filling the pool wakes who looks after it again, for the next.
async fn add_to_pool(host: &Host, policy: &Policy) {
    let policy = policy.clone();
    if let Err(error) = blocking(host, move |host| host.add_to_pool(&policy)).await {
        tracing::error!(error = %chain(&error), "the pool cannot be filled");
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// Who flushes all rules of the host takes ours along.
async fn guard(host: &Host) {
    match blocking(host, Host::guard).await {
        Ok(false) => {}
        Ok(true) => tracing::warn!("somebody has removed rules of ours; they are back"),
        Err(error) => {
            tracing::error!(error = %chain(&error), "the host's rules cannot be put back");
        }
    }
}

struct Server {
    host: Host,
    upstream: TokioResolver,
    /// By slot: the namespace's inode, and what answers its guest.
    guests: HashMap<u32, (u64, AbortHandle)>,
    owners: HashMap<Name, (Owner, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Server {
    /// One resolver for each namespace there is, those of the pool included: a guest that wakes in
    /// one asks at once.
    fn attend_to_guests(&mut self) -> Result<(), Error> {
        let files = self.host.files();
        let mut known = HashMap::new();
        for slot in files.leased()? {
            let path = files.slot(slot);
            if let (true, Ok(data)) = (namespace::is_kept(&path), std::fs::metadata(&path)) {
                known.insert(slot, data.ino());
            }
        }
        self.guests.retain(|slot, (inode, task)| {
            let stays = known.get(slot) == Some(inode) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for (slot, inode) in known {
            if self.guests.contains_key(&slot) {
                continue;
            }
            match self.host.resolver_sockets(slot) {
                Ok(sockets) => {
                    let (host, upstream) = (self.host.clone(), self.upstream.clone());
                    let task = self.tasks.spawn(async move {
                        resolver::serve(host, slot, upstream, sockets).await;
                        // It ends by an error only, which may be there again.
                        tokio::time::sleep(RETRY_AFTER).await;
                    });
                    self.guests.insert(slot, (inode, task));
                }
                // It is being made, and we are woken when it is; or it is going away.
                Err(error) => tracing::debug!(slot, error = %chain(&error), "no names for a guest"),
            }
        }
        Ok(())
    }

    fn attend_to_owners(&mut self) -> Result<(), Error> {
        let records = self.host.files().records()?.known;
        self.owners.retain(|name, (owner, task)| {
            let stays = records.get(name).is_some_and(|record| record.owner == Some(*owner));
            if !stays {
                task.abort();
            }
            stays
        });
        for (name, record) in records {
            let Some(owner) = record.owner else { continue };
            if self.owners.get(&name).is_none_or(|(_, task)| task.is_finished()) {
                let task = self.tasks.spawn(delete_after(self.host.clone(), name.clone(), owner));
                self.owners.insert(name, (owner, task));
            }
        }
        Ok(())
    }
}

async fn delete_after(host: Host, name: Name, owner: Owner) {
    if let Some(process) = Pid::from_raw(owner.pid).and_then(|pid| open_process(pid).ok())
        // Who has its number now may be somebody else.
        && owner.is_alive()
        && let Err(error) = process.readable().await
    {
        return tracing::error!(%name, %error, "cannot wait for the owner of a network");
    }
    let deleted = blocking(&host, {
        let name = name.clone();
        move |host| host.delete(&name)
    })
    .await;
    match deleted {
        Ok(()) | Err(host::Error::Unknown { .. }) => {}
        Err(error) => {
            tracing::error!(%name, error = %chain(&error), "a network is left over");
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

fn open_process(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    register(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// The host's resolvers as they are configured, for questions as guests ask them.
fn upstream(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let config = if servers.is_empty() {
        let (system, _) = read_system_conf()?;
        ResolverConfig::from_name_servers(system.name_servers().to_vec())
    } else {
        let server = |address: &SocketAddr| {
            let with_port = |mut connection: ConnectionConfig| {
                connection.port = address.port();
                connection
            };
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(with_port);
            NameServerConfig::new(address.ip(), true, connections.into())
        };
        ResolverConfig::from_name_servers(servers.iter().map(server).collect())
    };
    let mut options = ResolverOpts::default();
    options.cache_size = CACHED_ANSWERS_MAX;
    options.timeout = UPSTREAM_TIMEOUT;
    options.attempts = UPSTREAM_ATTEMPTS;
    // The host's own names are none of the guests' business.
    options.use_hosts_file = ResolveHosts::Never;
    options.edns0 = true;
    let provider = TokioRuntimeProvider::default();
    TokioResolver::builder_with_config(config, provider).with_options(options).build()
}

fn watch(host: &Host) -> io::Result<AsyncFd<OwnedFd>> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let changes = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
    for directory in [host.files().networks(), host.files().pool()] {
        inotify::add_watch(&fd, directory, changes)?;
    }
    register(fd)
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is the same descriptor until it is dropped, with its registration.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Waits for a change, and takes all there are: everything is looked at again anyway.
async fn next_change(watch: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut guard = watch.readable().await?;
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(watch.get_ref(), &mut buffer[..]) {
            Err(Errno::AGAIN) => break,
            // So many that some were lost.
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    guard.clear_ready();
    Ok(())
}

async fn blocking<T: Send + 'static>(
    host: &Host,
    work: impl FnOnce(&Host) -> Result<T, host::Error> + Send + 'static,
) -> Result<T, host::Error> {
    let host = host.clone();
    match spawn_blocking(move || work(&host)).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
