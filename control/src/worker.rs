//! The seam to what acts: builds images, runs microVMs, makes network connectors work.

use std::io;
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;

use crate::fleet::microvm::Event;
use crate::fleet::{Action, Measured, Report};

/// A connection that a guest has made to its metadata service.
#[derive(Debug)]
pub struct Guest {
    /// The connection.
    pub stream: TcpStream,
    /// Whose guest it is.
    pub microvm: String,
    /// Given back when the connection ends.
    pub place: OwnedSemaphorePermit,
}

/// A stream of bytes to the inside of a microVM, once it is there.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send + 'a>>;

/// Does what the fleet decides.
///
/// A worker must end every action with one of its reports, sooner or later. After a restart of the
/// daemon actions that had not ended come again, so a worker must find out how far it had come.
pub trait Worker: Send + Sync {
    /// Why microVMs cannot run on this host, if they cannot.
    fn refusal(&self) -> Option<&str>;

    /// Takes up what an earlier daemon left, before the first action begins. What has ended meanwhile is
    /// reported.
    fn adopt(&self, reports: &Sender<Report>);

    /// Begins an action, and does not wait for its end.
    fn begin(&self, action: Action, reports: &Sender<Report>);

    /// Processor time that a running microVM's guest has had since its process was started, if it can be told now.
    fn processor_time(&self, id: &str) -> Option<Duration>;

    /// Connects to a TCP port inside of a running microVM.
    fn connect(&self, id: &str, port: u16) -> Connecting<'_>;

    /// Connects to the agent of a running microVM, which speaks HTTP (`docs/agent-api.md`).
    fn agent(&self, id: &str) -> Connecting<'_>;
}

/// No worker: everything that needs one fails, and says so.
#[derive(Debug)]
pub struct Absent;

const REFUSAL: &str =
    "No VMM worker is configured on this host: images cannot be built and MicroVMs cannot run.";

impl Worker for Absent {
    fn refusal(&self) -> Option<&str> {
        Some(REFUSAL)
    }

    /// It has left nothing. What another worker left is that one's to take up.
    fn adopt(&self, _: &Sender<Report>) {}

    fn begin(&self, action: Action, reports: &Sender<Report>) {
        let reason = || REFUSAL.to_owned();
        let microvm = |id, event, reason| Report::Microvm {
            id,
            event,
            reason,
            measured: Measured::default(),
        };
        let report = match action {
            Action::Build(version) => Report::BuildFailed { version, reason: reason() },
            Action::RemoveVersion(version) => {
                Report::VersionNotRemoved { version, reason: reason() }
            }
            Action::Launch(id) => microvm(id, Event::LaunchFailed, Some(reason())),
            Action::Suspend(id) => microvm(id, Event::SuspendFailed, Some(reason())),
            Action::Resume(id) => microvm(id, Event::ResumeFailed, Some(reason())),
            // Without a worker no process of it lives.
            Action::Terminate(id) => microvm(id, Event::Terminated, None),
            Action::Connect(id) => Report::NotConnected { id, reason: reason() },
            Action::Disconnect(id) => Report::NotDisconnected { id, reason: reason() },
        };
        // At the end of the daemon nobody listens; the action comes again at its next start.
        let _nobody_listens = reports.send(report);
    }

    fn processor_time(&self, _: &str) -> Option<Duration> {
        None
    }

    fn connect(&self, _: &str, _: u16) -> Connecting<'_> {
        Box::pin(async { Err(io::Error::other(REFUSAL)) })
    }

    fn agent(&self, _: &str) -> Connecting<'_> {
        Box::pin(async { Err(io::Error::other(REFUSAL)) })
    }
}
