//! The app's output as numbered lines, in a ring of bounded size that readers can follow.
//!
//! A reader that is slower than the app misses lines and sees it in their numbers; the app is never
//! slowed down by a reader, and the ring never grows for one.

use crate::limits::{LOG_LINE_MAX_BYTES, LOG_LINE_OVERHEAD_BYTES, LOG_RING_BYTES};
use crate::timeline::now_ns;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::VecDeque;
use tokio::sync::Notify;

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// The app's standard output.
    Stdout,
    /// The app's standard error.
    Stderr,
    /// The agent itself: the app started, exited, could not be started.
    Agent,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Counts up from 1 without a gap over all streams.
    pub sequence: u64,
    /// When the line was complete, on the guest's monotonic clock.
    pub time_ns: u64,
    /// Where it comes from.
    pub stream: Stream,
    /// The text without its newline; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// The ring of the most recent lines.
#[derive(Debug, Default)]
pub struct Logs {
    ring: RefCell<Ring>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    used_bytes: usize,
    last_sequence: u64,
}

impl Logs {
    /// Adds a line, dropping the oldest ones if the ring is full.
    pub fn push(&self, stream: Stream, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut ring = self.ring.borrow_mut();
        ring.last_sequence += 1;
        let line = Line { sequence: ring.last_sequence, time_ns: now_ns(), stream, text };
        ring.used_bytes += line.cost_bytes();
        ring.lines.push_back(line);
        while ring.used_bytes > LOG_RING_BYTES
            && let Some(oldest) = ring.lines.pop_front()
        {
            ring.used_bytes -= oldest.cost_bytes();
        }
        drop(ring);
        self.changed.notify_waiters();
    }

    /// The number of the newest line; 0 if there was none yet.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.ring.borrow().last_sequence
    }

    /// Lines after number `after` up to number `until`, oldest first, as newline-delimited JSON of
    /// about `limit_bytes`, with the number of the last one; `None` if there is none.
    #[must_use]
    pub fn read(&self, after: u64, until: u64, limit_bytes: usize) -> Option<(Vec<u8>, u64)> {
        let ring = self.ring.borrow();
        let oldest = ring.lines.front()?.sequence;
        let skip = after.saturating_add(1).saturating_sub(oldest);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut json = Vec::new();
        let mut last = None;
        for line in ring.lines.iter().skip(skip).take_while(|line| line.sequence <= until) {
            // Serialising strings and numbers into memory cannot fail.
            if serde_json::to_writer(&mut json, line).is_err() {
                break;
            }
            json.push(b'\n');
            last = Some(line.sequence);
            if json.len() >= limit_bytes {
                break;
            }
        }
        last.map(|last| (json, last))
    }

    /// Returns when a line after `sequence` exists.
    pub async fn wait_after(&self, sequence: u64) {
        loop {
            let changed = self.changed.notified();
            if self.ring.borrow().last_sequence > sequence {
                return;
            }
            changed.await;
        }
    }
}

impl Line {
    fn cost_bytes(&self) -> usize {
        self.text.len() + LOG_LINE_OVERHEAD_BYTES
    }
}

/// Cuts a stream of bytes into lines of at most [`LOG_LINE_MAX_BYTES`].
#[derive(Debug, Default)]
pub struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Takes bytes, and calls `line` with each line that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = LOG_LINE_MAX_BYTES - self.partial.len();
            let window = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
            let newline = window.iter().position(|byte| *byte == b'\n');
            let (taken, rest) = match newline {
                Some(at) => (window.get(..at).unwrap_or_default(), bytes.get(at + 1..)),
                None => (window, bytes.get(window.len()..)),
            };
            bytes = rest.unwrap_or_default();
            self.partial.extend_from_slice(taken);
            if newline.is_some() || self.partial.len() >= LOG_LINE_MAX_BYTES {
                line(&self.partial);
                self.partial.clear();
            }
        }
    }

    /// Gives what is left when the stream ends without a newline.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&self.partial);
            self.partial.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequences(logs: &Logs, after: u64) -> Vec<u64> {
        let Some((json, _)) = logs.read(after, u64::MAX, usize::MAX) else { return Vec::new() };
        json.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<Line>(line).unwrap().sequence)
            .collect()
    }

    #[test]
    fn lines_are_numbered_and_read_from_where_one_stopped() {
        let logs = Logs::default();
        assert!(logs.read(0, u64::MAX, 1000).is_none());
        for text in ["one", "two", "three"] {
            logs.push(Stream::Stdout, text.as_bytes());
        }
        assert_eq!(sequences(&logs, 0), [1, 2, 3]);
        assert_eq!(sequences(&logs, 2), [3]);
        assert!(logs.read(3, u64::MAX, 1000).is_none());
        assert!(logs.read(u64::MAX, u64::MAX, 1000).is_none());
        assert_eq!(logs.read(0, 2, 1000).unwrap().1, 2);
    }

    #[test]
    fn a_flood_drops_the_oldest_lines_and_never_grows() {
        let logs = Logs::default();
        for _ in 0..3 * LOG_RING_BYTES / 100 {
            logs.push(Stream::Stdout, &[b'x'; 100]);
        }
        for _ in 0..3 * LOG_RING_BYTES / LOG_LINE_OVERHEAD_BYTES {
            logs.push(Stream::Stderr, b"");
        }
        let ring = logs.ring.borrow();
        assert!(ring.used_bytes <= LOG_RING_BYTES);
        assert!(ring.lines.len() <= LOG_RING_BYTES / LOG_LINE_OVERHEAD_BYTES);
        assert_eq!(ring.lines.back().unwrap().sequence, ring.last_sequence);
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let mut splitter = LineSplitter::default();
        let mut lengths = Vec::new();
        splitter.feed(&vec![b'a'; 2 * LOG_LINE_MAX_BYTES + 5], |line| lengths.push(line.len()));
        splitter.finish(|line| lengths.push(line.len()));
        assert_eq!(lengths, [LOG_LINE_MAX_BYTES, LOG_LINE_MAX_BYTES, 5]);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(
            text in "([a-c]{0,5}\n){0,10}[a-c]{0,5}",
            piece_bytes in 1usize..7,
        ) {
            let mut splitter = LineSplitter::default();
            let mut lines = Vec::new();
            for piece in text.as_bytes().chunks(piece_bytes) {
                splitter.feed(piece, |line| lines.push(String::from_utf8(line.to_vec()).unwrap()));
            }
            splitter.finish(|line| lines.push(String::from_utf8(line.to_vec()).unwrap()));
            let expected: Vec<_> = text.lines().map(str::to_owned).collect();
            prop_assert_eq!(lines, expected);
        }
    }
}
