//! One VMM process: started, driven through its API, ended.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hyper::Method;
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::networks::Network;
use super::process::{Process, SOCKET_OPTION};
use super::wire;

/// How long a VMM may take until its API answers, and a guest until its agent serves: an emulated host
/// that does much else takes minutes.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a VMM may take for a request: it may write all of a machine's memory.
const CALL_TIMEOUT: Duration = Duration::from_secs(600);
/// A VMM whose sockets are gone has ended, or is about to.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether a program listens that was just started.
const LISTENS_PERIOD: Duration = Duration::from_millis(2);
/// Requests that may wait for a VMM which has not come up.
const BACKLOG: i32 = 16;
/// Its API, in its directory.
const API: &str = "api.sock";
/// Its vsock device.
const VSOCK: &str = "v";
/// What it says.
const MESSAGES: &str = "vmm.log";
/// The longest path of a socket that a VMM takes for its vsock device.
pub const SOCKET_BYTES_MAX: usize = 96;

/// Why a VMM does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("cannot {attempt} {path:?}")]
    Host { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the VMM of {directory:?} ended before {before}; its vmm.log says why")]
    Ended { directory: PathBuf, before: &'static str },
    #[error("the VMM of {directory:?} did not come to {before} in time")]
    Slow { directory: PathBuf, before: &'static str },
    #[error("the VMM refuses {method} {path}: {reason}")]
    Refused { method: Method, path: &'static str, reason: String },
    #[error("the VMM does not answer {method} {path}")]
    Call { method: Method, path: &'static str, source: io::Error },
}

/// A VMM in a directory of its own.
#[derive(Debug)]
pub struct Vmm {
    process: Process,
    directory: PathBuf,
    network: Option<Network>,
    is_kept: bool,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if !self.is_kept {
            self.process.kill();
        }
    }
}

/// The vsock socket of the VMM in this directory.
pub fn vsock(directory: &Path) -> PathBuf {
    directory.join(VSOCK)
}

impl Vmm {
    /// Starts one that waits for what to do. It ends when this is dropped, unless it is [kept](Self::keep).
    ///
    /// It gets its API's socket from here: what it is asked waits there until it has come up, and nobody has to
    /// find out when that is.
    pub fn start(
        program: &Path,
        directory: &Path,
        network: Option<Network>,
    ) -> Result<Self, VmmError> {
        let api = directory.join(API);
        let listener = listen(&api).map_err(|source| VmmError::Host {
            attempt: "listen at",
            path: api,
            source,
        })?;
        Self::spawn(program, directory, network, &[], listener.into())
    }

    /// Starts one that boots a machine, and waits until the guest's agent serves.
    pub async fn boot(
        program: &Path,
        directory: &Path,
        network: Option<Network>,
        config: &Value,
    ) -> Result<Self, VmmError> {
        let failed = |attempt, path: &Path| {
            let path = path.to_path_buf();
            move |source| VmmError::Host { attempt, path, source }
        };
        let ready = PathBuf::from(format!("{}_{}", vsock(directory).display(), wire::AGENT_PORT));
        let listener = UnixListener::bind(&ready).map_err(failed("listen at", &ready))?;
        let file = directory.join("vm.json");
        std::fs::write(&file, config.to_string()).map_err(failed("write", &file))?;
        let file = file.to_string_lossy().into_owned();
        let vmm =
            Self::spawn(program, directory, network, &["--config-file", &file], Stdio::null())?;
        vmm.before("its guest's agent served", async { listener.accept().await.map(drop) }).await?;
        Ok(vmm)
    }

    fn spawn(
        program: &Path,
        directory: &Path,
        network: Option<Network>,
        arguments: &[&str],
        input: Stdio,
    ) -> Result<Self, VmmError> {
        let mut command = Command::new(program);
        command.arg(SOCKET_OPTION).arg(directory.join(API)).args(arguments);
        let process =
            Process::start(command, input, &directory.join(MESSAGES), network.as_ref()).map_err(
                |source| VmmError::Host { attempt: "run", path: program.into(), source },
            )?;
        Ok(Self { process, directory: directory.into(), network, is_kept: false })
    }

    /// One that an earlier daemon started.
    pub fn adopted(process: Process, directory: PathBuf, network: Option<Network>) -> Self {
        Self { process, directory, network, is_kept: true }
    }

    /// From now on it goes on whatever becomes of the daemon.
    pub fn keep(&mut self) {
        self.is_kept = true;
        if let Some(network) = &mut self.network {
            network.keep();
        }
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it, and its network when it is gone.
    pub async fn end(&self) {
        self.process.end().await;
        if let Some(network) = &self.network {
            network.remove();
        }
    }

    /// The socket of its vsock device.
    pub fn vsock(&self) -> PathBuf {
        vsock(&self.directory)
    }

    /// Takes up the machine of a snapshot and lets it run.
    pub async fn load(&self, snapshot: &Path, more: Value) -> Result<(), VmmError> {
        let mut body = json!({ "snapshot_path": snapshot, "resume_vm": true });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        self.put("/snapshot/load", &body).await
    }

    /// Halts the machine.
    pub async fn pause(&self) -> Result<(), VmmError> {
        self.call(Method::PATCH, "/vm", &json!({ "state": "Paused" })).await
    }

    /// Lets it run.
    pub async fn resume(&self) -> Result<(), VmmError> {
        self.call(Method::PATCH, "/vm", &json!({ "state": "Resumed" })).await
    }

    /// Has the VMM do something.
    pub async fn put(&self, path: &'static str, body: &Value) -> Result<(), VmmError> {
        self.call(Method::PUT, path, body).await
    }

    async fn call(&self, method: Method, path: &'static str, body: &Value) -> Result<(), VmmError> {
        let called = async {
            let stream = UnixStream::connect(self.directory.join(API)).await?;
            wire::ask(stream, method.clone(), "localhost", path, Some(body)).await
        };
        let called = match timeout(CALL_TIMEOUT, called).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match called {
            Ok((status, _)) if status.is_success() => Ok(()),
            Ok((_, answer)) => {
                let reason = String::from_utf8_lossy(&answer).into_owned();
                Err(VmmError::Refused { method, path, reason })
            }
            Err(source) => {
                let ended = timeout(ENDING_TIMEOUT, self.process.ended()).await;
                Err(match ended {
                    Ok(()) => {
                        VmmError::Ended { directory: self.directory.clone(), before: "it answered" }
                    }
                    Err(_) => VmmError::Call { method, path, source },
                })
            }
        }
    }

    async fn before(
        &self,
        before: &'static str,
        event: impl Future<Output = io::Result<()>>,
    ) -> Result<(), VmmError> {
        let directory = || self.directory.clone();
        let came = async {
            tokio::select! {
                came = event => came.map_err(|source| {
                    VmmError::Host { attempt: "wait at", path: directory(), source }
                }),
                () = self.process.ended() => Err(VmmError::Ended { directory: directory(), before }),
            }
        };
        let slow = |_| VmmError::Slow { directory: directory(), before };
        timeout(START_TIMEOUT, came).await.map_err(slow)?
    }
}

/// Listens for a program that is to be started, for our user alone. What one that was killed has left is
/// replaced: nobody else has a VMM in its directory.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file gets the mode that the socket has by then.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Waits until a connection succeeds. A program does not say when it listens, and nothing else would tell.
pub async fn listens(connect: impl Fn() -> io::Result<()>) -> io::Result<()> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    loop {
        match connect() {
            Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => {}
            connected => return connected,
        }
        sleep(LISTENS_PERIOD).await;
    }
}
