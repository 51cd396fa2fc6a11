//! The daemon under measurement, with settings that keep nobody waiting on purpose.

use std::fs;
use std::io::{BufRead, BufReader, pipe};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::client::Client;
use crate::artifacts::Artifacts;
use crate::bench::Setup;
use crate::vm::Process;

const MANY: u32 = 100_000;

/// `rotifer serve`. Dropping it ends it, with all that it has started.
pub struct Daemon {
    process: Process,
    client: Client,
    state: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it serves.
    ///
    /// # Errors
    /// An artifact is missing, or it does not serve.
    pub fn start(setup: &Setup) -> Result<Self> {
        let (artifacts, path) = (&setup.artifacts, setup.scratch());
        let store = path.join("store");
        for name in ["bases", "layers"] {
            stage_all(
                artifacts,
                &artifacts.source().join("build-store").join(name),
                &store.join(name),
            )?;
        }
        let builds = json!({
            "vmm": artifacts.vmm()?, "kernel": artifacts.kernel()?,
            "initramfs": artifacts.initramfs()?, "builder_disk": artifacts.root_disk()?,
            "worker": artifacts.other(&artifacts.source().join("rotifer-build-worker"))?,
            "store": store, "disk_bytes": 1_u64 << 30, "vcpu_count": 1, "memory_mib": 768,
        });
        let settings = json!({
            "host": {
                "vmm": artifacts.vmm()?, "kernel": artifacts.kernel()?,
                "initramfs": artifacts.initramfs()?, "builds": path.join("builds.json"),
            },
            "rates": {
                "run": MANY, "resume": MANY, "suspend": MANY, "terminate": MANY, "token": MANY,
                "other": MANY,
            },
        });
        for (name, value) in [("builds.json", builds), ("settings.json", settings)] {
            fs::write(path.join(name), value.to_string()).context("cannot write settings")?;
        }
        // Sockets are below, whose paths have to be short.
        let state = path.join("s");
        let program = artifacts.other(&artifacts.source().join("rotifer"))?;
        let (process, address) = serve(&program, path, &state)?;
        let client = Client::new(&address, &state)?;
        Ok(Self { process, client, state })
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// An error with what the daemon logged.
    pub fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        self.process.explain(format!("{error:#}"))
    }
}

/// Starts the daemon; the result is where it serves.
fn serve(program: &Path, directory: &Path, state: &Path) -> Result<(Process, String)> {
    let (said, output) = pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command.args(["serve", "--listen", "127.0.0.1:0", "--state"]).arg(state);
    command.arg("--config").arg(directory.join("settings.json"));
    let process = Process::start_with_output(command, directory, output.into())?;
    let mut address = None;
    for line in BufReader::new(said).lines() {
        let line = line.context("cannot read what the daemon says")?;
        if let Some((_, rest)) = line.split_once("https://") {
            address.get_or_insert(rest.to_owned());
        }
        if line.starts_with("for a shell") {
            let address = address.context("the daemon does not say where it serves")?;
            return Ok((process, address));
        }
    }
    bail!("the daemon does not serve:\n{}", process.log())
}

/// Copies of all that is in a directory, under their names in a new one.
fn stage_all(artifacts: &Artifacts, from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let entries = fs::read_dir(from)
        .with_context(|| format!("there is no base image in {}: ./x makes it", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
        let (copy, link) = (artifacts.other(&entry.path())?, to.join(entry.file_name()));
        symlink(copy, &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    Ok(())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The daemon first: it would take note of each end. VMMs and the pager go on without it.
        let own = Pid::from_raw(i32::try_from(self.process.id()).unwrap_or_default());
        let others = processes_with(&self.state);
        for process in own.into_iter().chain(others) {
            let _is_gone = kill_process(process, Signal::KILL);
        }
    }
}

/// Processes on whose command line a directory is.
fn processes_with(directory: &Path) -> Vec<Pid> {
    let mark = format!("{}/", directory.display());
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has_mark = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&mark)
    };
    pids.filter(has_mark).filter_map(Pid::from_raw).collect()
}
