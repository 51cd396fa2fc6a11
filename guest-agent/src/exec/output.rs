//! Output of a command, until it ends: the end of the pipe, or shortly after that of the process.

use crate::limits::{EXEC_LINGER, EXEC_LINGER_BYTES};
use crate::process::pipe::Pipe;
use std::cell::Cell;
use tokio::sync::Notify;

/// Something that happens once and is then so.
#[derive(Debug, Default)]
pub struct Event {
    happened: Cell<bool>,
    changed: Notify,
}

impl Event {
    /// Now it is so.
    pub fn set(&self) {
        self.happened.set(true);
        self.changed.notify_waiters();
    }

    /// Whether it is so.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.happened.get()
    }

    /// Returns when it is so.
    pub async fn wait(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_set() {
                return;
            }
            changed.await;
        }
    }
}

/// One pipe of a command.
///
/// When the command's process has ended, background processes may hold the pipe open, silently or
/// chattering, for as long as they like. So what the pipe holds is then still read, but a silence of
/// [`EXEC_LINGER`] or [`EXEC_LINGER_BYTES`] end it.
#[derive(Debug)]
pub struct Output<'a> {
    pipe: &'a Pipe,
    process_ended: &'a Event,
    left_bytes: usize,
}

impl<'a> Output<'a> {
    /// Output from `pipe` of a process that sets `process_ended`.
    #[must_use]
    pub fn new(pipe: &'a Pipe, process_ended: &'a Event) -> Self {
        Self { pipe, process_ended, left_bytes: EXEC_LINGER_BYTES }
    }

    /// Reads the next piece; `None` at the end.
    pub async fn next<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let running = tokio::select! {
            biased;
            () = self.process_ended.wait() => None,
            count = self.pipe.read(buffer) => Some(count),
        };
        let count = match running {
            Some(count) => count,
            None if self.left_bytes == 0 => return None,
            None => tokio::time::timeout(EXEC_LINGER, self.pipe.read(buffer)).await.ok()?,
        };
        let count = count.ok().filter(|count| *count > 0)?;
        if self.process_ended.is_set() {
            self.left_bytes = self.left_bytes.saturating_sub(count);
        }
        buffer.get(..count)
    }
}
