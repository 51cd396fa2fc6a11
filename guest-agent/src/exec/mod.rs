//! Commands started over the API, with bounded output ([`collect`]) or as a stream ([`stream`]).

pub mod collect;
mod output;
pub mod stream;

use crate::agent::Agent;
use crate::limits::EXEC_TIMEOUT_MAX_MS;
use crate::process::spawn::{Group, SpawnError, WindowSize};
use crate::process::spec::Capabilities;
use crate::process::{Exit, ProcessSpec, Spawned, StdioPlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// What a client asks for. User, directory, environment and capabilities default to the app's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables, on top of the app's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Who it runs as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What root may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// When the process group is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whether the command goes on when the client disconnects.
    pub keep: bool,
    /// Without a stream: all of standard input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// With a stream: a terminal of this size in place of pipes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
}

/// How a command ended: the last frame of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Exit status or signal.
    #[serde(flatten)]
    pub exit: Exit,
    /// Whether `timeout_ms` ended it.
    pub timed_out: bool,
}

/// Why a command is not started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Enough of them run.
    #[error("the limit of commands that run at the same time is reached")]
    TooMany,
    /// A day is enough.
    #[error("timeout_ms is {timeout_ms}; at most {EXEC_TIMEOUT_MAX_MS} is allowed")]
    Timeout {
        /// What was asked for.
        timeout_ms: u64,
    },
    /// The option belongs to the other kind of exec.
    #[error("{option} is not possible {kind}")]
    WrongKind {
        /// The option.
        option: &'static str,
        /// With or without a stream.
        kind: &'static str,
    },
    /// It cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    /// The agent's ends of its pipes.
    pub pipes: Spawned,
    group: Rc<ProcessGroup>,
    exit: oneshot::Receiver<Exit>,
    deadline: Option<Instant>,
    timed_out: bool,
    _slot: OwnedSemaphorePermit,
}

impl Running {
    /// Starts what is asked for.
    ///
    /// # Errors
    /// Nothing runs then.
    pub fn start(
        agent: &Rc<Agent>,
        request: ExecRequest,
        streams: bool,
    ) -> Result<Self, ExecError> {
        let timeout_ms = request.timeout_ms.unwrap_or(0);
        if timeout_ms > EXEC_TIMEOUT_MAX_MS {
            return Err(ExecError::Timeout { timeout_ms });
        }
        if streams && request.input.is_some() {
            return Err(ExecError::WrongKind { option: "input", kind: "with a stream" });
        }
        if !streams && request.tty.is_some() {
            return Err(ExecError::WrongKind { option: "tty", kind: "without a stream" });
        }
        let slot = agent.execs.clone().try_acquire_owned().map_err(|_| ExecError::TooMany)?;
        let stdio = match request.tty {
            Some(size) => StdioPlan::Terminal(size),
            None => StdioPlan::Pipes { stdin: streams || request.input.is_some() },
        };
        let keep = request.keep;
        let deadline = request.timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let spec = like_the_app(agent, request);
        let pipes = agent.spawner.spawn(&spec, Group::Exec, stdio)?;
        let exit = agent.reaper.watch(pipes.pid);
        let group = Rc::new(ProcessGroup { agent: agent.clone(), pid: pipes.pid, keep });
        Ok(Self { pipes, group, exit, deadline, timed_out: false, _slot: slot })
    }

    /// Waits for the command's own process. May be dropped and called again until it has returned.
    pub async fn ended(&mut self) -> Report {
        let exit = match self.deadline {
            None => (&mut self.exit).await,
            Some(deadline) => match tokio::time::timeout_at(deadline, &mut self.exit).await {
                Ok(exit) => exit,
                Err(_elapsed) => {
                    self.timed_out = true;
                    self.deadline = None;
                    self.group.signal(libc::SIGKILL);
                    (&mut self.exit).await
                }
            },
        };
        // The reaper always sends: it lives as long as the agent that `group` holds.
        let exit = exit.unwrap_or(Exit::Signal(libc::SIGKILL));
        Report { exit, timed_out: self.timed_out }
    }

    fn group(&self) -> Rc<ProcessGroup> {
        self.group.clone()
    }
}

/// Kills a process group whose client has gone. When the leader was reaped there is nothing to kill
/// any more: what it left in the background stays, as with any shell.
#[derive(Debug)]
struct ProcessGroup {
    agent: Rc<Agent>,
    pid: i32,
    keep: bool,
}

impl ProcessGroup {
    fn signal(&self, signal: i32) {
        self.agent.reaper.signal_group(self.pid, signal);
    }

    /// Whether the command outlives its client.
    fn keeps_running(&self) -> bool {
        self.keep
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if !self.keep {
            self.signal(libc::SIGKILL);
        }
    }
}

fn like_the_app(agent: &Agent, request: ExecRequest) -> ProcessSpec {
    let app = agent.app.spec().unwrap_or_default();
    let mut env = app.env;
    env.extend(request.env);
    ProcessSpec {
        command: request.command,
        env,
        user: request.user.or(app.user),
        cwd: request.cwd.or(app.cwd),
        capabilities: request.capabilities.unwrap_or(app.capabilities),
    }
}
