//! Networks of microVMs: each VMM runs in one of its own, which lives as long as the process, and what the
//! guest may reach is what its connectors say (`docs/networks.md`).
//!
//! What a connector has of a VPC means something here as well: a subnet is a policy of the settings'
//! `host.networks.subnets`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rotifer_network::files::Name;
use rotifer_network::host::{Error as HostError, Host, Options};
use rotifer_network::policy::{Error as PolicyError, Policy};
use rotifer_network::{guest, namespace, serve};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::sleep;

use crate::fleet::names::{ConnectorName, INTERNET_EGRESS, Names};
use crate::fleet::records::Connector;
use crate::lambda::records;
use crate::settings::NetworkSettings;
use crate::store::{Store, StoreError};
use crate::worker::Guest;

/// Connections that a guest may have to its metadata service; the next ones wait.
const GUEST_CONNECTIONS_MAX: usize = 16;
/// After a failure that nothing wakes us from.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a microVM has no network. Users see it in `stateReason`.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot make the MicroVM's network")]
    Host(#[from] rotifer_network::host::Error),
    #[error("cannot enter the MicroVM's network")]
    Namespace(#[from] namespace::Error),
    #[error("cannot start the MicroVM's process in its network")]
    Start(#[source] std::io::Error),
    #[error("cannot name a network")]
    Name(#[from] rotifer_network::files::Error),
    #[error("what the network connectors let through together cannot be one policy")]
    Policy(#[from] PolicyError),
    #[error("{what} {id} means nothing on this host: {remedy}")]
    Unknown { what: &'static str, id: String, remedy: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes networks on this host.
pub struct Networks {
    host: Host,
    subnets: BTreeMap<String, Policy>,
    names: Names,
    store: Arc<Store>,
    guests: mpsc::Sender<Guest>,
}

impl Networks {
    /// Finds out whether this host can have networks, and looks after them from then on. Has to be called on
    /// a runtime.
    pub fn open(
        settings: &NetworkSettings,
        names: Names,
        store: Arc<Store>,
        guests: mpsc::Sender<Guest>,
    ) -> Result<Self, NetworkError> {
        let host = Host::open(&settings.directory)?;
        let trial: Name = fresh("trial").parse()?;
        host.create(&trial, &Policy::none(), Options::default())?;
        host.delete(&trial)?;
        let options = serve::Options {
            upstreams: settings.resolvers.clone(),
            pool_size: settings.pool,
            // What most microVMs have.
            pool_policy: Policy { metadata: true, ..Policy::internet() },
        };
        tokio::spawn(look_after(host.clone(), options));
        Ok(Self { host, subnets: settings.subnets.clone(), names, store, guests })
    }

    /// The network of a microVM with these connectors. One of an earlier try is replaced.
    pub fn of_microvm(
        self: &Arc<Self>,
        id: &str,
        egress: &[String],
    ) -> Result<Network, NetworkError> {
        let policy = Policy { metadata: true, ..self.policy(egress)? };
        let name: Name = id.parse()?;
        let created = match self.create(name.clone(), &policy, Options::default()) {
            Err(NetworkError::Host(HostError::Exists { .. })) => {
                self.remove(&name);
                self.create(name, &policy, Options::default())
            }
            created => created,
        };
        let mut network = created?;
        network.serve_metadata(id)?;
        Ok(network)
    }

    /// A network that ends with the daemon, for an image that is being built. It has no credentials.
    pub fn of_build(self: &Arc<Self>, egress: &[String]) -> Result<Network, NetworkError> {
        let name = fresh("build").parse()?;
        let owner_pid = i32::try_from(std::process::id()).ok();
        self.create(name, &self.policy(egress)?, Options { owner_pid, ..Options::default() })
    }

    fn create(
        self: &Arc<Self>,
        name: Name,
        policy: &Policy,
        options: Options,
    ) -> Result<Network, NetworkError> {
        // Not given up half way: nobody would know of it.
        block_in_place(|| self.host.create(&name, policy, options))?;
        Ok(Network { networks: Arc::clone(self), name, metadata: None, is_kept: false })
    }

    /// That of a microVM which an earlier daemon started, if it has one.
    pub fn adopted(self: &Arc<Self>, id: &str) -> Option<Network> {
        let name: Name = id.parse().ok()?;
        self.host.network(&name).ok()?;
        let mut network =
            Network { networks: Arc::clone(self), name, metadata: None, is_kept: true };
        if let Err(error) = network.serve_metadata(id) {
            tracing::error!("{id} has no metadata service any more: {}", crate::report(&error));
        }
        Some(network)
    }

    /// Removes the networks that are still there of microVMs whose processes have ended.
    pub fn clean(&self, ended: &BTreeSet<String>) -> Result<(), NetworkError> {
        for network in self.host.networks()? {
            if ended.contains(&network.name) {
                self.remove(&network.name.parse()?);
            }
        }
        Ok(())
    }

    fn remove(&self, name: &Name) {
        match block_in_place(|| self.host.delete(name)) {
            Ok(()) | Err(HostError::Unknown { .. }) => {}
            Err(error) => {
                tracing::warn!("the network {name} is not removed: {}", crate::report(&error));
            }
        }
    }

    /// Has a connector's microVMs follow what it says now.
    pub fn connect(
        &self,
        id: &str,
        microvms: &[(String, Vec<String>)],
    ) -> Result<(), NetworkError> {
        self.policy_of(&records::connector(&self.store, id)?)?;
        for (microvm, egress) in microvms {
            let name: Name = microvm.parse()?;
            // One that is suspended has none, and gets it from the connector when it wakes.
            if self.host.network(&name).is_ok() {
                let policy = Policy { metadata: true, ..self.policy(egress)? };
                block_in_place(|| self.host.set_policy(&name, &policy))?;
            }
        }
        Ok(())
    }

    /// What these connectors let through together.
    fn policy(&self, egress: &[String]) -> Result<Policy, NetworkError> {
        let mut all = Policy::none();
        for arn in egress {
            let one = match self.names.connector_name(arn) {
                Some(ConnectorName::Managed(INTERNET_EGRESS)) => Policy::internet(),
                Some(ConnectorName::Managed(_)) | None => Policy::none(),
                Some(ConnectorName::Own(id)) => {
                    self.policy_of(&records::connector(&self.store, id)?)?
                }
            };
            all.allow.extend(one.allow);
            all.deny.extend(one.deny);
        }
        all.check()?;
        Ok(all)
    }

    /// What one connector of the account lets through.
    fn policy_of(&self, connector: &Connector) -> Result<Policy, NetworkError> {
        let configuration = &connector.configuration["VpcEgressConfiguration"];
        let refuse = |what, id: &dyn Display, remedy| {
            Err(NetworkError::Unknown { what, id: id.to_string(), remedy })
        };
        if configuration["NetworkProtocol"] == "DualStack" {
            return refuse("the protocol", &"DualStack", "there is no IPv6; use IPv4");
        }
        let words = |name: &str| configuration[name].as_array().into_iter().flatten();
        if let Some(group) = words("SecurityGroupIds").filter_map(Value::as_str).next() {
            return refuse(
                "the security group",
                &group,
                "name none; a subnet says what is let through",
            );
        }
        if !configuration["ElasticIpConfiguration"].is_null() {
            return refuse("an", &"ElasticIpConfiguration", "leave it out");
        }
        let mut all = Policy::none();
        for id in words("SubnetIds").filter_map(Value::as_str) {
            let Some(one) = self.subnets.get(id) else {
                let remedy = "the settings' host.networks.subnets has the policies that there are";
                return refuse("the subnet", &id, remedy);
            };
            all.allow.extend(one.allow.iter().cloned());
            all.deny.extend(&one.deny);
        }
        all.check()?;
        Ok(all)
    }
}

/// A network, and who serves its guest. It is removed when this is dropped, unless it is [kept](Self::keep).
pub struct Network {
    networks: Arc<Networks>,
    name: Name,
    metadata: Option<JoinHandle<()>>,
    is_kept: bool,
}

impl fmt::Debug for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Network").field(&self.name).finish()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(task) = &self.metadata {
            task.abort();
        }
        if !self.is_kept {
            self.remove();
        }
    }
}

impl Network {
    /// From now on it stays whatever becomes of the daemon.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Starts a program in it.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, NetworkError> {
        let namespace = self.networks.host.namespace(&self.name)?;
        let runtime = Handle::current();
        namespace::within(&namespace, || {
            let _for_its_end = runtime.enter();
            command.spawn().map_err(NetworkError::Start)
        })
    }

    /// Removes it. Once is enough, and twice no mistake.
    pub fn remove(&self) {
        self.networks.remove(&self.name);
    }

    fn serve_metadata(&mut self, microvm: &str) -> Result<(), NetworkError> {
        let listener = self.networks.host.metadata_socket(&self.name)?;
        let (microvm, guests) = (microvm.to_owned(), self.networks.guests.clone());
        self.metadata = Some(tokio::spawn(accept(listener, microvm, guests)));
        Ok(())
    }
}

/// Hands the connections of a guest to whoever answers them.
async fn accept(listener: TcpListener, microvm: String, guests: mpsc::Sender<Guest>) {
    let listener =
        listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("{microvm} has no metadata service: {error}"),
    };
    let places = Arc::new(Semaphore::new(GUEST_CONNECTIONS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let guest = Guest { stream, microvm: microvm.clone(), place };
                if guests.send(guest).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!("a connection of {microvm} for metadata broke: {error}");
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Names for guests, the pool, and what others leave behind.
async fn look_after(host: Host, options: serve::Options) {
    loop {
        if let Err(error) = serve::run(host.clone(), options.clone()).await {
            tracing::error!("networks are not looked after: {}", crate::report(&error));
        }
        sleep(RETRY_AFTER).await;
    }
}

/// Nobody else's name.
fn fresh(word: &str) -> String {
    format!("{word}-{}", uuid::Uuid::new_v4())
}

/// The interface of a guest, as its VMM is configured.
pub fn interface() -> Value {
    json!([{
        "iface_id": "eth0", "host_dev_name": guest::TAP, "guest_mac": guest::mac_text(guest::MAC),
    }])
}

/// The guest's `/etc/resolv.conf`.
pub fn resolv_conf() -> String {
    format!("nameserver {}\n", guest::GATEWAY)
}
