//! The worker: microVMs of this host, each of them a VMM's process.
//!
//! ```text
//! versions/NAME/N/        root.ext4, snapshot, snapshot.host.json, *.pack     what launches restore
//! versions/NAME/N.new/    one that is being built
//! microvms/ID/            host.json, api.sock, v, vmm.log, root.overlay       of one that runs
//!                         snapshot, snapshot.host.json, *.pack                of one that is suspended
//! pager.sock              the pager: one process per host, which keeps the memory that clones share
//! ```
//!
//! VMMs and the pager go on when the daemon ends, however it ends. The next one finds them by the sockets
//! on their command lines, so there is no file about them that could be wrong. What is suspended has
//! `snapshot`; what runs has not. A version's directory gets its name when all of it is on the disk.

mod build;
mod disks;
mod files;
mod follow;
mod hooks;
mod laps;
mod lines;
mod machines;
mod networks;
mod pager;
mod prepare;
mod process;
mod vmm;
mod wire;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};

pub use self::build::{Failure, Root, RootDisks, Wish};
pub use self::disks::disks;
pub use self::lines::LogBook;
use self::machines::{MachineError, Slot};
use self::networks::{NetworkError, Networks};
use self::pager::Pager;
use self::vmm::SOCKET_BYTES_MAX;
use crate::fleet::microvm::Event;
use crate::fleet::names::Names;
use crate::fleet::records::{Microvm, Version, VersionId};
use crate::fleet::{Action, Change, Measured, Report};
use crate::lambda::records;
use crate::settings::HostSettings;
use crate::store::{Store, StoreError};
use crate::worker::{Connecting, Guest, Worker};

/// Builds that go on at the same time; others wait.
const BUILDS_MAX: usize = 2;
/// The length of a microVM's id.
const ID_BYTES: usize = "microvm-".len() + 36;
/// What users are told of a mistake of ours.
const BUG: &str = "The control plane failed; its log says how.";

/// What the worker is put together from.
pub struct Parts {
    /// Programs and files of this host.
    pub settings: HostSettings,
    /// The daemon's directory.
    pub directory: PathBuf,
    /// What there is.
    pub store: Arc<Store>,
    /// Where apps' and builds' lines go.
    pub logs: LogBook,
    /// What makes root disks.
    pub disks: Box<dyn RootDisks>,
    /// Variables of every app: the image's own names come from here.
    pub region: String,
    /// What ARNs mean.
    pub names: Names,
    /// Who answers guests that ask for their credentials.
    pub guests: mpsc::Sender<Guest>,
}

/// The microVMs of this host.
pub struct Host(Arc<Inner>);

struct Inner {
    parts: Parts,
    pager: Pager,
    networks: Option<Arc<Networks>>,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    builds: Semaphore,
    runtime: Handle,
}

/// Why the host cannot run microVMs.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum HostError {
    #[error("cannot {attempt} {path:?}")]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the settings' host.{name} is {path:?}, which cannot be read")]
    Missing { name: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{path:?} is too long for the sockets of microVMs: --state has at most {} bytes",
        SOCKET_BYTES_MAX - ID_BYTES - "/microvms//v".len()
    )]
    TooLong { path: PathBuf },
    #[error(
        "this host cannot have the networks that the settings' host.networks ask for: `rotifer-network doctor` \
         says more; without that member microVMs run, and reach nothing"
    )]
    Networks { source: NetworkError },
    #[error("the settings of image builds cannot be used")]
    Builds { source: rotifer_build::settings::SettingsError },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Host {
    /// Checks what is there, before anybody relies on it. Has to be called on a runtime.
    pub fn open(parts: Parts) -> Result<Self, HostError> {
        let HostSettings { vmm, kernel, initramfs, .. } = &parts.settings;
        for (name, path) in [("vmm", vmm), ("kernel", kernel), ("initramfs", initramfs)] {
            let found = std::fs::File::open(path);
            found.map_err(|source| HostError::Missing { name, path: path.clone(), source })?;
        }
        let longest = parts.directory.join("microvms").join("x".repeat(ID_BYTES)).join("v");
        if longest.as_os_str().len() > SOCKET_BYTES_MAX {
            return Err(HostError::TooLong { path: parts.directory });
        }
        for name in ["microvms", "versions"] {
            let path = parts.directory.join(name);
            let made = std::fs::create_dir_all(&path);
            made.map_err(|source| HostError::File { attempt: "create", path, source })?;
        }
        let networks = parts.settings.networks.as_ref().map(|settings| {
            let (names, store) = (parts.names.clone(), Arc::clone(&parts.store));
            Networks::open(settings, names, store, parts.guests.clone()).map(Arc::new)
        });
        let networks = networks.transpose().map_err(|source| HostError::Networks { source })?;
        if networks.is_none() {
            tracing::warn!(
                "the settings have no host.networks: microVMs have no network interface"
            );
        }
        let pager = Pager::new(&parts.settings.vmm, &parts.directory);
        Ok(Self(Arc::new(Inner {
            parts,
            pager,
            networks,
            slots: Mutex::default(),
            builds: Semaphore::new(BUILDS_MAX),
            runtime: Handle::current(),
        })))
    }
}

impl Worker for Host {
    fn refusal(&self) -> Option<&str> {
        None
    }

    fn adopt(&self, reports: &Sender<Report>) {
        if let Err(error) = self.0.adopt(reports) {
            tracing::error!("not everything was cleaned up: {}", crate::report(&error));
        }
    }

    fn begin(&self, action: Action, reports: &Sender<Report>) {
        if let Action::Terminate(id) = &action {
            // At once: whatever is being done with it ends.
            self.0.slot(id).end();
        }
        let (inner, reports) = (Arc::clone(&self.0), reports.clone());
        let runtime = self.0.runtime.clone();
        self.0.runtime.spawn(async move {
            let work = {
                let (inner, action, reports) =
                    (Arc::clone(&inner), action.clone(), reports.clone());
                runtime.spawn(async move { inner.perform(action, &reports).await })
            };
            let report = work.await.unwrap_or_else(|panic| {
                tracing::error!("a worker failed at {action:?}: {panic}");
                ended(action, Err(BUG.to_owned()))
            });
            // At the end of the daemon nobody listens; the action comes again at its next start.
            let _nobody_listens = reports.send(report);
        });
    }

    fn processor_time(&self, id: &str) -> Option<Duration> {
        self.0.processor_time(id)
    }

    fn connect(&self, id: &str, port: u16) -> Connecting<'_> {
        let socket = vmm::vsock(&self.0.directory_of(id));
        Box::pin(async move { wire::connect(&socket, port).await })
    }

    fn agent(&self, id: &str) -> Connecting<'_> {
        let socket = vmm::vsock(&self.0.directory_of(id));
        Box::pin(async move { wire::agent(&socket).await })
    }
}

impl Inner {
    async fn perform(self: Arc<Self>, action: Action, reports: &Sender<Report>) -> Report {
        let nothing = |()| Measured::default();
        let result = match &action {
            Action::Build(version) => return self.build(version, reports).await,
            Action::RemoveVersion(version) => self.remove_version(version).await.map(nothing),
            Action::Launch(id) => self.launch(id, reports).await.map_err(told),
            Action::Suspend(id) => self.suspend(id, reports).await.map_err(told),
            Action::Resume(id) => self.resume(id, reports).await.map_err(told),
            Action::Terminate(id) => self.terminate(id).await.map_err(told),
            Action::Connect(id) => self.connect(id).map(nothing),
            Action::Disconnect(_) => Ok(Measured::default()),
        };
        if let Err(reason) = &result {
            tracing::warn!("{action:?} failed: {reason}");
        }
        ended(action, result)
    }

    /// Has the microVMs of a connector follow it.
    fn connect(&self, id: &str) -> Result<(), String> {
        let Some(networks) = &self.networks else {
            return Err(
                "MicroVMs of this host have no networks: its settings have no host.networks."
                    .into(),
            );
        };
        let connect = || -> Result<(), MachineError> {
            let arn = self.parts.names.connector(id);
            let mut followers = Vec::new();
            for change in records::all(&self.parts.store)? {
                if let Change::PutMicrovm(microvm) = change
                    && microvm.phase.is_alive()
                    && microvm.egress.contains(&arn)
                {
                    followers.push((microvm.id, microvm.egress));
                }
            }
            Ok(networks.connect(id, &followers)?)
        };
        connect().map_err(told)
    }

    fn directory_of(&self, id: &str) -> PathBuf {
        self.parts.directory.join("microvms").join(id)
    }

    fn version_directory(&self, id: &VersionId) -> PathBuf {
        let name = id.number.to_string();
        self.parts.directory.join("versions").join(&id.image).join(name)
    }

    fn slot(&self, id: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id.to_owned()).or_default())
    }

    fn forget(&self, id: &str) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn microvm(&self, id: &str) -> Result<Microvm, StoreError> {
        records::microvm(&self.parts.store, id)
    }

    fn version(&self, id: &VersionId) -> Result<Version, StoreError> {
        records::version(&self.parts.store, id)
    }

    fn vmm_program(&self) -> &Path {
        &self.parts.settings.vmm
    }
}

fn told(error: MachineError) -> String {
    crate::report(&error)
}

/// How an action ended, as the fleet hears it.
fn ended(action: Action, result: Result<Measured, String>) -> Report {
    let microvm = |id, done, failed| match result.clone() {
        Ok(measured) => Report::Microvm { id, event: done, reason: None, measured },
        Err(reason) => {
            let (reason, measured) = (Some(reason), Measured::default());
            Report::Microvm { id, event: failed, reason, measured }
        }
    };
    let reason = result.clone().err().unwrap_or_default();
    match action {
        Action::Build(version) => Report::BuildFailed { version, reason },
        Action::RemoveVersion(version) => match result {
            Ok(_) => Report::VersionRemoved { version },
            Err(reason) => Report::VersionNotRemoved { version, reason },
        },
        Action::Launch(id) => microvm(id, Event::Launched, Event::LaunchFailed),
        Action::Suspend(id) => microvm(id, Event::Suspended, Event::SuspendFailed),
        Action::Resume(id) => microvm(id, Event::Resumed, Event::ResumeFailed),
        // What could not be removed is removed at the next start; it is ended in any case.
        Action::Terminate(id) => {
            let measured = result.unwrap_or_default();
            Report::Microvm { id, event: Event::Terminated, reason: None, measured }
        }
        Action::Connect(id) => match result {
            Ok(_) => Report::Connected { id },
            Err(reason) => Report::NotConnected { id, reason },
        },
        Action::Disconnect(id) => Report::Disconnected { id },
    }
}
