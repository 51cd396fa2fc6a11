//! Where the serial console is connected on the host.
//!
//! Guest output never makes a vCPU wait: what the host does not take at once is kept, up to
//! [`BACKLOG_BYTES_MAX`], and written by the io thread when the reader is ready again. What does
//! not fit is dropped, counted, and the reader is told how much it missed.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSubscriber, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::Console;

/// How much output may wait for its reader.
pub const BACKLOG_BYTES_MAX: usize = 64 << 10;
/// What is written at a time to a descriptor that could block: a pipe that can be written at all
/// takes this much (POSIX, `PIPE_BUF`).
const PATIENT_BYTES_MAX: usize = 512;
/// How long the last output may wait for its reader when the machine has ended.
const FINISH_WAIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Why the console cannot be connected.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file cannot be opened.
    #[error("open {} for the serial console's output", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Standard input or output cannot be used.
    #[error("connect the serial console with {what}")]
    Connect {
        /// Which.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Opens what `console` names: output, and input where there is some.
///
/// # Errors
/// See [`ConsoleError`].
pub fn connect(console: &Console) -> Result<(Arc<Output>, Option<File>), ConsoleError> {
    let connect = |what| move |source| ConsoleError::Connect { what, source };
    let (output, input) = match console {
        Console::Stdio => {
            let output = standard_output().map_err(connect("standard output"))?;
            (output, standard_input().map_err(connect("standard input"))?)
        }
        Console::File(path) => {
            // Read-write, so that a FIFO opens without a reader and keeps what nobody reads yet.
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)
                .map_err(|source| ConsoleError::Open { path: path.clone(), source })?;
            (Sink { file, may_block: false }, None)
        }
    };
    let more = EventFd::new(EFD_NONBLOCK).map_err(connect("an eventfd"))?;
    let backlog = Mutex::new(Backlog { sink: output, waiting: Vec::new(), lost_bytes: 0 });
    Ok((Arc::new(Output { backlog, more }), input))
}

/// The console's output.
pub struct Output {
    backlog: Mutex<Backlog>,
    /// Written when output begins to wait.
    more: EventFd,
}

/// What the serial port writes to. Writing always succeeds and never waits.
pub struct Writer(Arc<Output>);

struct Backlog {
    sink: Sink,
    /// In the order of the guest's writing, before anything that is yet to come.
    waiting: Vec<u8>,
    /// Came after what is waiting, and found no room.
    lost_bytes: u64,
}

struct Sink {
    file: File,
    /// Others have the same open file, so it cannot be made non-blocking for us alone.
    may_block: bool,
}

impl From<Arc<Output>> for Writer {
    fn from(output: Arc<Output>) -> Self {
        Self(output)
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut backlog = self.0.backlog();
        let was_empty = backlog.waiting.is_empty();
        let rest = if was_empty { backlog.sink.write_some(bytes) } else { bytes };
        backlog.keep(rest);
        if was_empty && !backlog.waiting.is_empty() {
            // A full counter wakes as well.
            let _ = self.0.more.write(1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    /// Writes what still waits, for a moment: the machine has ended.
    pub fn finish(&self) {
        let mut backlog = self.backlog();
        while !backlog.flush() {
            let mut fds = [PollFd::new(&backlog.sink.file, PollFlags::OUT)];
            if !matches!(poll(&mut fds, Some(&FINISH_WAIT)), Ok(1..)) {
                tracing::warn!(bytes = backlog.waiting.len(), "console output is not read: lost");
                return;
            }
        }
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSubscriber for Output {
    fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.more.as_raw_fd(), EventSet::IN)) {
            tracing::error!(%error, "watch for console output that waits");
        }
    }

    fn process(&self, events: Events, ops: &mut EventOps<'_>) {
        let mut backlog = self.backlog();
        let writable = Events::new_raw(backlog.sink.file.as_raw_fd(), EventSet::OUT);
        if events.fd() == self.more.as_raw_fd() {
            let _ = self.more.read();
            // Fails where it is being watched already, which is just as well.
            let _ = ops.add(writable);
        } else if backlog.flush() {
            let _ = ops.remove(writable);
        }
    }
}

impl Backlog {
    fn keep(&mut self, bytes: &[u8]) {
        let room = if self.lost_bytes == 0 { BACKLOG_BYTES_MAX - self.waiting.len() } else { 0 };
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        self.waiting.extend_from_slice(kept);
        self.lost_bytes += lost.len() as u64;
    }

    /// Writes what waits. True when nothing waits any more.
    fn flush(&mut self) -> bool {
        loop {
            let rest_bytes = self.sink.write_some(&self.waiting).len();
            self.waiting.drain(..self.waiting.len() - rest_bytes);
            if !self.waiting.is_empty() {
                return false;
            }
            if self.lost_bytes == 0 {
                // Memory for the next burst is not kept until then.
                self.waiting = Vec::new();
                return true;
            }
            let lost_bytes = std::mem::take(&mut self.lost_bytes);
            tracing::warn!(lost_bytes, "console output was dropped: its reader is too slow");
            let notice =
                format!("\r\n[rotifer-vmm: {lost_bytes} bytes of output were dropped]\r\n");
            self.waiting.extend_from_slice(notice.as_bytes());
        }
    }
}

impl Sink {
    /// Writes what is taken at once, and returns the rest.
    fn write_some<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while !bytes.is_empty() {
            let mut chunk = bytes;
            if self.may_block {
                if !self.writable() {
                    return bytes;
                }
                chunk = &bytes[..bytes.len().min(PATIENT_BYTES_MAX)];
            }
            match self.file.write(chunk) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return bytes,
                Err(error) => {
                    // The reader is gone or the disk is full. The guest goes on without.
                    tracing::debug!(%error, "write console output");
                    return &[];
                }
            }
        }
        bytes
    }

    fn writable(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(1..))
    }
}

/// Standard output, non-blocking where that does not change it for the other processes that have
/// it: an open file of our own is made where there can be one.
fn standard_output() -> io::Result<Sink> {
    let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(Sink { file, may_block: false });
    }
    if kind.is_fifo() || file.is_terminal() {
        let own = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if let Ok(file) = own {
            return Ok(Sink { file, may_block: false });
        }
    }
    Ok(Sink { file, may_block: true })
}

/// Standard input where something may come from it: a terminal whose foreground we are in (others
/// would be stopped), a pipe or a socket.
fn standard_input() -> io::Result<Option<File>> {
    let stdin = io::stdin();
    let file = File::from(stdin.as_fd().try_clone_to_owned()?);
    let kind = file.metadata()?.file_type();
    let usable = kind.is_fifo() || kind.is_socket() || crate::terminal::in_foreground(&file);
    Ok(usable.then_some(file))
}

#[cfg(test)]
mod tests;
