//! The other side of the API: a small blocking client for tests, benchmarks and demonstrations.
//!
//! It needs nothing but the standard library and a JSON parser. Every wait has a deadline and every
//! answer a limit. Each request makes a connection of its own: what is measured with it is what a
//! first request costs.

mod http;
mod stream;

pub use http::{Response, Tunnel};
pub use stream::{ExecEvent, ExecInput, ExecStream};

use crate::agent::ShutdownMode;
use crate::api::query::encode;
use crate::exec::ExecRequest;
use crate::exec::collect::Collected;
use http::Connection;
use serde_json::Value;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one read or write may take unless [`AgentClient::with_timeout`] says otherwise. Machines
/// may be emulated and busy.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket of the VMM, or the agent's own, does not take a connection.
    #[error("cannot connect to {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The VMM did not pass the connection on to the guest's port.
    #[error("{} did not connect to the guest's port {port}: {answer:?}", socket.display())]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// The vsock port.
        port: u32,
        /// What came in place of `OK`.
        answer: String,
    },
    /// Sending or receiving failed, or took too long.
    #[error("cannot {attempt}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The answer is not what the API promises.
    #[error("the agent's answer is not valid: {what}")]
    Protocol {
        /// In what way.
        what: String,
    },
    /// The agent refused.
    #[error("the agent answers {status} {code}: {message}")]
    Agent {
        /// The HTTP status.
        status: u16,
        /// The error's code.
        code: String,
        /// The error's message.
        message: String,
    },
}

/// Where an agent is, and how patient to be with it.
#[derive(Debug, Clone)]
pub struct AgentClient {
    socket: PathBuf,
    /// The guest's port behind a VMM's socket; `None` for an agent that listens on `socket`.
    port: Option<u32>,
    timeout: Duration,
}

impl AgentClient {
    /// An agent behind the Unix socket of a VMM's vsock device.
    pub fn over_vsock(socket: impl Into<PathBuf>, port: u32) -> Self {
        Self { socket: socket.into(), port: Some(port), timeout: TIMEOUT }
    }

    /// An agent that listens on a Unix socket itself.
    pub fn over_unix(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), port: None, timeout: TIMEOUT }
    }

    /// The same with another limit on every single read and write.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The agent's health.
    ///
    /// # Errors
    /// No good answer.
    pub fn health(&self) -> Result<Value, ClientError> {
        self.request("GET", "/v1/health", &[], b"")?.json()
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It was not started, or no good answer. A command that fails is a good answer.
    pub fn exec(&self, request: &ExecRequest) -> Result<Collected, ClientError> {
        self.request("POST", "/v1/exec", &[], &to_json(request))?.json()
    }

    /// Starts a command as a stream.
    ///
    /// # Errors
    /// It was not started, or no good answer.
    pub fn exec_stream(&self, request: &ExecRequest) -> Result<ExecStream, ClientError> {
        let upgrade = [("connection", "upgrade"), ("upgrade", "rotifer-stream")];
        let mut connection = self.connect()?;
        connection.send_request("POST", "/v1/exec", &upgrade, &to_json(request))?;
        Ok(ExecStream::new(connection.into_upgraded(101)?))
    }

    /// Starts the app.
    ///
    /// # Errors
    /// It was not started, or no good answer.
    pub fn start_app(&self, description: &Value) -> Result<Value, ClientError> {
        self.request("POST", "/v1/app", &[], &to_json(description))?.json()
    }

    /// What the app is doing.
    ///
    /// # Errors
    /// No good answer.
    pub fn app(&self) -> Result<Value, ClientError> {
        self.request("GET", "/v1/app", &[], b"")?.json()
    }

    /// Writes a file of `length_bytes`, read from `source`. `options` is the rest of the query, for
    /// example `mode=755&mkdir=true`.
    ///
    /// # Errors
    /// No good answer, or `source` gives too little.
    pub fn put_file(
        &self,
        path: &Path,
        options: &str,
        source: impl Read,
        length_bytes: u64,
    ) -> Result<(), ClientError> {
        let target = format!("{}&{options}", file_target("/v1/files", path));
        let mut connection = self.connect()?;
        connection.send_stream("PUT", target.trim_end_matches('&'), source, length_bytes)?;
        connection.response()?.good()?.text().map(drop)
    }

    /// Reads a file into `sink` and returns its length in bytes.
    ///
    /// # Errors
    /// No good answer, or `sink` does not take it.
    pub fn get_file(&self, path: &Path, mut sink: impl Write) -> Result<u64, ClientError> {
        let mut response = self.request("GET", &file_target("/v1/files", path), &[], b"")?;
        io::copy(&mut response, &mut sink)
            .map_err(|source| ClientError::Io { attempt: "receive a file", source })
    }

    /// Deletes a file or, with all that is in it, a directory.
    ///
    /// # Errors
    /// No good answer.
    pub fn delete_file(&self, path: &Path) -> Result<(), ClientError> {
        let target = format!("{}&recursive=true", file_target("/v1/files", path));
        self.request("DELETE", &target, &[], b"")?.text().map(drop)
    }

    /// What there is under a path.
    ///
    /// # Errors
    /// No good answer.
    pub fn stat(&self, path: &Path) -> Result<Value, ClientError> {
        self.request("GET", &file_target("/v1/files/stat", path), &[], b"")?.json()
    }

    /// A page of a directory; `options` is the rest of the query.
    ///
    /// # Errors
    /// No good answer.
    pub fn list(&self, path: &Path, options: &str) -> Result<Value, ClientError> {
        let target = format!("{}&{options}", file_target("/v1/files/list", path));
        self.request("GET", target.trim_end_matches('&'), &[], b"")?.json()
    }

    /// The log lines after a number; with `follow` the answer goes on for as long as it is read.
    ///
    /// # Errors
    /// No good answer.
    pub fn logs(&self, after: u64, follow: bool) -> Result<Response, ClientError> {
        self.request("GET", &format!("/v1/logs?after={after}&follow={follow}"), &[], b"")
    }

    /// Connects to a TCP port inside the guest, for example `localhost:8080`.
    ///
    /// # Errors
    /// Nobody listens there, or no good answer.
    pub fn tunnel(&self, target: &str) -> Result<Tunnel, ClientError> {
        let mut connection = self.connect()?;
        connection.send_request("CONNECT", target, &[], b"")?;
        connection.into_upgraded(200)
    }

    /// Ends the guest.
    ///
    /// # Errors
    /// No good answer.
    pub fn shutdown(&self, mode: ShutdownMode) -> Result<(), ClientError> {
        let wish = to_json(&serde_json::json!({ "mode": mode }));
        self.request("POST", "/v1/shutdown", &[], &wish)?.text().map(drop)
    }

    /// Any request; the answer is good or an error.
    ///
    /// # Errors
    /// No good answer.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, ClientError> {
        let mut connection = self.connect()?;
        connection.send_request(method, target, headers, body)?;
        connection.response()?.good()
    }

    fn connect(&self) -> Result<Connection, ClientError> {
        Connection::open(&self.socket, self.port, self.timeout)
    }
}

fn file_target(endpoint: &str, path: &Path) -> String {
    format!("{endpoint}?path={}", encode(path.as_os_str().as_bytes()))
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // The API's own types: strings, numbers and maps with string keys, which cannot fail.
    serde_json::to_vec(value).unwrap_or_default()
}
