//! The small guest whose snapshots are measured (`guest/probe.rs` is its inside), driven over
//! Firecracker's API: booted, asked over vsock, suspended and restored, whichever VMM it is.

pub mod client;
mod console;
mod initramfs;
pub mod mapping;
mod uffd;
mod web_app;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::{Api, SocketWatch};
use crate::bench::{Setup, Subject};
use crate::guest::{PAGE_BYTES, ProbeLoad};
use crate::record::Side;
use crate::vm::{DEADLINE, LOG, Machine, Process};
use client::Client;
use console::Console;

/// Relative to the directory in which the VMM runs: clones have the same, and yet their own.
const VSOCK: &str = "v.sock";
const STATE: &str = "vm.snap";
const MEMORY: &str = "vm.mem";
/// Of the handler of page faults.
const HANDLER: &str = "uffd.sock";
/// The state once more, with what was touched after a restore.
const RECORDED: &str = "vm-ws.snap";

/// What kind of guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Guest RAM.
    pub memory_mib: u64,
    /// How much of it the guest fills with data that it touches later.
    pub data_mib: usize,
}

/// What is to be in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything.
    Full,
    /// What has changed since the machine was restored.
    Diff,
}

/// A guest that runs. Dropping it kills its VMM.
pub struct Probe {
    process: Process,
    console: Console,
    api: Api,
    directory: TempDir,
    /// Serves its page faults, if the VMM wants somebody to.
    _handler: Option<uffd::Handler>,
    /// Its end takes the kernel some ms (an inotify instance waits for SRCU), and nobody shall
    /// measure that.
    _watch: SocketWatch,
}

/// A snapshot of a guest that will say something when it goes on.
pub struct Snapshot {
    directory: TempDir,
}

/// How a VMM restores.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Added to the command line.
    pub words: Vec<String>,
    /// An object that is added to the body of `PUT /snapshot/load`, or null.
    pub load: Value,
    /// The process that has memory for all machines, if there is one.
    pub pager: Option<u32>,
    /// Whether the snapshot is told to say what will be needed; it must have been recorded.
    pub with_working_set: bool,
    /// Whether page faults are served by a handler of ours, in Firecracker's way.
    pub with_handler: bool,
    /// Whether it serves a machine of this snapshot for the first time.
    pub is_first: bool,
}

/// What happened after a restoring process was started.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// Its API could be connected to.
    pub api_ready: Duration,
    /// It answered the request to load and go on.
    pub loaded: Duration,
    /// The guest said something by itself.
    pub answered: Duration,
    /// When all that began, on the clock of logs.
    pub started: SystemTime,
}

impl Shape {
    /// The pages of its data.
    pub fn pages(self) -> usize {
        self.data_mib * MIB_PAGES
    }
}

/// Pages of a MiB.
pub const MIB_PAGES: usize = (1 << 20) / PAGE_BYTES;

impl Probe {
    /// Boots one and waits until it has filled its memory.
    ///
    /// # Errors
    /// An artifact is missing, the host refuses, or the machine ends.
    pub fn boot(setup: &Setup, program: &Path, shape: Shape) -> Result<Self> {
        let initramfs = initramfs::make(setup.scratch())?;
        let load = ProbeLoad { pages: shape.pages() };
        let machine = Machine { memory_mib: shape.memory_mib, ..Machine::small() };
        let machine = machine.words(&format!("-- {}", load.words()));
        let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
        let mut probe = Self::start(setup, program, &machine, &initramfs, directory)?;
        probe.console.wait_for_mark(&probe.process).context("the guest did not boot")?;
        Ok(probe)
    }

    fn start(
        setup: &Setup,
        program: &Path,
        machine: &Machine,
        initramfs: &Path,
        directory: TempDir,
    ) -> Result<Self> {
        let config = machine.config(&setup.artifacts.kernel()?, initramfs, Path::new(VSOCK));
        let file = directory.path().join("vm.json");
        fs::write(&file, config.to_string()).context("cannot write the machine's configuration")?;
        let watch = SocketWatch::new(directory.path())?;
        let mut command = Command::new(program);
        command.arg("--config-file").arg(&file);
        let (process, console) = launch(command, directory.path(), &watch)?;
        let api = watch.wait(&process)?;
        Ok(Self { process, console, api, directory, _handler: None, _watch: watch })
    }

    /// Connects to the guest.
    ///
    /// # Errors
    /// It does not take the connection.
    pub fn connect(&self) -> Result<Client> {
        Client::open(&self.directory.path().join(VSOCK))
            .map_err(|error| self.console.explain(&self.process, &error))
    }

    /// Stops it; how long that took.
    ///
    /// # Errors
    /// The VMM refuses.
    pub fn pause(&mut self) -> Result<Duration> {
        let body = json!({"state": "Paused"});
        self.request("PATCH", "/vm", &body)
    }

    /// Writes a snapshot of a guest that stands still; how long that took.
    ///
    /// # Errors
    /// The VMM refuses.
    pub fn create(&mut self, setup: &Setup, kind: Kind) -> Result<(Snapshot, Duration)> {
        let (snapshot, body) = Snapshot::new(setup, kind)?;
        let elapsed = self.request("PUT", "/snapshot/create", &body)?;
        Ok((snapshot, elapsed))
    }

    /// Writes what has changed while the guest runs; how long that took. Our VMM knows how to.
    ///
    /// # Errors
    /// The VMM refuses.
    pub fn create_live(&mut self, setup: &Setup) -> Result<Duration> {
        let (_snapshot, mut body) = Snapshot::new(setup, Kind::Diff)?;
        body["live"] = true.into();
        self.request("PUT", "/snapshot/create", &body)
    }

    /// Has the VMM hold a fork of the guest, which runs. Our VMM knows how to.
    ///
    /// # Errors
    /// The VMM refuses.
    pub fn fork(&mut self) -> Result<Fork> {
        let answered = self.api.request("PUT", "/fork", None);
        let answer = answered.map_err(|error| self.console.explain(&self.process, &error))?;
        Ok(Fork(serde_json::from_str(&answer).context("the description of a fork is no JSON")?))
    }

    fn request(&mut self, method: &str, path: &str, body: &Value) -> Result<Duration> {
        let start = Instant::now();
        let answered = self.api.request(method, path, Some(body));
        let elapsed = start.elapsed();
        answered.map_err(|error| self.console.explain(&self.process, &error))?;
        Ok(elapsed)
    }

    /// The id of the VMM's process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How long ago it was started.
    pub fn elapsed(&self) -> Duration {
        self.process.started.elapsed()
    }

    /// What the VMM has written to its log.
    ///
    /// # Errors
    /// There is none.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.directory.path().join(LOG)).context("cannot read the VMM's log")
    }
}

/// A fork of a guest, as its VMM describes it.
pub struct Fork(Value);

impl Fork {
    /// How long the guest stood still.
    pub fn pause(&self) -> Duration {
        Duration::from_micros(self.0["pause_us"].as_u64().unwrap_or_default())
    }

    /// Begins a restore of a child.
    ///
    /// # Errors
    /// The host refuses.
    pub fn start_restore(
        &self,
        setup: &Setup,
        program: &Path,
        options: &Options,
    ) -> Result<Restoring> {
        let Self(fork) = self;
        let load = json!({
            "snapshot_path": fork["snapshot_path"],
            "host_file_path": fork["host_file_path"],
            "resume_vm": true,
        });
        Restoring::start(setup, program, options, load)
    }
}

impl Snapshot {
    /// A place for one, and the body of the request that writes it.
    fn new(setup: &Setup, kind: Kind) -> Result<(Self, Value)> {
        let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
        let snapshot = Self { directory };
        let body = json!({
            "snapshot_type": match kind { Kind::Full => "Full", Kind::Diff => "Diff" },
            "snapshot_path": snapshot.path(STATE),
            "mem_file_path": snapshot.path(MEMORY),
        });
        Ok((snapshot, body))
    }

    /// Boots a guest and suspends it while it waits on a connection.
    ///
    /// # Errors
    /// See [`Probe::boot`] and [`Probe::create`].
    pub fn of(setup: &Setup, program: &Path, shape: Shape) -> Result<Self> {
        let mut probe = Probe::boot(setup, program, shape)?;
        // Whose loss wakes it when it goes on.
        let mut client = probe.connect()?;
        client.ask(&crate::guest::Touch::nothing())?;
        probe.pause()?;
        Ok(probe.create(setup, Kind::Full)?.0)
    }

    /// How a snapshot that was written on top of this one is restored where this one's memory is shared.
    pub fn below(&self, options: &Options) -> Options {
        let mut options = options.clone();
        if options.pager.is_some() {
            options.load["base_snapshot_path"] = json!(self.path(STATE));
        }
        options
    }

    /// Restores it, has `work` use the machine, and remembers what memory that takes. Only our
    /// VMM knows how to; of a peer nothing is recorded.
    ///
    /// # Errors
    /// The VMM refuses, or those of `work`.
    pub fn record(
        &self,
        setup: &Setup,
        subject: &Subject,
        work: impl FnOnce(&Probe) -> Result<()>,
    ) -> Result<()> {
        if subject.side == Side::Peer {
            return Ok(());
        }
        let mut load = mapping::vsock_override(&subject.program)?;
        load["record_working_set"] = true.into();
        let options = Options { load, ..Options::default() };
        let (mut probe, _) = self.start_restore(setup, &subject.program, &options)?.load()?;
        work(&probe)?;
        probe.pause()?;
        let body = json!({ "snapshot_path": self.path(RECORDED) });
        probe.request("PUT", "/snapshot/working-set", &body).map(drop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What its files take on the disk; holes do not count.
    ///
    /// # Errors
    /// They cannot be looked at.
    pub fn bytes(&self) -> Result<u64> {
        const SECTOR_BYTES: u64 = 512;
        let mut bytes = 0;
        for entry in fs::read_dir(self.directory.path()).context("cannot list a snapshot")? {
            let metadata = entry.and_then(|entry| entry.metadata());
            bytes += metadata.context("cannot look at a snapshot")?.blocks() * SECTOR_BYTES;
        }
        Ok(bytes)
    }

    /// Has a new process take it up, and waits until the guest has said something.
    ///
    /// # Errors
    /// The VMM refuses, ends, or the guest says nothing.
    pub fn restore(
        &self,
        setup: &Setup,
        program: &Path,
        options: &Options,
    ) -> Result<(Probe, Moments)> {
        self.start_restore(setup, program, options)?.finish()
    }

    /// As [`Self::restore`], but only begins it.
    ///
    /// # Errors
    /// The host refuses.
    pub fn start_restore(
        &self,
        setup: &Setup,
        program: &Path,
        options: &Options,
    ) -> Result<Restoring> {
        let load = json!({
            "snapshot_path": self.path(if options.with_working_set { RECORDED } else { STATE }),
            "mem_backend": { "backend_type": "File", "backend_path": self.path(MEMORY) },
            "track_dirty_pages": true,
            "resume_vm": true,
        });
        Restoring::start(setup, program, options, load)
    }
}

/// A process that is about to restore a guest.
pub struct Restoring {
    process: Process,
    console: Console,
    watch: SocketWatch,
    directory: TempDir,
    handler: Option<uffd::Handler>,
    load: Value,
    wall: SystemTime,
}

impl Restoring {
    /// Starts one that will be asked for `load`, and what the options add to that.
    fn start(setup: &Setup, program: &Path, options: &Options, mut load: Value) -> Result<Self> {
        let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
        if let (Value::Object(load), Value::Object(more)) = (&mut load, &options.load) {
            load.extend(more.clone());
        }
        let handler = options.with_handler.then(|| {
            let socket = directory.path().join(HANDLER);
            let served = json!({ "backend_type": "Uffd", "backend_path": socket });
            let file = std::mem::replace(&mut load["mem_backend"], served);
            let memory = file["backend_path"].as_str().context("a handler serves a file")?;
            uffd::Handler::listen(&socket, Path::new(memory))
        });
        let handler = handler.transpose()?;
        let watch = SocketWatch::new(directory.path())?;
        let mut command = Command::new(program);
        command.args(&options.words);
        let wall = SystemTime::now();
        let (process, console) = launch(command, directory.path(), &watch)?;
        Ok(Self { process, console, watch, directory, handler, load, wall })
    }

    /// Asks it to, and waits for its answer; how long after the process was started that was.
    ///
    /// # Errors
    /// The VMM refuses or ends.
    pub fn load(self) -> Result<(Probe, Duration)> {
        let Self { process, console, watch, directory, handler, load, .. } = self;
        let api = watch.wait(&process)?;
        let mut probe =
            Probe { process, console, api, directory, _handler: handler, _watch: watch };
        probe.request("PUT", "/snapshot/load", &load)?;
        let loaded = probe.elapsed();
        Ok((probe, loaded))
    }

    /// Asks it to, and waits until the guest has said something.
    ///
    /// # Errors
    /// The VMM refuses, ends, or the guest says nothing.
    pub fn finish(self) -> Result<(Probe, Moments)> {
        let Self { process, mut console, watch, directory, handler, load, wall } = self;
        let started = process.started;
        let mut api = watch.wait(&process)?;
        let api_ready = started.elapsed();
        api.send("PUT", "/snapshot/load", Some(&load))?;
        let (mut loaded, mut answered) = (None, None);
        let (loaded, answered) = loop {
            if let (Some(loaded), Some(answered)) = (loaded, answered) {
                break (loaded, answered);
            }
            let [api_moves, console_moves] =
                either(&process, loaded.is_none().then_some(&api), &console)?;
            let now = started.elapsed();
            if api_moves {
                api.receive().map_err(|error| console.explain(&process, &error))?;
                loaded = Some(now);
            }
            if console_moves && console.read_mark(&process)? && answered.is_none() {
                answered = Some(now);
            }
        };
        let moments = Moments { api_ready, loaded, answered, started: wall };
        let probe = Probe { process, console, api, directory, _handler: handler, _watch: watch };
        Ok((probe, moments))
    }
}

/// Starts a VMM in a directory, with its API where `watch` sees it.
fn launch(
    mut command: Command,
    directory: &Path,
    watch: &SocketWatch,
) -> Result<(Process, Console)> {
    let (console, writer) = Console::new()?;
    command.arg("--api-sock").arg(watch.socket()).current_dir(directory);
    let process = Process::start_with_output(command, directory, writer.into())?;
    Ok((process, console))
}

/// Waits until the API or the console has something to say, and tells which.
fn either(process: &Process, api: Option<&Api>, console: &Console) -> Result<[bool; 2]> {
    let mut polled =
        vec![PollFd::new(console, PollFlags::IN), PollFd::new(process.ended(), PollFlags::IN)];
    polled.extend(api.map(|api| PollFd::from_borrowed_fd(api.as_fd(), PollFlags::IN)));
    let deadline = Timespec::try_from(DEADLINE).context("the deadline is no time")?;
    poll(&mut polled, Some(&deadline)).context("cannot wait")?;
    let moves: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
    match *moves.as_slice() {
        [console, _, api] if console || api => Ok([api, console]),
        [true, _] => Ok([false, true]),
        [_, true, ..] => bail!(console.explain(process, &"the VMM ended while it restored")),
        _ => bail!(console.explain(process, &"the restored guest says nothing")),
    }
}
