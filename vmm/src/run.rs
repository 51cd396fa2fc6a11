//! The main thread: one event loop over the API's socket, signals and the machine, from the
//! command line to the outcome.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use rotifer_devices::GuestMemory;
use rotifer_devices::virtio::net::Limits;
use rotifer_snapshot::pager::{Pager, PagerError};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::api::{
    Controller, Fault, Load, MachineControl, Server, ServerError, SnapshotCreate, SnapshotLoad,
};
use crate::cli::Options;
use crate::config::{self, Config, Console, Plan, report};
use crate::logger;
use crate::machine::{Machine, MachineError, PauseError, Paused, SaveError};
use crate::machine_state::{Hardware, Then};
use crate::outcome::{FAILURE, Outcome, WRONG_USAGE};
use crate::signals::Signals;
use crate::snapshots::{self, ForkDescription, Forks, Origin, Room, SnapshotError, Still, Taken};
use crate::terminal::{self, Raw};

/// Why the VMM ended without an outcome of the machine.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The log.
    #[error(transparent)]
    Logger(#[from] logger::Error),
    /// The machine could not be started.
    #[error(transparent)]
    Start(Box<Fault<ControlError>>),
    /// The machine cannot go on.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The API cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The event loop.
    #[error("wait for events on the main thread")]
    Loop(#[source] event_manager::Error),
    /// The host refuses something.
    #[error("{attempt}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    /// The status of the process.
    pub fn status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Logger(_) | Self::Server(ServerError::Socket(_)) => WRONG_USAGE,
            Self::Start(fault) => match fault.as_ref() {
                Fault::Config(_) | Fault::Logger(_) | Fault::Load(_) => WRONG_USAGE,
                Fault::Machine { source, .. } if source.is_users_mistake() => WRONG_USAGE,
                _ => FAILURE,
            },
            _ => FAILURE,
        }
    }
}

/// Does what `options` ask for, until the machine ends.
///
/// # Errors
/// See [`RunError`].
pub fn run(options: Options) -> Result<Outcome, RunError> {
    logger::configure(&options.logger)?;
    tracing::debug!("timeline: the process is up");
    let signals = Signals::take().map_err(host("take signals"))?;
    let config = options.config_file.as_deref().map(config::load).transpose()?;
    let pager_socket = options.pager_socket;
    let (record_working_set, load_eagerly) = (options.record_working_set, options.load_eagerly);
    let restore = options.restore.map(|path| SnapshotLoad {
        record_working_set,
        load_eagerly,
        host_file_path: options.host_file,
        base_snapshot_path: options.base,
        ..SnapshotLoad::and_run(path, pager_socket)
    });
    let server = options.api_socket.as_deref().map(Server::listen).transpose()?;
    let wake = EventFd::new(EFD_NONBLOCK).map_err(host("create an eventfd"))?;
    let keeper = Keeper {
        wake: wake.try_clone().map_err(host("duplicate an eventfd"))?,
        machine: None,
        pager: None,
        origin: None,
        forks: Forks::default(),
        terminal: None,
    };
    let mut controller = Controller::new(keeper, options.id);
    match (restore, config) {
        (Some(load), config) => controller.restore(load, config).map_err(started)?,
        (None, Some(config)) => controller.start(config).map_err(started)?,
        (None, None) => {}
    }
    let mut events = EventManager::new_with_capacity(EVENTS_AT_A_TIME).map_err(RunError::Loop)?;
    let id = events.add_subscriber(Main { controller, server, signals, wake, end: None });
    loop {
        events.run().map_err(RunError::Loop)?;
        let main = events.subscriber_mut(id).map_err(RunError::Loop)?;
        if let Some(end) = main.end.take() {
            main.controller.machine().finish();
            return end;
        }
    }
}

fn started(fault: Fault<ControlError>) -> RunError {
    RunError::Start(Box::new(fault))
}

/// There are three descriptors.
const EVENTS_AT_A_TIME: usize = 4;

fn host(attempt: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Host { attempt, source }
}

/// Everything that the main thread looks after.
struct Main {
    controller: Controller<Keeper>,
    server: Option<Server>,
    signals: Signals,
    wake: EventFd,
    end: Option<Result<Outcome, RunError>>,
}

impl Main {
    fn descriptors(&self) -> [Option<RawFd>; 3] {
        let server = self.server.as_ref().map(Server::as_raw_fd);
        [Some(self.wake.as_raw_fd()), Some(self.signals.as_raw_fd()), server]
    }

    fn serve(&mut self, fd: RawFd) -> Result<Option<Outcome>, RunError> {
        if fd == self.signals.as_raw_fd() {
            let Some(signal) = self.signals.take_next() else { return Ok(None) };
            tracing::info!(signal, "a signal ends the machine");
            return Ok(Some(Outcome::Signal));
        }
        if fd == self.wake.as_raw_fd() {
            let _ = self.wake.read();
        } else if let Some(server) = &mut self.server {
            let controller = &mut self.controller;
            server.process(&mut |request| controller.handle(request))?;
        }
        // Asked after requests as well: a pause may have met the end of the machine.
        Ok(self.controller.machine().outcome()?)
    }
}

impl MutEventSubscriber for Main {
    fn init(&mut self, ops: &mut EventOps) {
        for fd in self.descriptors().into_iter().flatten() {
            if let Err(source) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                self.end = Some(Err(RunError::Loop(source)));
                // The loop must come round once to find it.
                let _ = self.wake.write(1);
                return;
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if self.end.is_none() {
            self.end = self.serve(events.fd()).transpose();
        }
    }
}

/// Keeps the machine for the controller.
struct Keeper {
    wake: EventFd,
    machine: Option<Machine>,
    /// Loads the memory of a restored machine, unless it was loaded before it ran. Dropped after the
    /// machine: until then a page may be missing.
    pager: Option<Pager>,
    /// What the machine comes from, or its last snapshot.
    origin: Option<Origin>,
    forks: Forks,
    terminal: Option<Raw>,
}

/// Why a request to the machine fails.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is the error of the part it is named after")]
pub enum ControlError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Pause(PauseError),
    #[error(transparent)]
    Save(SaveError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("there is no machine")]
    NoMachine,
}

impl ControlError {
    /// Whether another configuration or request would help, on this host.
    fn is_users_mistake(&self) -> bool {
        match self {
            Self::Machine(error) => error.is_users_mistake(),
            Self::Pause(_) | Self::Save(_) | Self::NoMachine => false,
            Self::Snapshot(error) => error.is_users_mistake(),
        }
    }
}

impl Keeper {
    fn outcome(&mut self) -> Result<Option<Outcome>, MachineError> {
        self.machine.as_mut().map_or(Ok(None), Machine::take_outcome)
    }

    fn finish(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.finish_output();
        }
        self.pager = None;
        self.terminal = None;
    }

    /// The machine is there; on the terminal, keys are its own from now on.
    fn keep(&mut self, machine: Machine, on_terminal: bool) {
        self.machine = Some(machine);
        if on_terminal {
            self.terminal = Raw::enter().unwrap_or_else(|error| {
                tracing::warn!(%error, "the terminal cannot be switched to raw mode");
                None
            });
        }
    }
}

/// What a live snapshot has in memory at once: the copy.
const LIVE_COPIES: u64 = 1;
/// And a fork: the copy, and the pack that is made of it.
const FORK_COPIES: u64 = 2;

/// Copies what a snapshot needs of the machine, which stands still meanwhile, and goes on unless it was
/// paused before. How long that took is told, too.
fn copy(
    machine: &mut Machine,
    origin: Option<&Origin>,
    copies: u64,
) -> Result<(Taken<'static>, Duration), ControlError> {
    let room = Room::for_copies(machine.memory(), machine.overlays(), copies)?;
    let was_paused = machine.is_paused();
    let begin = Instant::now();
    let paused = machine.pause().map_err(ControlError::Pause)?;
    let taken = still(&paused).and_then(|still| Ok(Taken::copied(still, origin, room)?));
    if was_paused {
        paused.stay();
    } else {
        paused.resume().map_err(ControlError::Pause)?;
    }
    let pause = begin.elapsed();
    let taken = taken?;
    tracing::info!(
        pause_us = pause.as_micros(),
        bytes = taken.copied_bytes(),
        "the machine was copied"
    );
    Ok((taken, pause))
}

/// What a snapshot is taken of.
fn still<'a>(paused: &'a Paused) -> Result<Still<'a>, ControlError> {
    let state = paused.save().map_err(ControlError::Save)?;
    Ok(Still { memory: paused.memory(), state, overlays: paused.overlays() })
}

/// Memory cannot be loaded. Every thread may be waiting for it, the main thread among them, so
/// nobody is asked: the process ends here and now, and with it all who wait.
fn end_for_want_of_memory(error: PagerError) {
    terminal::restore();
    eprintln!("rotifer-vmm: {}", report(&error));
    std::process::exit(FAILURE.into());
}

impl MachineControl for Keeper {
    type Error = ControlError;

    fn boot(&mut self, plan: Plan) -> Result<(), ControlError> {
        let on_terminal = plan.console == Console::Stdio;
        let machine = Machine::boot(plan, &self.wake)?;
        self.keep(machine, on_terminal);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ControlError> {
        if let Some(machine) = &mut self.machine {
            machine.pause().map_err(ControlError::Pause)?.stay();
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), ControlError> {
        if let Some(machine) = &mut self.machine {
            let paused = machine.pause().map_err(ControlError::Pause)?;
            paused.resume().map_err(ControlError::Pause)?;
        }
        Ok(())
    }

    fn snapshot(&mut self, request: &SnapshotCreate, config: &Config) -> Result<(), ControlError> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let origin = self.origin.as_ref();
        let created = if request.live {
            let (taken, _) = copy(machine, origin, LIVE_COPIES)?;
            snapshots::create(request, taken, origin, config)?
        } else {
            let paused = machine.pause().map_err(ControlError::Pause)?;
            let created = still(&paused).and_then(|still| {
                let taken = Taken::in_place(still, origin)?;
                Ok(snapshots::create(request, taken, origin, config)?)
            });
            paused.stay();
            created?
        };
        self.origin = Some(created);
        Ok(())
    }

    fn fork(&mut self, config: &Config) -> Result<ForkDescription, ControlError> {
        let Some(machine) = &mut self.machine else { return Err(ControlError::NoMachine) };
        self.forks.check(0).map_err(SnapshotError::from)?;
        let origin = self.origin.as_ref();
        let (taken, pause) = copy(machine, origin, FORK_COPIES)?;
        Ok(self.forks.hold(taken, origin, config, pause)?.clone())
    }

    fn forks(&self) -> Vec<ForkDescription> {
        self.forks.list().cloned().collect()
    }

    fn end_fork(&mut self, id: &str) -> Result<(), ControlError> {
        Ok(self.forks.let_go(id).map_err(SnapshotError::from)?)
    }

    fn record_working_set(&mut self, path: &Path, config: &Config) -> Result<(), ControlError> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let paused = machine.pause().map_err(ControlError::Pause)?;
        let recorded = match (&self.pager, &self.origin) {
            (Some(pager), Some(origin)) if pager.is_recording() => {
                snapshots::record_working_set(paused.memory(), pager, origin, config, path)
            }
            _ => Err(SnapshotError::NotRecording),
        };
        paused.stay();
        Ok(recorded?)
    }

    fn limit_network(&mut self, iface_id: &str, limits: Limits) {
        if let Some(machine) = &self.machine {
            machine.limit_network(iface_id, limits);
        }
    }

    fn restore(
        &mut self,
        mut hardware: Hardware,
        load: &Load,
        then: Then,
    ) -> Result<(), ControlError> {
        let on_terminal = hardware.devices.console == Console::Stdio;
        tracing::debug!("timeline: a snapshot is wanted");
        let origin = Origin::open(&load.snapshot_path, load.memory_path.as_deref(), &load.host)
            .map_err(SnapshotError::from)?;
        hardware.devices.layers = origin.disk_layers().map_err(SnapshotError::from)?;
        tracing::debug!("timeline: the snapshot is open");
        let mut pager = None;
        let fill = |memory: &Arc<GuestMemory>| -> Result<(), SnapshotError> {
            pager = snapshots::attach(memory, &origin, load, end_for_want_of_memory)?;
            Ok(())
        };
        let machine = Machine::restore(hardware, origin.machine_state(), fill, &self.wake, then)?;
        tracing::info!(snapshot = %origin.snapshot.id(), "the machine is restored");
        self.pager = pager;
        // On top of a base, it has copies of what is not the base's, written or not.
        let is_shared = load.pager_socket.is_some() && load.base.is_none();
        self.origin = Some(Origin { is_shared, ..origin });
        self.keep(machine, on_terminal);
        Ok(())
    }
}
