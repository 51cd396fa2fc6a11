//! Decides what a request means in the state the machine is in, and has it done.
//!
//! ```text
//!                Start             Pause
//!  NotStarted ----------> Running -------> Paused
//!   (configure)              ^               |
//!                            +---------------+
//!                                 Resume
//! ```
//! The machine's end is the process's: there is no state for it.

use std::path::Path;

use rotifer_devices::virtio::net::Limits;
use serde::Serialize;

use super::load::Load;
use super::request::{Request, SnapshotCreate, SnapshotLoad, WorkingSet};
use super::response::Response;
use crate::config::{
    self, Config, Drive, Logger, NetworkInterface, NetworkInterfacePatch, Plan, report,
};
use crate::logger;
use crate::machine_state::{Hardware, Then};
use crate::snapshots::ForkDescription;

/// The Firecracker release whose requests are all known here by name; what `GET /version` says,
/// because clients compare it.
pub const FIRECRACKER_VERSION: &str = "1.14.0";

/// What the controller needs a machine to do. Called on the main thread, one at a time.
pub trait MachineControl {
    /// Why something could not be done.
    type Error: std::error::Error;

    /// Assembles the machine, loads the kernel and lets the vCPUs run. Called until it succeeds,
    /// and not again after that; a failed call leaves nothing behind.
    fn boot(&mut self, plan: Plan) -> Result<(), Self::Error>;

    /// Stops all vCPUs and devices; returns when they stand still.
    fn pause(&mut self) -> Result<(), Self::Error>;

    /// Lets a paused machine go on.
    fn resume(&mut self) -> Result<(), Self::Error>;

    /// Writes a snapshot. A paused machine stays paused; one that runs goes on as soon as what is
    /// its own was copied. `config` is what the host provides to it.
    fn snapshot(&mut self, request: &SnapshotCreate, config: &Config) -> Result<(), Self::Error>;

    /// Writes the snapshot that a paused machine comes from once more, to `path`, with what was
    /// touched since.
    fn record_working_set(&mut self, path: &Path, config: &Config) -> Result<(), Self::Error>;

    /// Holds a snapshot of the machine in memory, as [`Self::snapshot`] of one that runs.
    fn fork(&mut self, config: &Config) -> Result<ForkDescription, Self::Error>;

    /// The forks that are held.
    fn forks(&self) -> Vec<ForkDescription>;

    /// Holds a fork no longer.
    fn end_fork(&mut self, id: &str) -> Result<(), Self::Error>;

    /// Changes the rate limits of a network interface that is in the configuration.
    fn limit_network(&mut self, iface_id: &str, limits: Limits);

    /// Opens a snapshot and takes the machine up again in `hardware`. Called as [`Self::boot`] is.
    fn restore(&mut self, hardware: Hardware, load: &Load, then: Then) -> Result<(), Self::Error>;
}

/// Where the machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum State {
    /// It can be configured.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still.
    Paused,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Fault<E: std::error::Error + 'static> {
    #[error("{request} is not possible {}", moment(*state))]
    State { request: &'static str, state: State },
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Logger(#[from] logger::Error),
    #[error("{request} is not supported: {reason}")]
    Unsupported { request: &'static str, reason: &'static str },
    #[error("there is no network interface {iface_id:?}")]
    NoInterface { iface_id: String },
    #[error(transparent)]
    Load(#[from] super::load::LoadError),
    #[error("{request} failed")]
    Machine { request: &'static str, source: E },
}

fn moment(state: State) -> &'static str {
    match state {
        State::NotStarted => "before the machine is started",
        State::Running => "while the machine runs",
        State::Paused => "while the machine is paused",
    }
}

/// The VMM as its clients see it.
#[derive(Debug)]
pub struct Controller<M> {
    machine: M,
    id: String,
    pub(super) config: Config,
    state: State,
}

impl<M: MachineControl<Error: 'static>> Controller<M> {
    /// A machine that is not started; `id` is what it is called in `GET /`.
    pub fn new(machine: M, id: String) -> Self {
        Self { machine, id, config: Config::default(), state: State::NotStarted }
    }

    /// The machine.
    pub fn machine(&mut self) -> &mut M {
        &mut self.machine
    }

    /// Where the machine is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes over a configuration file and starts the machine, as `--config-file` asks.
    pub fn start(&mut self, config: Config) -> Result<(), Fault<M::Error>> {
        if let Some(settings) = &config.logger {
            logger::configure(settings)?;
        }
        self.config = config;
        self.boot()
    }

    /// Loads a snapshot and lets the machine go on, as `--restore` asks. The host provides what
    /// `config` says; without one, what it provided when the machine was saved.
    pub fn restore(
        &mut self,
        load: SnapshotLoad,
        config: Option<Config>,
    ) -> Result<(), Fault<M::Error>> {
        if let Some(settings) = config.as_ref().and_then(|config| config.logger.as_ref()) {
            logger::configure(settings)?;
        }
        self.config = config.unwrap_or_default();
        self.load(load)
    }

    /// Answers a request of the API.
    pub fn handle(&mut self, request: Request) -> Response {
        let name = request.name();
        match self.execute(request) {
            Ok(response) => {
                tracing::debug!(request = name, "done");
                response
            }
            Err(fault) => {
                let text = report(&fault);
                tracing::error!(request = name, "{text}");
                Response::Refused(text)
            }
        }
    }

    fn execute(&mut self, request: Request) -> Result<Response, Fault<M::Error>> {
        let name = request.name();
        if let Some(reason) = unsupported(&request) {
            return Err(Fault::Unsupported { request: name, reason });
        }
        if !permitted(&request).contains(&self.state) {
            return Err(Fault::State { request: name, state: self.state });
        }
        let failed = |source| Fault::Machine { request: name, source };
        match request {
            Request::InstanceInfo => return Ok(self.instance_info()),
            Request::Version => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Response::json(&serde_json::json!({
                    "firecracker_version": FIRECRACKER_VERSION,
                    "rotifer_version": version
                })));
            }
            Request::VmConfig => return Ok(Response::json(&self.config)),
            Request::MachineConfig => return Ok(Response::json(&self.config.machine_config)),
            Request::Start => self.boot()?,
            Request::Pause if self.state == State::Running => {
                self.machine.pause().map_err(failed)?;
                self.state = State::Paused;
            }
            Request::Resume if self.state == State::Paused => {
                self.machine.resume().map_err(failed)?;
                self.state = State::Running;
            }
            Request::CreateSnapshot(create) => {
                self.machine.snapshot(&create, &self.config).map_err(failed)?;
            }
            Request::RecordWorkingSet(WorkingSet { snapshot_path }) => {
                let recorded = self.machine.record_working_set(&snapshot_path, &self.config);
                recorded.map_err(failed)?;
            }
            Request::Fork => {
                return Ok(Response::json(&self.machine.fork(&self.config).map_err(failed)?));
            }
            Request::Forks => return Ok(Response::json(&self.machine.forks())),
            Request::EndFork(id) => self.machine.end_fork(&id).map_err(failed)?,
            Request::LoadSnapshot(load) => self.load(load)?,
            Request::PatchNetworkInterface(patch) => self.patch_interface(&patch)?,
            // Paused twice or resumed twice: already so, as with Firecracker.
            Request::Pause | Request::Resume => {}
            request => self.configure(request)?,
        }
        Ok(Response::Done)
    }

    fn boot(&mut self) -> Result<(), Fault<M::Error>> {
        let plan = self.config.plan()?;
        let request = Request::Start.name();
        self.machine.boot(plan).map_err(|source| Fault::Machine { request, source })?;
        self.state = State::Running;
        Ok(())
    }

    fn load(&mut self, request: SnapshotLoad) -> Result<(), Fault<M::Error>> {
        let (then, state) = match request.resume_vm {
            true => (Then::Run, State::Running),
            false => (Then::StayPaused, State::Paused),
        };
        let (load, config) = Load::of(request, &self.config)?;
        let hardware = config.hardware()?;
        let request = "PUT /snapshot/load";
        let restored = self.machine.restore(hardware, &load, then);
        restored.map_err(|source| Fault::Machine { request, source })?;
        self.config = config;
        self.state = state;
        Ok(())
    }

    /// Checks one section by itself and keeps it. What concerns several sections is checked
    /// when the machine is started.
    fn configure(&mut self, request: Request) -> Result<(), Fault<M::Error>> {
        let config = &mut self.config;
        match request {
            Request::SetMachineConfig(section) => {
                section.check()?;
                config.machine_config = section;
            }
            Request::PatchMachineConfig(patch) => {
                let section = config.machine_config.patched(&patch);
                section.check()?;
                config.machine_config = section;
            }
            Request::SetBootSource(section) => {
                section.check()?;
                config.boot_source = Some(section);
            }
            Request::SetDrive(drive) => config.drives = with_drive(&config.drives, drive)?,
            Request::SetNetworkInterface(interface) => {
                let interfaces = with_interface(&config.network_interfaces, interface)?;
                config.network_interfaces = interfaces;
            }
            Request::SetVsock(section) => {
                section.check()?;
                config.vsock = Some(section);
            }
            Request::SetEntropy(section) => {
                section.check()?;
                config.entropy = Some(section);
            }
            Request::SetSerial(section) => {
                section.check()?;
                config.serial = Some(section);
            }
            Request::SetLogger(section) => {
                logger::configure(&section)?;
                config.logger = Some(merged(config.logger.take(), section));
            }
            // Every other request was answered before.
            other => {
                return Err(Fault::Unsupported {
                    request: other.name(),
                    reason: "it configures nothing",
                });
            }
        }
        Ok(())
    }

    /// Changes the limits of an interface, in the machine and in what is said of it.
    fn patch_interface(&mut self, patch: &NetworkInterfacePatch) -> Result<(), Fault<M::Error>> {
        let iface_id = &patch.iface_id;
        let interfaces = &mut self.config.network_interfaces;
        let interface = interfaces.iter_mut().find(|interface| interface.iface_id == *iface_id);
        let Some(interface) = interface else {
            return Err(Fault::NoInterface { iface_id: iface_id.clone() });
        };
        let (patched, limits) = interface.patched(patch)?;
        *interface = patched;
        self.machine.limit_network(iface_id, limits);
        Ok(())
    }

    fn instance_info(&self) -> Response {
        #[derive(Serialize)]
        struct Info<'a> {
            id: &'a str,
            state: State,
            vmm_version: &'static str,
            app_name: &'static str,
        }
        Response::json(&Info {
            id: &self.id,
            state: self.state,
            vmm_version: env!("CARGO_PKG_VERSION"),
            app_name: "Rotifer",
        })
    }
}

/// The drives with one added, or replaced where one has the same id; checked.
fn with_drive(drives: &[Drive], drive: Drive) -> Result<Vec<Drive>, config::Error> {
    let mut drives = drives.to_vec();
    let index = match drives.iter().position(|other| other.drive_id == drive.drive_id) {
        None => {
            drives.push(drive);
            drives.len() - 1
        }
        Some(index) => {
            drives[index] = drive;
            index
        }
    };
    config::check_drives(&drives, index)?;
    Ok(drives)
}

/// The same with network interfaces.
fn with_interface(
    interfaces: &[NetworkInterface],
    interface: NetworkInterface,
) -> Result<Vec<NetworkInterface>, config::Error> {
    let mut interfaces = interfaces.to_vec();
    let same = interfaces.iter().position(|other| other.iface_id == interface.iface_id);
    let index = same.unwrap_or(interfaces.len());
    interfaces.splice(index..(index + 1).min(interfaces.len()), [interface]);
    config::check_interfaces(&interfaces, index)?;
    Ok(interfaces)
}

/// What is absent in the new settings stays as it was.
fn merged(old: Option<Logger>, new: Logger) -> Logger {
    let old = old.unwrap_or_default();
    Logger {
        log_path: new.log_path.or(old.log_path),
        level: new.level.or(old.level),
        show_level: new.show_level.or(old.show_level),
        show_log_origin: new.show_log_origin.or(old.show_log_origin),
        module: new.module.or(old.module),
    }
}

/// The states in which a request makes sense.
fn permitted(request: &Request) -> &'static [State] {
    use State::{NotStarted, Paused, Running};
    match request {
        Request::InstanceInfo
        | Request::Version
        | Request::VmConfig
        | Request::MachineConfig
        | Request::Unsupported(_) => &[NotStarted, Running, Paused],
        Request::SetMachineConfig(_)
        | Request::PatchMachineConfig(_)
        | Request::SetBootSource(_)
        | Request::SetDrive(_)
        | Request::SetNetworkInterface(_)
        | Request::SetVsock(_)
        | Request::SetEntropy(_)
        | Request::SetSerial(_)
        | Request::SetLogger(_)
        | Request::Start
        | Request::LoadSnapshot(_) => &[NotStarted],
        Request::PatchDrive(_)
        | Request::PatchNetworkInterface(_)
        | Request::FlushMetrics
        | Request::SendCtrlAltDel
        | Request::Pause
        | Request::Resume
        | Request::Fork
        | Request::Forks
        | Request::EndFork(_) => &[Running, Paused],
        Request::CreateSnapshot(SnapshotCreate { live: true, .. }) => &[Running],
        Request::CreateSnapshot(_) | Request::RecordWorkingSet(_) => &[Paused],
    }
}

/// Why a request cannot be served in any state, so far.
fn unsupported(request: &Request) -> Option<&'static str> {
    Some(match request {
        Request::Unsupported(section) => config::why_unsupported(section),
        Request::PatchDrive(_) => "a drive cannot be changed after the machine is started yet",
        Request::FlushMetrics => "metrics are not collected yet",
        Request::SendCtrlAltDel => {
            "ARM64 machines have no keyboard controller; \
                                    ask the guest's agent to shut down"
        }
        _ => return None,
    })
}
