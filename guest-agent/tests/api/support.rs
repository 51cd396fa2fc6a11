//! An agent for one test.

use rotifer_agent::agent::{Agent, Shutdown};
use rotifer_agent::client::{AgentClient, ClientError};
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::init::runtime;
use rotifer_agent::server::{Listener, serve};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::UnixListener;

/// Machines may be emulated and busy.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// An agent that serves until it is dropped.
pub struct TestAgent {
    pub client: AgentClient,
    pub directory: TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    shutdown: mpsc::Receiver<Shutdown>,
}

impl TestAgent {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (bound, is_bound) = mpsc::channel();
        let (wishes, shutdown) = mpsc::channel();
        let path = socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = runtime().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let listener = UnixListener::bind(&path).unwrap();
                let agent = Rc::new(Agent::guest_of_a_process().unwrap());
                bound.send(()).unwrap();
                let wish = async {
                    wishes.send(agent.shutdown().await).unwrap();
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = serve(Listener::Unix(listener), agent.clone()) => {}
                    () = agent.reaper.run() => {}
                    () = wish => {}
                    _ = stopped => {}
                }
            });
        });
        is_bound.recv_timeout(DEADLINE).unwrap();
        let client = AgentClient::over_unix(socket).with_timeout(DEADLINE);
        Self { client, directory, stop: Some(stop), thread: Some(thread), shutdown }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the agent was asked to end with.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.recv_timeout(DEADLINE).unwrap()
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the agent panicked");
        }
    }
}

/// A request to run a shell script.
pub fn shell(script: &str) -> ExecRequest {
    ExecRequest { command: ["/bin/sh", "-c", script].map(Into::into).into(), ..Default::default() }
}

/// The status and code of a refusal.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Agent { status, code, message }) => {
            assert!(!message.is_empty());
            (status, code)
        }
        other => panic!("{other:?} is not a refusal"),
    }
}

/// A process that is watched for its end, whoever its parent is.
pub struct Watched(OwnedFd);

impl Watched {
    pub fn open(pid: i32) -> Self {
        // SAFETY: pidfd_open takes two integers and gives a new descriptor.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(descriptor >= 0, "process {pid}: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        Self(unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor).unwrap()) })
    }

    pub fn assert_ends(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut events = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        assert_eq!(poll(&mut events, timeout).unwrap(), 1, "the process goes on");
    }
}

/// Makes a named pipe.
pub fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}
