//! A microVM under measurement: its configuration, its process, its sockets.
//!
//! Nothing here knows which VMM it is: all are started with Firecracker's configuration file and say
//! that the guest is ready in the same way, by the agent's connection to the host's vsock port 1024,
//! which arrives on the Unix socket `<uds>_1024`. Waiting for it is no polling.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rotifer_agent::client::AgentClient;
use rotifer_agent::limits::AGENT_PORT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::Setup;

/// How long any single event may take. An emulated host may be very slow.
pub const DEADLINE: Duration = Duration::from_secs(600);
/// The guest's context id.
const GUEST_CID: u32 = 3;
/// The guest's Ethernet address.
const GUEST_MAC: &str = "06:00:0a:4d:01:02";
/// What a VMM's messages are called, in its directory.
pub const LOG: &str = "log";
/// How much of a log a failure shows.
const LOG_TAIL_BYTES: usize = 3000;

/// What kind of machine to start.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Guest RAM.
    pub memory_mib: u64,
    /// The kernel's command line.
    pub boot_args: String,
    /// /dev/vda, /dev/vdb, ...
    pub drives: Vec<Drive>,
    /// eth0 on this tap of the host
    pub tap: Option<&'static str>,
}

impl Machine {
    /// One vCPU, 128 MiB, a quiet serial console, no disk: as small as machines get here.
    pub fn small() -> Self {
        let boot_args = "quiet console=ttyS0 reboot=k panic=-1".into();
        Self { memory_mib: 128, boot_args, drives: Vec::new(), tap: None }
    }

    /// The same with one more disk.
    pub fn drive(mut self, path: &Path, read_only: bool) -> Self {
        self.drives.push(Drive { path: path.into(), read_only, io_engine: "Sync" });
        self
    }

    /// The same with one more disk, through io_uring.
    pub fn async_drive(mut self, path: &Path) -> Self {
        self.drives.push(Drive { path: path.into(), read_only: false, io_engine: "Async" });
        self
    }

    /// The same with eth0 on this tap of the host.
    pub fn tap(mut self, name: &'static str) -> Self {
        self.tap = Some(name);
        self
    }

    /// The same with more words for the kernel and the agent.
    pub fn words(mut self, words: &str) -> Self {
        self.boot_args = format!("{} {words}", self.boot_args);
        self
    }

    /// Guest RAM in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib << 20
    }

    /// Firecracker's configuration file.
    pub fn config(&self, kernel: &Path, initramfs: &Path, vsock: &Path) -> Value {
        let drive = |(index, drive): (usize, &Drive)| {
            json!({
                "drive_id": format!("disk{index}"),
                "path_on_host": drive.path,
                "is_root_device": false,
                "is_read_only": drive.read_only,
                "io_engine": drive.io_engine,
            })
        };
        let mut config = json!({
            "boot-source": {
                "kernel_image_path": kernel,
                "initrd_path": initramfs,
                "boot_args": self.boot_args,
            },
            "drives": self.drives.iter().enumerate().map(drive).collect::<Vec<_>>(),
            "machine-config": { "vcpu_count": 1, "mem_size_mib": self.memory_mib },
            "vsock": { "guest_cid": GUEST_CID, "uds_path": vsock },
        });
        if let Some(tap) = self.tap {
            let interface =
                json!({ "iface_id": "eth0", "guest_mac": GUEST_MAC, "host_dev_name": tap });
            config["network-interfaces"] = json!([interface]);
        }
        config
    }
}

/// A raw disk.
#[derive(Debug, Clone)]
pub struct Drive {
    path: PathBuf,
    read_only: bool,
    /// `Sync` or `Async`.
    io_engine: &'static str,
}

/// A VMM that runs. Dropping it kills it.
pub struct Vm {
    process: Process,
    ready: UnixListener,
    directory: TempDir,
}

impl Vm {
    /// Starts a machine.
    ///
    /// # Errors
    /// An artifact is missing, or the host refuses.
    pub fn start(setup: &Setup, program: &Path, machine: &Machine) -> Result<Self> {
        let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
        let (kernel, initramfs) = (setup.artifacts.kernel()?, setup.artifacts.initramfs()?);
        let config = machine.config(&kernel, &initramfs, &vsock_path(directory.path()));
        let file = directory.path().join("vm.json");
        fs::write(&file, config.to_string()).context("cannot write the machine's configuration")?;
        let ready = listen(&vsock_path(directory.path()), AGENT_PORT)?;
        let mut command = Command::new(program);
        command.arg("--config-file").arg(&file).arg("--no-api");
        let process = Process::start(command, directory.path())?;
        Ok(Self { process, ready, directory })
    }

    /// Waits until the agent says that it serves; the time since the process was started.
    ///
    /// # Errors
    /// The VMM ends or the deadline passes first.
    pub fn wait_until_ready(&self) -> Result<Duration> {
        self.process.wait_for(&self.ready, "the guest was ready")?;
        let elapsed = self.process.started.elapsed();
        self.ready.accept().context("cannot accept the agent's connection")?;
        Ok(elapsed)
    }

    /// A client of the agent.
    pub fn agent(&self) -> AgentClient {
        AgentClient::over_vsock(vsock_path(self.directory.path()), AGENT_PORT)
            .with_timeout(DEADLINE)
    }

    /// Listens for the guest's connections to a port of the host; also returns on which socket.
    ///
    /// # Errors
    /// The host refuses.
    pub fn listen(&self, port: u32) -> Result<(UnixListener, PathBuf)> {
        let vsock = vsock_path(self.directory.path());
        Ok((listen(&vsock, port)?, port_path(&vsock, port)))
    }

    /// The VMM's process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn vsock_path(directory: &Path) -> PathBuf {
    directory.join("v.sock")
}

fn open_log(directory: &Path) -> Result<File> {
    let log = File::options().create(true).append(true).open(directory.join(LOG));
    log.context("cannot create the machine's log")
}

/// Firecracker's name for a port of the host.
fn port_path(vsock: &Path, port: u32) -> PathBuf {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Listens for connections of the guest whose vsock device has this socket.
///
/// # Errors
/// The host refuses.
pub fn listen(vsock: &Path, port: u32) -> Result<UnixListener> {
    let path = port_path(vsock, port);
    UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
}

/// A process of a VMM. Dropping it kills it.
pub struct Process {
    child: Child,
    ended: OwnedFd,
    log: PathBuf,
    /// The moment before it was started.
    pub started: Instant,
}

impl Process {
    /// Starts a VMM. Console and messages go to a file: nobody has to run in order to read them.
    ///
    /// # Errors
    /// The host refuses.
    pub fn start(command: Command, directory: &Path) -> Result<Self> {
        let log = open_log(directory)?;
        Self::start_with_output(command, directory, log.into())
    }

    /// The same with another place for the console.
    ///
    /// # Errors
    /// The host refuses.
    pub fn start_with_output(
        mut command: Command,
        directory: &Path,
        stdout: Stdio,
    ) -> Result<Self> {
        let stderr = open_log(directory)?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let started = Instant::now();
        let child = command.spawn().with_context(|| {
            format!("cannot start {}", Path::new(command.get_program()).display())
        })?;
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let ended = ended.context("cannot watch the machine's process")?;
        Ok(Self { child, ended, log: directory.join(LOG), started })
    }

    /// Readable when the process has ended.
    pub fn ended(&self) -> &OwnedFd {
        &self.ended
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `event` is readable, which is when `what` is true.
    ///
    /// # Errors
    /// The process ends or the deadline passes first.
    pub fn wait_for(&self, event: &impl AsFd, what: &str) -> Result<()> {
        let mut polled =
            [PollFd::new(event, PollFlags::IN), PollFd::new(&self.ended, PollFlags::IN)];
        let deadline = Timespec::try_from(DEADLINE).context("the deadline is no time")?;
        poll(&mut polled, Some(&deadline)).context("cannot wait")?;
        let [event, ended] = polled.map(|fd| !fd.revents().is_empty());
        match (event, ended) {
            (true, _) => Ok(()),
            (false, true) => bail!("the VMM ended before {what}; its output:\n{}", self.log()),
            (false, false) => bail!("it took too long until {what}; the output:\n{}", self.log()),
        }
    }

    /// Accepts one connection.
    ///
    /// # Errors
    /// The process ends or the deadline passes first.
    pub fn accept(&self, listener: &UnixListener) -> Result<UnixStream> {
        self.wait_for(listener, "the guest connected")?;
        let (stream, _) = listener.accept().context("cannot accept the guest's connection")?;
        stream.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
        stream.set_write_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
        Ok(stream)
    }

    /// An error with what the machine printed.
    pub fn explain(&self, error: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{error}; the output of the machine:\n{}", self.log())
    }

    /// The end of its messages, and of its console if that goes to the same place.
    pub fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let start = log.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(log.get(start..).unwrap_or_default()).trim_end().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; nothing is measured any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_firecrackers() {
        let machine = Machine::small().drive(Path::new("/d"), true).words("ro");
        let config = machine.config(Path::new("/k"), Path::new("/i"), Path::new("/v"));
        let expected = json!({
            "boot-source": {
                "kernel_image_path": "/k",
                "initrd_path": "/i",
                "boot_args": "quiet console=ttyS0 reboot=k panic=-1 ro",
            },
            "drives": [{
                "drive_id": "disk0", "path_on_host": "/d",
                "is_root_device": false, "is_read_only": true, "io_engine": "Sync",
            }],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
            "vsock": { "guest_cid": 3, "uds_path": "/v" },
        });
        assert_eq!(config, expected);
    }

    #[test]
    fn a_vmm_that_ends_early_is_reported_with_what_it_said() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo no such kernel >&2; exit 1"]);
        let process = Process::start(command, directory.path()).unwrap();
        let listener = listen(&vsock_path(directory.path()), AGENT_PORT).unwrap();
        let error = process.wait_for(&listener, "the guest was ready").unwrap_err().to_string();
        assert!(error.contains("ended before the guest was ready"), "{error}");
        assert!(error.contains("no such kernel"), "{error}");
    }

    #[test]
    fn a_program_that_cannot_be_started_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let started = Process::start(Command::new("/no/vmm"), directory.path());
        assert!(started.err().unwrap().to_string().contains("/no/vmm"));
    }
}
