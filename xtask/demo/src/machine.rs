//! The microVMs of the demonstration: their configuration, processes and sockets.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rotifer_agent::{client::AgentClient, limits::AGENT_PORT};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// An emulated host boots a guest in a second, unless it shares its processors with much else.
const TIMEOUT: Duration = Duration::from_secs(300);
/// What the pager says when it can be used.
const PAGER_LISTENS: &str = "the pager listens";
/// What the VMM says when a machine goes on.
const RESTORED: &str = "the machine is restored";

enum Event {
    AgentServes,
    Restored,
    Ended,
}

/// What all machines of the demonstration share.
pub struct Stage {
    vmm: PathBuf,
    /// The example's configuration.
    config: Value,
    directory: TempDir,
}

impl Stage {
    /// Reads the configuration.
    pub fn prepare(vmm: PathBuf, config: &Path) -> Result<Self> {
        let directory = TempDir::new().context("cannot make a directory for sockets")?;
        let text = fs::read_to_string(config).with_context(|| format!("cannot read {config:?}"))?;
        let config =
            serde_json::from_str(&text).with_context(|| format!("{config:?} is no JSON"))?;
        Ok(Self { vmm, config, directory })
    }

    /// A path in the directory of the demonstration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Boots a machine; its console goes to our output, each line marked.
    pub fn boot(&self, name: &str) -> Result<Machine> {
        Machine::start(self, name, &[])
    }

    /// Has a new process take up the machine of a snapshot, whose memory comes through `pager`, if
    /// there is one.
    pub fn restore(&self, name: &str, snapshot: &Path, pager: Option<&Pager>) -> Result<Machine> {
        let mut arguments = vec!["--restore".as_ref(), snapshot.as_os_str()];
        if let Some(pager) = pager {
            arguments.extend(["--pager-sock".as_ref(), pager.socket.as_os_str()]);
        }
        Machine::start(self, name, &arguments)
    }

    /// Has a new process take up a child of a fork.
    pub fn restore_fork(&self, name: &str, fork: &Fork, pager: &Pager) -> Result<Machine> {
        let host_file = ["--host-file".as_ref(), fork.host_file_path.as_os_str()];
        let restore = ["--restore".as_ref(), fork.snapshot_path.as_os_str()];
        let share = ["--pager-sock".as_ref(), pager.socket.as_os_str()];
        Machine::start(self, name, &[restore, host_file, share].concat())
    }

    /// Starts the process that keeps what clones share.
    pub fn pager(&self) -> Result<Pager> {
        let socket = self.path("pager.sock");
        let mut command = Command::new(&self.vmm);
        command.args(["pager", "--socket"]).arg(&socket).stderr(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("cannot run {:?}", self.vmm))?;
        let messages = process.stderr.take().context("the pager has no messages")?;
        let pager = Pager { process, socket };
        let mut said = lines(messages);
        let listens = said.by_ref().any(|line| line.contains(PAGER_LISTENS));
        thread::spawn(move || said.for_each(|line| println!("pager | {line}")));
        if !listens {
            bail!("the pager ended; see above");
        }
        Ok(pager)
    }

    /// The configuration with a socket of its own.
    fn write_config(&self, name: &str, vsock: &Path) -> Result<PathBuf> {
        let mut config = self.config.clone();
        config["vsock"]["uds_path"] = vsock.to_string_lossy().into();
        let path = self.path(&format!("{name}.json"));
        fs::write(&path, config.to_string()).with_context(|| format!("cannot write {path:?}"))?;
        Ok(path)
    }
}

/// A fork of a machine, as its VMM describes it.
#[derive(Deserialize)]
pub struct Fork {
    snapshot_path: PathBuf,
    host_file_path: PathBuf,
    /// What it takes of the host's memory.
    pub held_bytes: u64,
    /// How long the machine stood still.
    pub pause_us: u64,
}

/// The process that keeps what clones share; dropping it kills the process.
pub struct Pager {
    process: Child,
    socket: PathBuf,
}

impl Pager {
    /// As [`Machine::memory_kib`].
    pub fn memory_kib(&self) -> Result<u64> {
        memory_kib(&self.process)
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let _it_may_have_ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// A microVM and the process that runs it; dropping it kills the process.
pub struct Machine {
    process: Child,
    events: Receiver<Event>,
    vsock: PathBuf,
    api: PathBuf,
}

impl Machine {
    /// With these arguments it takes up a snapshot; without any it boots.
    fn start(stage: &Stage, name: &str, arguments: &[&OsStr]) -> Result<Self> {
        let (vsock, api) =
            (stage.path(&format!("{name}.vsock")), stage.path(&format!("{name}.api")));
        let (sender, events) = mpsc::channel();
        announce_agent(&vsock, sender.clone())?;
        let mut command = Command::new(&stage.vmm);
        command.arg("--config-file").arg(stage.write_config(name, &vsock)?);
        command.arg("--api-sock").arg(&api).stdin(Stdio::null());
        let mut process = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {:?}", stage.vmm))?;
        let console = process.stdout.take().context("the VMM has no output")?;
        let messages = process.stderr.take().context("the VMM has no messages")?;
        let restored = sender.clone();
        thread::spawn(move || {
            for line in lines(messages) {
                if line.contains(RESTORED) {
                    let _nobody_waits = restored.send(Event::Restored);
                } else if !line.contains(" INFO ") {
                    println!("vmm   | {line}");
                }
            }
        });
        // Of a machine that goes on, the console has nothing new to tell.
        let is_shown = arguments.is_empty();
        thread::spawn(move || {
            lines(console).filter(|_| is_shown).for_each(|line| println!("guest | {line}"));
            let _nobody_waits = sender.send(Event::Ended);
        });
        Ok(Self { process, events, vsock, api })
    }

    /// A client of the guest's agent.
    pub fn agent(&self) -> AgentClient {
        AgentClient::over_vsock(&self.vsock, AGENT_PORT).with_timeout(TIMEOUT)
    }

    /// Waits until the guest's agent serves after a boot.
    pub fn await_agent(&self) -> Result<AgentClient> {
        self.await_event(|event| matches!(event, Event::AgentServes), "its agent served")
    }

    /// Waits until the machine goes on after a restore.
    pub fn await_restored(&self) -> Result<AgentClient> {
        self.await_event(|event| matches!(event, Event::Restored), "it was restored")
    }

    fn await_event(&self, is_it: impl Fn(&Event) -> bool, what: &str) -> Result<AgentClient> {
        loop {
            match self.events.recv_timeout(TIMEOUT) {
                Ok(event) if is_it(&event) => return Ok(self.agent()),
                Ok(Event::Ended) => bail!("the microVM ended before {what}; see above"),
                Ok(_) => {}
                Err(_) => bail!("{TIMEOUT:?} passed before {what}"),
            }
        }
    }

    /// Pauses the machine and writes a snapshot of it.
    pub fn suspend(&self, snapshot: &Path) -> Result<()> {
        let api = AgentClient::over_unix(&self.api).with_timeout(TIMEOUT);
        let create = json!({"snapshot_path": snapshot, "mem_file_path": snapshot.parent()});
        for (method, path, body) in
            [("PATCH", "/vm", json!({"state": "Paused"})), ("PUT", "/snapshot/create", create)]
        {
            let headers = [("Content-Type", "application/json")];
            api.request(method, path, &headers, body.to_string().as_bytes())
                .with_context(|| format!("the VMM refuses {method} {path}"))?;
        }
        Ok(())
    }

    /// Has the VMM hold a fork of the machine, which runs.
    pub fn fork(&self) -> Result<Fork> {
        let api = AgentClient::over_unix(&self.api).with_timeout(TIMEOUT);
        let answer = api.request("PUT", "/fork", &[], &[]).context("the VMM refuses PUT /fork")?;
        answer.json().context("the description of the fork is another one")
    }

    /// Ends the process with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().context("cannot kill the VMM")?;
        self.wait().map(drop)
    }

    /// Waits for the process to end by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait().context("cannot wait for the VMM")
    }

    /// Memory that this process has, with a share of what others have as well, in KiB.
    pub fn memory_kib(&self) -> Result<u64> {
        memory_kib(&self.process)
    }
}

fn memory_kib(process: &Child) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", process.id());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = pss.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("{path} does not tell"))
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _it_may_have_ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// The guest connects to this port of the host when its agent serves.
fn announce_agent(vsock: &Path, sender: Sender<Event>) -> Result<()> {
    let path = format!("{}_{AGENT_PORT}", vsock.display());
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {path}"))?;
    thread::spawn(move || {
        if listener.accept().is_ok() {
            let _nobody_waits = sender.send(Event::AgentServes);
        }
    });
    Ok(())
}

fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    let lines = BufReader::new(stream).split(b'\n').map_while(Result::ok);
    lines.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
}
