//! When a VMM's API can be reached.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::yield_now;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::vm::{DEADLINE, Process};

/// More than any answer has.
const ANSWER_MAX_BYTES: u64 = 64 << 10;

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

    /// Waits for the socket and connects to it.
    ///
    /// # Errors
    /// The VMM ends or the deadline passes first.
    pub fn wait(&self, process: &Process) -> Result<UnixStream> {
        process.wait_for(&self.created, "its API's socket was there")?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
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

/// Asks for the description of the instance, which both APIs have from the start.
///
/// # Errors
/// There is no good answer.
pub fn get_instance(mut stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(DEADLINE)).context("cannot set a deadline")?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")
        .context("cannot send a request to the API")?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let count = stream.read(&mut piece).context("cannot read the API's answer")?;
        if count == 0 || answer.len() as u64 > ANSWER_MAX_BYTES {
            bail!("the API's answer is none: {}", String::from_utf8_lossy(&answer));
        }
        answer.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!("the API does not describe its instance: {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
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
        get_instance(watch.wait(&process).unwrap()).unwrap();
        server.join().unwrap();
    }

    #[test]
    fn an_answer_that_is_no_200_is_an_error() {
        for answer in ["HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 200 OK\r\n", ""] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(answer.as_bytes()).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(get_instance(ours).is_err(), "{answer}");
        }
    }
}
