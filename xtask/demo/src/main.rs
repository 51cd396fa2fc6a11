//! What `./x demo` runs on the host: a microVM with the example web app, from outside.
//!
//! It waits for events only: the agent connects to the host when it serves, and the app's log says
//! when the app listens.

mod timeline;

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::FileExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rotifer_agent::{agent::ShutdownMode, client::AgentClient, limits::AGENT_PORT};
use serde_json::Value;
use tempfile::TempDir;

use crate::timeline::Timeline;

/// An emulated host boots a guest in a second, unless it shares its processors with much else.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Where the app listens inside the guest.
const APP: &str = "127.0.0.1:8080";
/// What gunicorn says once connections are taken.
const LISTENING: &str = "Listening at";
const REQUEST_COUNT: usize = 3;
/// Set on the emulated host, which sees the checkout through a slow share.
const EMULATED: &str = "ROTIFER_HOST";
const COPY_BYTES: usize = 1 << 20;

enum Event {
    AgentServes,
    Ended,
}

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (Some(vmm), Some(config)) = (arguments.next(), arguments.next()) else {
        bail!("usage: rotifer-demo VMM CONFIG");
    };
    let directory = TempDir::new().context("cannot make a directory for sockets")?;
    let socket = directory.path().join("vsock");
    let config = adapt(&config, &socket, directory.path())?;
    let (sender, events) = mpsc::channel();
    announce_agent(&socket, sender.clone())?;

    let mut timeline = Timeline::start();
    let mut machine = Machine::start(&vmm, &config, sender)?;
    timeline.note("the VMM's process exists");
    match events.recv_timeout(TIMEOUT) {
        Ok(Event::AgentServes) => timeline.note("the agent in the guest serves"),
        Ok(Event::Ended) => bail!("the microVM ended before its agent served; see above"),
        Err(_) => bail!("the agent in the guest did not serve within {TIMEOUT:?}"),
    }
    let agent = AgentClient::over_vsock(&socket, AGENT_PORT).with_timeout(TIMEOUT);
    let health = agent.health().context("cannot ask the agent for its health")?;
    await_app(&agent)?;
    timeline.note("the web app listens");
    for number in 1..=REQUEST_COUNT {
        let asked = Instant::now();
        let answer = get(&agent)?;
        if number == 1 {
            timeline.note("the web app has answered its first request");
        }
        let milliseconds = asked.elapsed().as_secs_f64() * 1e3;
        println!("GET / through vsock -> {} ({milliseconds:.1} ms)", answer.trim());
    }
    timeline.add_guest(&health["timeline"]);
    agent.shutdown(ShutdownMode::Poweroff).context("cannot shut the guest down")?;
    let status = machine.wait()?;
    timeline.note("the guest has shut down and the VMM has ended");
    println!("\n{timeline}");
    println!("The VMM ended with {status}.");
    if !status.success() {
        bail!("that should have been a success");
    }
    Ok(())
}

/// The example's configuration, with a socket of our own: a second demonstration may run.
fn adapt(config: &Path, socket: &Path, directory: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(config).with_context(|| format!("cannot read {config:?}"))?;
    let mut value: Value =
        serde_json::from_str(&text).with_context(|| format!("{config:?} is no JSON"))?;
    value["vsock"]["uds_path"] = socket.to_string_lossy().into();
    if env::var_os(EMULATED).is_some() {
        for drive in value["drives"].as_array_mut().into_iter().flatten() {
            let path = PathBuf::from(drive["path_on_host"].as_str().unwrap_or_default());
            drive["path_on_host"] = staged(&path, directory)?.to_string_lossy().into();
        }
    }
    let adapted = directory.join("config.json");
    fs::write(&adapted, value.to_string()).with_context(|| format!("cannot write {adapted:?}"))?;
    Ok(adapted)
}

/// A copy in memory: each read of a disk from the shared checkout would be a round trip.
fn staged(disk: &Path, directory: &Path) -> Result<PathBuf> {
    let copy = directory.join(disk.file_name().unwrap_or_default());
    let copying = || format!("cannot copy {disk:?} to {copy:?}");
    let (mut from, to) =
        (File::open(disk).with_context(copying)?, File::create(&copy).with_context(copying)?);
    let mut piece = vec![0; COPY_BYTES];
    let mut length = 0;
    loop {
        let count = from.read(&mut piece).with_context(copying)?;
        let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        // What is empty stays a hole.
        if bytes.iter().any(|byte| *byte != 0) {
            to.write_all_at(bytes, length).with_context(copying)?;
        }
        length += count as u64;
    }
    to.set_len(length).with_context(copying)?;
    Ok(copy)
}

/// The guest connects to this port of the host when its agent serves.
fn announce_agent(socket: &Path, sender: Sender<Event>) -> Result<()> {
    let path = format!("{}_{AGENT_PORT}", socket.display());
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {path}"))?;
    thread::spawn(move || {
        if listener.accept().is_ok() {
            let _nobody_waits = sender.send(Event::AgentServes);
        }
    });
    Ok(())
}

/// The VMM's process; dropping it ends the process.
struct Machine {
    process: Child,
}

impl Machine {
    /// Starts the VMM; the guest's console goes to our output, each line marked.
    fn start(vmm: &Path, config: &Path, sender: Sender<Event>) -> Result<Self> {
        let mut command = Command::new(vmm);
        command.arg("--config-file").arg(config).arg("--no-api").stdin(Stdio::null());
        let mut process = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {vmm:?}"))?;
        let console = process.stdout.take().context("the VMM has no output")?;
        thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                println!("guest | {}", String::from_utf8_lossy(&line).trim_end());
            }
            let _nobody_waits = sender.send(Event::Ended);
        });
        Ok(Self { process })
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait().context("cannot wait for the VMM")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _it_may_have_ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Follows the app's log until it says that it listens.
fn await_app(agent: &AgentClient) -> Result<()> {
    let log = agent.logs(0, true).context("cannot read the guest's log")?;
    for line in BufReader::new(log).lines() {
        let line = line.context("the guest's log breaks off")?;
        if line.contains(LISTENING) {
            return Ok(());
        }
    }
    bail!("the guest's log ended before the web app listened");
}

/// One HTTP request to the app, through the agent's tunnel.
fn get(agent: &AgentClient) -> Result<String> {
    let mut tunnel = agent.tunnel(APP).context("cannot connect to the web app")?;
    let request =
        "GET / HTTP/1.1\r\nHost: app\r\nAccept: application/json\r\nConnection: close\r\n\r\n";
    tunnel.write_all(request.as_bytes()).context("cannot ask the web app")?;
    let mut answer = String::new();
    tunnel.read_to_string(&mut answer).context("the web app's answer breaks off")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the web app speaks no HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the web app answers {:?}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
