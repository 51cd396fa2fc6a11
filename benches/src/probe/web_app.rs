//! A Debian guest with the example's web app: what users see of a restore.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rotifer_agent::client::AgentClient;
use rotifer_agent::limits::AGENT_PORT;

use super::{Probe, VSOCK};
use crate::bench::Setup;
use crate::vm::{DEADLINE, Machine, listen};

const MEMORY_MIB: u64 = 512;
/// What the app's server says when it takes connections.
const LISTENING: &str = "Listening at";
const ADDRESS: &str = "localhost:8080";
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n";

impl Probe {
    /// Boots one, and visits its app once.
    ///
    /// # Errors
    /// An artifact is missing, the host refuses, or the machine ends.
    pub fn boot_web_app(setup: &Setup, program: &Path) -> Result<Self> {
        let machine = Machine { memory_mib: MEMORY_MIB, ..Machine::small() };
        let machine = machine.drive(&setup.artifacts.root_disk()?, true);
        let machine = machine.words("rotifer.root=/dev/vda rotifer.rootfstype=ext4 ro");
        let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
        let ready = listen(&directory.path().join(VSOCK), AGENT_PORT)?;
        let initramfs = setup.artifacts.initramfs()?;
        let probe = Self::start(setup, program, &machine, &initramfs, directory)?;
        probe.process.wait_for(&ready, "the guest was ready")?;
        let log = BufReader::new(probe.agent().logs(0, true).context("cannot read the app's log")?);
        let mut lines = log.lines().map_while(Result::ok);
        lines.find(|line| line.contains(LISTENING)).context("the app's log ended")?;
        probe.visit().context("the app does not answer")?;
        Ok(probe)
    }

    /// A client of the agent.
    pub fn agent(&self) -> AgentClient {
        AgentClient::over_vsock(self.directory.path().join(VSOCK), AGENT_PORT)
            .with_timeout(DEADLINE)
    }

    /// Waits until the agent answers; how long after the process was started.
    ///
    /// # Errors
    /// It does not within the deadline.
    pub fn wait_for_agent(&self) -> Result<Duration> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            // A connection made before the guest has heard that all are gone may go with them.
            match self.agent().health() {
                Ok(_) => return Ok(self.elapsed()),
                Err(error) if Instant::now() > deadline => {
                    return Err(self.console.explain(&self.process, &error));
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for the first byte of the app's answer; how long after the process was started.
    ///
    /// # Errors
    /// There is none.
    pub fn visit(&self) -> Result<Duration> {
        let mut tunnel = self.agent().tunnel(ADDRESS).context("cannot connect to the app")?;
        tunnel.write_all(REQUEST).context("cannot send to the app")?;
        tunnel.read_exact(&mut [0]).context("cannot receive from the app")?;
        Ok(self.elapsed())
    }
}
