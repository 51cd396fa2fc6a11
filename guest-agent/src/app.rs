//! The app: one process tree whose output becomes log lines and whose end is noted, nothing more.

use crate::agent::Agent;
use crate::logs::{LineSplitter, Stream};
use crate::process::pipe::Pipe;
use crate::process::spawn::{Group, SpawnError};
use crate::process::{Exit, ProcessSpec, StdioPlan};
use crate::timeline::{Moment, now_ns};
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// The piece in which output is read, in bytes. It lives as long as the app, so it is small.
const READ_BYTES: usize = 8 * 1024;

/// What the app is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum AppState {
    /// No app was given.
    None,
    /// Its first process runs.
    Running {
        /// The first process's id.
        pid: i32,
        /// When it was started.
        started_ns: u64,
    },
    /// Its first process ended; others of its tree may not have.
    Exited {
        /// How it ended.
        exit: Exit,
        /// When.
        ended_ns: u64,
    },
    /// It could not be started.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Why an app is not started.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// There is one.
    #[error("an app is running already, as process {pid}")]
    Running {
        /// Its first process's id.
        pid: i32,
    },
    /// It cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

/// The app of this guest.
#[derive(Debug)]
pub struct App {
    state: RefCell<AppState>,
    spec: RefCell<Option<ProcessSpec>>,
    ended: Notify,
}

impl Default for App {
    fn default() -> Self {
        let state = RefCell::new(AppState::None);
        Self { state, spec: RefCell::default(), ended: Notify::new() }
    }
}

impl App {
    /// What it is doing now.
    #[must_use]
    pub fn state(&self) -> AppState {
        self.state.borrow().clone()
    }

    /// How it was described; commands started over the API take their defaults from there.
    #[must_use]
    pub fn spec(&self) -> Option<ProcessSpec> {
        self.spec.borrow().clone()
    }

    fn running_pid(&self) -> Option<i32> {
        match *self.state.borrow() {
            AppState::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }
}

/// Starts the app and what forwards its output.
///
/// # Errors
/// One is running, or the process cannot be started; the state says so from then on.
pub fn start(agent: &Rc<Agent>, spec: ProcessSpec) -> Result<i32, AppError> {
    let app = &agent.app;
    if let Some(pid) = app.running_pid() {
        return Err(AppError::Running { pid });
    }
    app.spec.replace(Some(spec.clone()));
    let spawned = agent.spawner.spawn(&spec, Group::App, StdioPlan::Pipes { stdin: false });
    let spawned = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            let reason = crate::api::error::chain(&error);
            agent.logs.push(Stream::Agent, format!("app not started: {reason}").as_bytes());
            app.state.replace(AppState::Failed { reason });
            return Err(error.into());
        }
    };
    let exit = agent.reaper.watch(spawned.pid);
    agent.timeline.note(Moment::AppStarted);
    agent.logs.push(Stream::Agent, format!("app started as process {}", spawned.pid).as_bytes());
    app.state.replace(AppState::Running { pid: spawned.pid, started_ns: now_ns() });
    for (pipe, stream) in [(spawned.stdout, Stream::Stdout), (spawned.stderr, Stream::Stderr)] {
        if let Some(pipe) = pipe {
            tokio::task::spawn_local(forward(agent.clone(), pipe, stream));
        }
    }
    let agent = agent.clone();
    tokio::task::spawn_local(async move {
        let Ok(exit) = exit.await else { return };
        agent.app.state.replace(AppState::Exited { exit, ended_ns: now_ns() });
        agent.app.ended.notify_waiters();
        agent.logs.push(Stream::Agent, format!("app {exit}").as_bytes());
        agent.console.show(exit.to_string().as_bytes());
    });
    Ok(spawned.pid)
}

async fn forward(agent: Rc<Agent>, pipe: Pipe, stream: Stream) {
    let line = |bytes: &[u8]| {
        agent.logs.push(stream, bytes);
        agent.console.show(bytes);
    };
    let mut splitter = LineSplitter::default();
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        splitter.feed(buffer.get(..count).unwrap_or_default(), line);
        // A flood must not keep the host's requests waiting.
        tokio::task::yield_now().await;
    }
    splitter.finish(line);
}

/// Asks the app to end, waits at most `grace` for its first process, and returns whether that was
/// enough. Nothing is killed here.
pub async fn terminate(agent: &Agent, grace: Duration) -> bool {
    let ended = agent.app.ended.notified();
    let Some(pid) = agent.app.running_pid() else { return true };
    agent.reaper.signal_group(pid, libc::SIGTERM);
    tokio::time::timeout(grace, ended).await.is_ok()
}
