//! The host's pager: the process that keeps the memory that clones of a version share.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::machines::MachineError;
use super::process::Process;
use super::vmm::listens;

/// How long it may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Starts the pager when it is needed and there is none.
#[derive(Debug)]
pub struct Pager {
    program: PathBuf,
    directory: PathBuf,
    /// Held while one is started.
    turn: Mutex<()>,
}

impl Pager {
    /// With its socket in this directory.
    pub fn new(program: &Path, directory: &Path) -> Self {
        Self { program: program.into(), directory: directory.into(), turn: Mutex::new(()) }
    }

    /// The socket of a pager that listens. Machines need it for as long as they run, so it goes on when the
    /// daemon ends, and the next one finds it here.
    pub async fn socket(&self) -> Result<PathBuf, MachineError> {
        let socket = self.directory.join("pager.sock");
        let _turn = self.turn.lock().await;
        if reach(&socket).is_ok() {
            return Ok(socket);
        }
        let mut command = Command::new(&self.program);
        command.args(["pager", "--socket"]).arg(&socket);
        let failed = |source| MachineError::Pager { source };
        let log = self.directory.join("pager.log");
        let process = Process::start(command, Stdio::null(), &log, None).map_err(failed)?;
        let started = async {
            tokio::select! {
                listens = listens(|| reach(&socket)) => listens,
                () = process.ended() => Err(io::Error::other("it ended; see pager.log")),
            }
        };
        let slow = |_| failed(io::ErrorKind::TimedOut.into());
        timeout(START_TIMEOUT, started).await.map_err(slow)?.map_err(failed)?;
        Ok(socket)
    }
}

/// Whether a pager takes connections; they are of packets. A local socket answers at once.
fn reach(socket: &Path) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok(connect(&connection, &SocketAddrUnix::new(socket)?)?)
}
