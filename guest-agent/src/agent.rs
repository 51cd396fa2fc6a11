//! What the parts of the agent share.

use crate::app::App;
use crate::console::Console;
use crate::limits::{CONNECTIONS_MAX_COUNT, EXECS_MAX_COUNT};
use crate::logs::Logs;
use crate::process::reaper::Scope;
use crate::process::{Reaper, Spawner};
use crate::restored;
use crate::timeline::Timeline;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// How the guest is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownMode {
    /// The machine is switched off.
    Poweroff,
    /// The machine is reset.
    Reboot,
}

/// A wish to end the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shutdown {
    /// Off or reset.
    pub mode: ShutdownMode,
    /// What the app gets between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// The agent's state. One thread owns it, through `Rc`.
#[derive(Debug)]
pub struct Agent {
    /// The moments of the boot.
    pub timeline: Timeline,
    /// The app's output.
    pub logs: Logs,
    /// The app's way to the console.
    pub console: Console,
    /// The app.
    pub app: App,
    /// Who waits for children.
    pub reaper: Reaper,
    /// How processes are started.
    pub spawner: Spawner,
    /// Who hears of restores, if this is a guest's.
    pub restores: Option<restored::Watch>,
    /// Room for connections.
    pub connections: Arc<Semaphore>,
    /// Room for commands started over the API.
    pub execs: Arc<Semaphore>,
    shutdown: Cell<Option<Shutdown>>,
    shutdown_wanted: Notify,
}

impl Agent {
    /// An agent that serves in an ordinary process: it reaps only its own children and leaves
    /// credentials and the console alone.
    ///
    /// # Errors
    /// SIGCHLD cannot be listened to.
    pub fn guest_of_a_process() -> io::Result<Self> {
        Self::new(Timeline::default(), Scope::Watched, Spawner::default(), Console::off(), None)
    }

    /// An agent.
    ///
    /// # Errors
    /// SIGCHLD cannot be listened to.
    pub fn new(
        timeline: Timeline,
        scope: Scope,
        spawner: Spawner,
        console: Console,
        restores: Option<restored::Watch>,
    ) -> io::Result<Self> {
        Ok(Self {
            timeline,
            logs: Logs::default(),
            console,
            app: App::default(),
            reaper: Reaper::new(scope)?,
            spawner,
            restores,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX_COUNT)),
            execs: Arc::new(Semaphore::new(EXECS_MAX_COUNT)),
            shutdown: Cell::new(None),
            shutdown_wanted: Notify::new(),
        })
    }

    /// Notes the wish to end; the first one counts. It is acted upon by [`Agent::shutdown`].
    pub fn request_shutdown(&self, shutdown: Shutdown) {
        if self.shutdown.get().is_none() {
            self.shutdown.set(Some(shutdown));
        }
        self.shutdown_wanted.notify_one();
    }

    /// Returns when somebody wants the guest to end.
    pub async fn shutdown(&self) -> Shutdown {
        loop {
            self.shutdown_wanted.notified().await;
            if let Some(shutdown) = self.shutdown.get() {
                return shutdown;
            }
        }
    }
}
