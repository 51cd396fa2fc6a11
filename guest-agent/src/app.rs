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
/// What is still read of each stream before the app's end is noted: as much as a pipe holds. Others
/// of its tree may go on writing for as long as they like.
const LAST_WORDS_BYTES: usize = 64 * 1024;

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
    let streams = [(spawned.stdout, Stream::Stdout), (spawned.stderr, Stream::Stderr)];
    let outputs = streams.map(|(pipe, stream)| {
        let splitter = RefCell::default();
        pipe.map(|pipe| Rc::new(Output { agent: agent.clone(), pipe, stream, splitter }))
    });
    for output in outputs.iter().flatten() {
        tokio::task::spawn_local(output.clone().forward());
    }
    let agent = agent.clone();
    tokio::task::spawn_local(async move {
        let Ok(exit) = exit.await else { return };
        // What it said before its end comes before its end.
        outputs.iter().flatten().for_each(|output| output.drain());
        agent.app.state.replace(AppState::Exited { exit, ended_ns: now_ns() });
        agent.app.ended.notify_waiters();
        agent.logs.push(Stream::Agent, format!("app {exit}").as_bytes());
        agent.console.show(exit.to_string().as_bytes());
    });
    Ok(spawned.pid)
}

/// One stream of the app's output, on its way to the log and the console.
struct Output {
    agent: Rc<Agent>,
    pipe: Pipe,
    stream: Stream,
    splitter: RefCell<LineSplitter>,
}

impl Output {
    /// Takes what comes until the last process that could write has closed the pipe.
    async fn forward(self: Rc<Self>) {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = self.pipe.read(&mut buffer).await {
            self.take(buffer.get(..count).unwrap_or_default());
            // A flood must not keep the host's requests waiting.
            tokio::task::yield_now().await;
        }
        self.finish();
    }

    /// Takes what the pipe holds now.
    fn drain(&self) {
        let mut buffer = vec![0; LAST_WORDS_BYTES];
        let mut filled = 0;
        while let Some(room @ [_, ..]) = buffer.get_mut(filled..) {
            match self.pipe.read_now(room) {
                Ok(0) => {
                    self.take(buffer.get(..filled).unwrap_or_default());
                    return self.finish();
                }
                Ok(count) => filled += count,
                Err(_nothing_more) => break,
            }
        }
        self.take(buffer.get(..filled).unwrap_or_default());
    }

    fn take(&self, bytes: &[u8]) {
        self.splitter.borrow_mut().feed(bytes, |line| self.show(line));
    }

    fn finish(&self) {
        self.splitter.borrow_mut().finish(|line| self.show(line));
    }

    fn show(&self, line: &[u8]) {
        self.agent.logs.push(self.stream, line);
        self.agent.console.show(line);
    }
}

/// Asks the app to end, waits at most `grace` for its first process, and returns whether that was
/// enough. Nothing is killed here.
pub async fn terminate(agent: &Agent, grace: Duration) -> bool {
    let ended = agent.app.ended.notified();
    let Some(pid) = agent.app.running_pid() else { return true };
    agent.reaper.signal_group(pid, libc::SIGTERM);
    tokio::time::timeout(grace, ended).await.is_ok()
}
