//! The build machine: a microVM that is thrown away after its stage.

use crate::cancel::{Cancel, Process};
use crate::network::PROXY_PORT;
use crate::proxy;
use crate::service::Service;
use crate::settings::Settings;
use crate::tail::Tail;
use rotifer_agent::client::{AgentClient, ClientError, ExecEvent, ExecStream};
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::limits::AGENT_PORT;
use rotifer_agent::process::Exit;
use rotifer_agent::process::spec::Capabilities;
use rotifer_build_worker::protocol::{
    CACHES, EXIT_DISK_FULL, EXIT_REFUSED, FORWARD_READY, Forward, Request, STATUS_FILE,
};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// How long a machine may take to boot: a busy, emulated one takes minutes.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// Where the worker is in the machine.
const WORKER: &str = "/run/build/worker";
/// Where the stage's root is mounted in the machine.
pub const ROOT: &str = "/run/build/root";
const STAGE_DEVICE: &str = "/dev/vdb";
const CACHES_DEVICE: &str = "/dev/vdc";
/// The first of the devices that are copied from.
const FIRST_SOURCE: u8 = b'd';
const FEED_BYTES: usize = 64 * 1024;
const CONSOLE_READ_BYTES: usize = 4 * 1024;

/// Why a machine did not do it.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host does not let us prepare or start it.
    #[error("cannot {attempt}")]
    Host {
        /// What was tried.
        attempt: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It did not come up, or ended.
    #[error("the build machine {what}; its last words: {tail}")]
    Dead {
        /// In what way.
        what: &'static str,
        /// The end of its console.
        tail: String,
    },
    /// Its agent has no good answer.
    #[error("the build machine's agent does not answer as it should")]
    Agent(#[from] ClientError),
    /// The disk of the stage is full.
    #[error("the root disk is full: {0}")]
    DiskFull(String),
    /// What was asked for cannot be done with these files.
    #[error("{0}")]
    Refused(String),
    /// The worker or a tool failed.
    #[error("the build machine failed: {0}")]
    Failed(String),
}

fn failed(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> MachineError {
    let attempt = attempt.into();
    move |source| MachineError::Host { attempt, source }
}

/// A piece of a command's output.
pub type Output<'a> = &'a mut dyn FnMut(&[u8]);

/// What a machine is started with.
#[derive(Debug)]
pub struct Drives<'a> {
    /// The disk of the stage.
    pub stage: &'a Path,
    /// The disk of `RUN --mount=type=cache`.
    pub caches: &'a Path,
    /// The disks that are copied from.
    pub sources: &'a [PathBuf],
}

/// A build machine that runs. Dropping it ends it.
pub struct Machine {
    process: Process,
    agent: AgentClient,
    console: Arc<Mutex<Tail>>,
    /// Ends with it: the forwarder.
    _forwarder: Option<ExecStream>,
    /// What it can connect to.
    _services: Vec<Service>,
    _directory: TempDir,
}

enum Event {
    Ready,
    Ended,
}

impl Machine {
    /// Boots a machine and prepares it: the worker, the mounts, the network. Its sockets are in `work`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(
        settings: &Settings,
        drives: &Drives,
        network: bool,
        work: &Path,
        cancel: &Cancel,
    ) -> Result<Self, MachineError> {
        let directory =
            TempDir::with_prefix_in("m", work).map_err(failed("make a directory for sockets"))?;
        let vsock = directory.path().join("v");
        let config = directory.path().join("vm.json");
        fs::write(&config, configuration(settings, drives, &vsock).to_string())
            .map_err(failed("write the machine's configuration"))?;
        let (sender, events) = mpsc::channel();
        let mut services = vec![await_ready(&vsock, sender.clone())?];
        if let Some(network) = settings.network.as_ref().filter(|_| network) {
            let socket = port_socket(&vsock, PROXY_PORT.into());
            let proxy = proxy::serve(&socket, Arc::new(network.clone()))
                .map_err(failed("serve the forward proxy"))?;
            services.push(proxy);
        }
        let process = launch(&settings.vmm, &config, &sender)?;
        cancel.watch(&process.0);
        let agent =
            AgentClient::over_vsock(&vsock, AGENT_PORT).with_timeout(settings.step_timeout());
        let mut machine = Self {
            process: process.0,
            agent,
            console: process.1,
            _forwarder: None,
            _services: services,
            _directory: directory,
        };
        machine.await_boot(&events)?;
        machine.install(&settings.worker)?;
        if network && settings.network.is_some() {
            machine.start_forwarder()?;
        }
        Ok(machine)
    }

    fn await_boot(&self, events: &Receiver<Event>) -> Result<(), MachineError> {
        let what = match events.recv_timeout(BOOT_TIMEOUT) {
            Ok(Event::Ready) => return Ok(()),
            Ok(Event::Ended) => "ended before it was ready",
            Err(_) => "did not boot in time",
        };
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        Err(MachineError::Dead {
            what,
            tail: console.text().lines().collect::<Vec<_>>().join(" | "),
        })
    }

    fn install(&self, worker: &Path) -> Result<(), MachineError> {
        self.tool("mkdir -p /run/build/root /run/build/caches /run/build/from")?;
        let file = File::open(worker).map_err(failed(format!("read {}", worker.display())))?;
        let length = file.metadata().map_err(failed("read the worker"))?.len();
        Ok(self.agent.put_file(Path::new(WORKER), "mode=755", file, length)?)
    }

    fn start_forwarder(&mut self) -> Result<(), MachineError> {
        let mut stream = self.start_worker(&Request::Forward(Forward { port: PROXY_PORT }))?;
        stream.close_stdin()?;
        let mut said = Tail::default();
        loop {
            match stream.next_event()? {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => said.push(&bytes),
                ExecEvent::Exit(_) => return Err(MachineError::Failed(said.text())),
            }
            if said.text().contains(FORWARD_READY) {
                self._forwarder = Some(stream);
                return Ok(());
            }
        }
    }

    /// Runs a script with the machine's own tools.
    ///
    /// # Errors
    /// It fails.
    pub fn tool(&self, script: &str) -> Result<(), MachineError> {
        let command = ["/bin/sh", "-ec", script].map(String::from).to_vec();
        let done = self.agent.exec(&request(command))?;
        match done.report.exit {
            Exit::Code(0) => Ok(()),
            exit => {
                let said = format!("{}{}", done.stdout, done.stderr);
                Err(MachineError::Failed(format!("{script}: {exit}: {}", said.trim())))
            }
        }
    }

    /// Makes a file system on the stage's disk, which is a fresh file of zeroes.
    ///
    /// # Errors
    /// The tool fails.
    pub fn format(&self) -> Result<(), MachineError> {
        // What a new file has not is zero, so that no table needs to be written.
        let options = "lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1,nodiscard";
        self.tool(&format!("mke2fs -q -F -t ext4 -m 0 -L root -E {options} {STAGE_DEVICE}"))
    }

    /// Mounts the stage's disk.
    ///
    /// # Errors
    /// It has no file system.
    pub fn mount(&self) -> Result<(), MachineError> {
        self.tool(&format!("mount -t ext4 -o noatime {STAGE_DEVICE} {ROOT}"))
    }

    /// Unmounts the stage's disk: its file is whole then, until it is mounted again.
    ///
    /// # Errors
    /// Something uses it.
    pub fn unmount(&self) -> Result<(), MachineError> {
        self.tool(&format!("umount {ROOT}"))
    }

    /// Mounts the disk of the caches, and makes its file system if it is new.
    ///
    /// # Errors
    /// A tool fails.
    pub fn mount_caches(&self) -> Result<(), MachineError> {
        let mount = format!("mount -t ext4 -o noatime {CACHES_DEVICE} {CACHES}");
        self.tool(&format!(
            "mountpoint -q {CACHES} || {mount} 2>/dev/null || {{ \
             mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=1,assume_storage_prezeroed=1,nodiscard \
             {CACHES_DEVICE} && {mount}; }}"
        ))
    }

    /// Unmounts what outlives the machine.
    ///
    /// # Errors
    /// Something uses it.
    pub fn unmount_caches(&self) -> Result<(), MachineError> {
        self.tool(&format!("if mountpoint -q {CACHES}; then umount {CACHES}; fi"))
    }

    /// Mounts a disk that is copied from; its root.
    ///
    /// # Errors
    /// It has no file system.
    pub fn mount_source(&self, number: usize) -> Result<String, MachineError> {
        let letter =
            char::from(FIRST_SOURCE + u8::try_from(number).unwrap_or(u8::MAX - FIRST_SOURCE));
        let point = format!("/run/build/from/{number}");
        self.tool(&format!(
            "mkdir -p {point}; mountpoint -q {point} || mount -t ext4 -o ro,noload /dev/vd{letter} {point}"
        ))?;
        Ok(point)
    }

    fn start_worker(&self, wish: &Request) -> Result<ExecStream, MachineError> {
        let mut stream = self.agent.exec_stream(&request(vec![WORKER.into()]))?;
        stream.write_stdin(&wish.encode())?;
        Ok(stream)
    }

    /// Has the worker do something, with `input` behind the request.
    ///
    /// # Errors
    /// It does not.
    pub fn work(
        &self,
        wish: &Request,
        input: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
        output: Output,
    ) -> Result<(), MachineError> {
        let mut stream = self.start_worker(wish)?;
        let mut feed = Feed { stream: &mut stream, broken: None };
        let fed = input(&mut io::BufWriter::with_capacity(FEED_BYTES, &mut feed));
        let broken = feed.broken.take();
        if broken.is_none() {
            fed.map_err(failed("read what is copied"))?;
            stream.close_stdin()?;
        }
        // A worker that ended early broke the stream, and says why.
        let mut last_words = Tail::default();
        loop {
            match stream.next_event() {
                Ok(ExecEvent::Stdout(bytes)) => output(&bytes),
                Ok(ExecEvent::Stderr(bytes)) => {
                    output(&bytes);
                    last_words.push(&bytes);
                }
                Ok(ExecEvent::Exit(report)) => return judge(report.exit, &last_words.text()),
                Err(error) => return Err(broken.unwrap_or(error).into()),
            }
        }
    }

    /// How the last command that the worker ran has ended.
    ///
    /// # Errors
    /// The agent does not know.
    pub fn status(&self) -> Result<i32, MachineError> {
        let mut text = Vec::new();
        self.agent.get_file(Path::new(STATUS_FILE), &mut text)?;
        let number = String::from_utf8_lossy(&text).trim().parse();
        number.map_err(|_| MachineError::Failed("the worker left no status".into()))
    }
}

fn judge(exit: Exit, last_words: &str) -> Result<(), MachineError> {
    let last = last_words.trim().lines().last().unwrap_or_default().to_owned();
    match exit {
        Exit::Code(0) => Ok(()),
        Exit::Code(EXIT_DISK_FULL) => Err(MachineError::DiskFull(last)),
        Exit::Code(EXIT_REFUSED) => Err(MachineError::Refused(last)),
        exit => Err(MachineError::Failed(format!("{exit}: {last}"))),
    }
}

/// A command's standard input.
struct Feed<'a> {
    stream: &'a mut ExecStream,
    broken: Option<ClientError>,
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write_stdin(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.broken = Some(error);
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, and nothing of it is needed any more.
        let _ = self.process.end();
    }
}

fn request(command: Vec<String>) -> ExecRequest {
    let (user, capabilities) = (Some("root".into()), Some(Capabilities::All));
    ExecRequest { command, user, capabilities, ..ExecRequest::default() }
}

fn configuration(settings: &Settings, drives: &Drives, vsock: &Path) -> Value {
    let drive = |id: &str, path: &Path, is_read_only: bool| {
        json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false,
            "is_read_only": is_read_only, "cache_type": "Writeback",
        })
    };
    let mut all = vec![
        drive("builder", &settings.builder_disk, true),
        drive("stage", drives.stage, false),
        drive("caches", drives.caches, false),
    ];
    let sources = drives.sources.iter().enumerate();
    all.extend(sources.map(|(number, path)| drive(&format!("source-{number}"), path, true)));
    json!({
        "boot-source": {
            "kernel_image_path": settings.kernel,
            "initrd_path": settings.initramfs,
            "boot_args": "quiet console=ttyS0 panic=-1 rotifer.root=/dev/vda ro",
        },
        "drives": all,
        "machine-config": {
            "vcpu_count": settings.vcpu_count, "mem_size_mib": settings.memory_mib,
        },
        "vsock": { "guest_cid": 3, "uds_path": vsock },
        "entropy": {},
    })
}

fn port_socket(vsock: &Path, port: u32) -> PathBuf {
    PathBuf::from(format!("{}_{port}", vsock.display()))
}

/// The guest's agent connects to the host when it serves.
fn await_ready(vsock: &Path, sender: Sender<Event>) -> Result<Service, MachineError> {
    let ready = move |_connection| {
        let _nobody_waits = sender.send(Event::Ready);
    };
    Service::start(&port_socket(vsock, AGENT_PORT), ready).map_err(failed("listen for the agent"))
}

/// Starts the VMM, which ends with the thread that started it, and what collects its output.
fn launch(
    vmm: &Path,
    config: &Path,
    sender: &Sender<Event>,
) -> Result<(Process, Arc<Mutex<Tail>>), MachineError> {
    let mut command = Command::new(vmm);
    command.arg("--config-file").arg(config).arg("--no-api");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = std::process::id();
    let end_with_parent = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have been killed before it could be said.
        let is_there =
            rustix::process::getppid().is_some_and(|it| it.as_raw_pid() as u32 == parent);
        if is_there { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(end_with_parent) };
    let mut child = command.spawn().map_err(failed(format!("run {}", vmm.display())))?;
    let console = Arc::<Mutex<Tail>>::default();
    let streams = [
        child.stdout.take().map(|it| Box::new(it) as Box<dyn Read + Send>),
        child.stderr.take().map(|it| Box::new(it) as Box<dyn Read + Send>),
    ];
    for stream in streams.into_iter().flatten() {
        collect(stream, Arc::clone(&console), sender.clone());
    }
    Ok((Process::new(child), console))
}

/// Keeps the end of a stream, and says when it ends.
fn collect(mut stream: impl Read + Send + 'static, into: Arc<Mutex<Tail>>, sender: Sender<Event>) {
    thread::spawn(move || {
        let mut buffer = [0; CONSOLE_READ_BYTES];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let mut console = into.lock().unwrap_or_else(PoisonError::into_inner);
            console.push(buffer.get(..count).unwrap_or_default());
        }
        let _nobody_waits = sender.send(Event::Ended);
    });
}
