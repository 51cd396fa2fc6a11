//! A VMM's API: when it can be reached, and requests to it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::yield_now;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::Value;

use crate::vm::{DEADLINE, Process};

/// More than any answer has.
const ANSWER_MAX_BYTES: usize = 64 << 10;
/// Done, with and without a body.
const GOOD: [&[u8]; 3] = [b"HTTP/1.1 200", b"HTTP/1.1 201", b"HTTP/1.1 204"];

/// Watches for the API's socket.
#[derive(Debug)]
pub struct SocketWatch {
    socket: PathBuf,
    created: OwnedFd,
}

impl SocketWatch {
    /// Before the VMM is started.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new(directory: &Path) -> Result<Self> {
        // Nothing else is ever created there.
        let own = directory.join("api");
        fs::create_dir(&own).context("cannot make a directory for the API's socket")?;
        let created = inotify::init(CreateFlags::CLOEXEC).context("cannot watch a directory")?;
        inotify::add_watch(&created, &own, WatchFlags::CREATE)
            .context("cannot watch the directory of the API's socket")?;
        Ok(Self { socket: own.join("api.sock"), created })
    }

    /// Where the VMM is to listen.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for the socket.
    ///
    /// # Errors
    /// The process ends or the deadline passes first.
    pub fn wait_until_created(&self, process: &Process) -> Result<()> {
        process.wait_for(&self.created, "its socket was there")
    }

    /// Waits for the API's socket and connects to it.
    ///
    /// # Errors
    /// The VMM ends or the deadline passes first.
    pub fn wait(&self, process: &Process) -> Result<Api> {
        self.wait_until_created(process)?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Api::over(stream),
                // Between `bind`, which makes the file, and `listen` there are microseconds.
                Err(error)
                    if error.kind() == ErrorKind::ConnectionRefused
                        && Instant::now() < deadline =>
                {
                    yield_now();
                }
                Err(error) => return Err(process.explain(format!("cannot connect: {error}"))),
            }
        }
    }
}

/// A connection to the API, for one request after the other.
#[derive(Debug)]
pub struct Api {
    stream: UnixStream,
}

impl Api {
    /// Over a connection.
    ///
    /// # Errors
    /// The host refuses.
    pub fn over(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
        Ok(Self { stream })
    }

    /// Asks for the description of the instance, which both APIs have from the start.
    ///
    /// # Errors
    /// There is no good answer.
    pub fn get_instance(&mut self) -> Result<()> {
        self.request("GET", "/", None).map(drop)
    }

    /// Sends a request and waits for its answer, whose body is returned.
    ///
    /// # Errors
    /// There is no good answer.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        self.send(method, path, body)?;
        self.receive().with_context(|| format!("the VMM does not do {method} {path}"))
    }

    /// Sends a request; the connection is readable when it is answered.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<()> {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
        let body = body.map(Value::to_string).unwrap_or_default();
        if !body.is_empty() {
            request += "Content-Type: application/json\r\n";
            request += &format!("Content-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += &body;
        self.stream.write_all(request.as_bytes()).context("cannot send a request to the API")
    }

    /// Waits for the answer of what was sent, and returns its body.
    ///
    /// # Errors
    /// It is none, or no good one.
    pub fn receive(&mut self) -> Result<String> {
        receive(&mut self.stream)
    }
}

impl AsFd for Api {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Waits for an answer, and returns its body.
///
/// # Errors
/// It is none, or no good one.
pub fn receive(stream: &mut impl Read) -> Result<String> {
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while !is_whole(&answer) {
        let count = stream.read(&mut piece).context("cannot read the API's answer")?;
        if count == 0 || answer.len() > ANSWER_MAX_BYTES {
            bail!("the API's answer is none: {}", String::from_utf8_lossy(&answer));
        }
        answer.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
    if !GOOD.iter().any(|status| answer.starts_with(status)) {
        bail!("the API refuses: {}", String::from_utf8_lossy(&answer));
    }
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Whether the head of an answer is there, and as much behind it as the head says.
fn is_whole(answer: &[u8]) -> bool {
    let end = b"\r\n\r\n";
    let Some(head_bytes) = answer.windows(end.len()).position(|bytes| bytes == end) else {
        return false;
    };
    let head = String::from_utf8_lossy(answer.get(..head_bytes).unwrap_or_default());
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let mut length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body_bytes = length.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
    answer.len() - head_bytes - end.len() >= body_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    #[test]
    fn a_socket_that_appears_is_noticed_without_polling() {
        let directory = tempfile::tempdir().unwrap();
        let watch = SocketWatch::new(directory.path()).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec sleep 1000"]);
        let process = Process::start(command, directory.path()).unwrap();
        let path = watch.socket().to_path_buf();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = UnixListener::bind(path).unwrap().accept().unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0, "a request");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        });
        watch.wait(&process).unwrap().get_instance().unwrap();
        server.join().unwrap();
    }

    /// What a request says of an API that answers so and then ends.
    fn answered(answer: &str) -> Result<String> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer.as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        Api::over(ours).unwrap().request("PUT", "/x", Some(&serde_json::json!({"a": 1})))
    }

    #[test]
    fn an_answer_that_is_not_good_or_not_whole_is_an_error() {
        let long = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        for answer in ["HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 200 OK\r\n", long, ""] {
            assert!(answered(answer).is_err(), "{answer}");
        }
        assert_eq!(answered(&format!("{long}abc")).unwrap(), "abc");
        assert_eq!(answered("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), "");
    }

    #[test]
    fn a_refusal_is_shown_with_its_reason() {
        let refusal = "HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\nno disk";
        let error = format!("{:#}", answered(refusal).unwrap_err());
        assert!(error.contains("PUT /x") && error.contains("no disk"), "{error}");
    }
}
