//! The agent as PID 1: prepare the guest, live, switch it off.
//!
//! What fails while the guest is prepared is told on the console in one sentence, and the machine
//! is switched off: whoever waits for it learns why, and does not wait for ever.

mod mounts;
mod power;
mod resolver;
mod root;
mod system;

use crate::agent::{Agent, Shutdown, ShutdownMode};
use crate::api::error::chain;
use crate::app;
use crate::clock::HostClock;
use crate::cmdline::{CmdlineError, Options};
use crate::console::{Console, kernel_log};
use crate::limits::{AGENT_PORT, BLOCKING_THREADS_MAX_COUNT, READY_TIMEOUT};
use crate::process::reaper::Scope;
use crate::process::spawn::Group;
use crate::process::spec::{APP_FILE, Capabilities, SpecError};
use crate::process::{ProcessSpec, Spawner, StdioPlan};
use crate::restored;
use crate::server::{Listener, serve};
use crate::timeline::{Moment, Timeline};
use crate::vsock;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

/// File work calls shallow functions of the standard library.
const BLOCKING_STACK_BYTES: usize = 128 * 1024;
/// A helper thread that has nothing to do ends after this.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// How long helper threads have to finish at the end.
const HELPERS_TIMEOUT: Duration = Duration::from_secs(1);

/// A step of the preparation that failed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The command line has an option that it should not have.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// A file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// The root disk could not become the root.
    #[error(transparent)]
    Root(#[from] root::RootError),
    /// The app's description is wrong.
    #[error(transparent)]
    App(#[from] SpecError),
    /// The command line names an app description that is not there.
    #[error("the app's description {path}, named by rotifer.app, does not exist")]
    NoApp {
        /// The file.
        path: String,
    },
    /// Something of the kernel does not work.
    #[error("cannot {attempt}")]
    System {
        /// What was tried.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Lives as PID 1 until the machine is off.
pub fn run() -> ! {
    let timeline = Timeline::default();
    timeline.note(Moment::AgentStart);
    std::panic::set_hook(Box::new(|panic| kernel_log(&format!("stopped by a bug: {panic}"))));
    let mode = match live(timeline) {
        Ok(mode) => mode,
        Err(error) => {
            kernel_log(&format!("the guest cannot start: {}; switching off", chain(&error)));
            ShutdownMode::Poweroff
        }
    };
    power::end(mode)
}

fn live(timeline: Timeline) -> Result<ShutdownMode, InitError> {
    mounts::mount_first()?;
    system::hurry(true);
    system::open_standard_streams()?;
    let options = Options::parse(&system::command_line()?)?;
    let on_disk = match &options.root {
        Some(device) => {
            root::switch_to(device, &options)?;
            true
        }
        None => false,
    };
    timeline.note(Moment::RootMounted);
    mounts::mount_rest(on_disk);
    system::settle(options.hostname.as_deref());
    let clock = HostClock::find_and_set();
    let app = app_spec(&options)?;

    let runtime = runtime()
        .map_err(|source| InitError::System { attempt: "start the event loop", source })?;
    let mode = LocalSet::new().block_on(&runtime, async {
        let spawner = Spawner { manages_credentials: true, cgroups: system::make_cgroups() };
        let restores = watch_restores(clock);
        let console = Console::on_demand();
        let agent = Agent::new(timeline, Scope::Everything, spawner, console, restores)
            .map_err(|source| InitError::System { attempt: "listen to SIGCHLD", source })?;
        Ok(serve_guest(Rc::new(agent), app, options.shell).await)
    });
    // A helper thread that a broken disk holds in the kernel is not waited for.
    runtime.shutdown_timeout(HELPERS_TIMEOUT);
    mode
}

/// A guest that does not hear of its restores has a wrong wall clock after them: told, but no reason
/// not to start.
fn watch_restores(clock: HostClock) -> Option<restored::Watch> {
    match restored::Watch::start(clock) {
        Ok(watch) => Some(watch),
        Err(error) => {
            kernel_log(&format!("the guest will not notice that it was restored: {error}"));
            None
        }
    }
}

/// The event loop, on this thread.
///
/// # Errors
/// The kernel refuses its descriptors.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS_MAX_COUNT)
        .thread_stack_size(BLOCKING_STACK_BYTES)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .build()
}

/// In place of a path: the app is started over the API, whatever the disk says.
const NO_APP: &str = "none";

/// What to start. A shell that was asked for goes before an app that merely is on the disk.
fn app_spec(options: &Options) -> Result<Option<ProcessSpec>, InitError> {
    if options.shell && options.app.is_none() {
        return Ok(None);
    }
    if options.app.as_deref() == Some(NO_APP) {
        return Ok(None);
    }
    let path = options.app.as_deref().unwrap_or(APP_FILE);
    match (ProcessSpec::load(Path::new(path))?, &options.app) {
        (None, Some(path)) => Err(InitError::NoApp { path: path.clone() }),
        (spec, _) => Ok(spec),
    }
}

/// Serves until somebody wants the guest to end, and has ended its processes then.
async fn serve_guest(agent: Rc<Agent>, app: Option<ProcessSpec>, shell: bool) -> ShutdownMode {
    let reaper = agent.clone();
    tokio::task::spawn_local(async move { reaper.reaper.run().await });
    let restored = agent.clone();
    tokio::task::spawn_local(async move {
        if let Some(restores) = &restored.restores {
            restores.run().await;
        }
    });
    power::obey_signals(&agent);
    let listener = vsock::Listener::bind(AGENT_PORT);
    match (app, shell) {
        (Some(spec), _) => {
            if let Err(error) = app::start(&agent, spec) {
                kernel_log(&format!("the app does not start: {}", chain(&error)));
            }
        }
        (None, true) => start_shell(&agent),
        (None, false) => {}
    }
    system::hurry(false);
    match listener {
        Ok(listener) => {
            agent.timeline.note(Moment::Serving);
            tokio::task::spawn_local(serve(Listener::Vsock(listener), agent.clone()));
            tokio::task::spawn_local(report_ready());
        }
        Err(error) => kernel_log(&format!("the host cannot reach the agent over vsock: {error}")),
    }
    let shutdown = agent.shutdown().await;
    power::end_processes(&agent, shutdown).await;
    shutdown.mode
}

/// Tells the host, then the console, once. The host may not listen; that is its affair.
async fn report_ready() {
    let tell = async {
        let mut host = vsock::connect_to_host(AGENT_PORT).await?;
        host.write_all(b"ready\n").await?;
        host.shutdown().await
    };
    let _ = tokio::time::timeout(READY_TIMEOUT, tell).await;
    kernel_log("ready");
}

/// A shell on the console, without login: whoever has the console of a microVM owns it. Its end is
/// the guest's.
fn start_shell(agent: &Rc<Agent>) {
    let Some(console) = system::open_console_terminal() else {
        return kernel_log("there is no console for rotifer.shell");
    };
    let spec = ProcessSpec {
        command: vec!["/bin/sh".into()],
        capabilities: Capabilities::All,
        ..ProcessSpec::default()
    };
    let end = Shutdown { mode: ShutdownMode::Poweroff, grace: Duration::ZERO };
    match agent.spawner.spawn(&spec, Group::App, StdioPlan::Console(console)) {
        Ok(shell) => {
            let exit = agent.reaper.watch(shell.pid);
            let agent = agent.clone();
            tokio::task::spawn_local(async move {
                // However it ended, it has.
                let _ = exit.await;
                agent.request_shutdown(end);
            });
        }
        Err(error) => {
            kernel_log(&format!("the shell does not start: {}; switching off", chain(&error)));
            agent.request_shutdown(end);
        }
    }
}
