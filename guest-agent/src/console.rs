//! What a person at the console sees: a few lines of the agent, and the app's output with limits.
//!
//! A serial console takes an exit from the guest for every byte, so writing to it is slow, and may
//! block. App output therefore goes through a queue that drops what it cannot hold to a thread that
//! exists from the first line on; nothing else ever waits for the console.

use crate::limits::{CONSOLE_BURST_BYTES, CONSOLE_QUEUE_LINES, CONSOLE_RATE_BYTES_PER_S};
use crate::timeline::now_ns;
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

const KERNEL_LOG: &str = "/dev/kmsg";
const CONSOLE: &str = "/dev/console";
/// The console thread formats nothing and recurses into nothing.
const THREAD_STACK_BYTES: usize = 64 * 1024;

/// Writes one line into the kernel's log, from where it reaches the console.
///
/// The level is "error" because a kernel that was started with `quiet` prints nothing milder, and
/// these few lines are meant to be seen.
pub fn kernel_log(text: &str) {
    let line = format!("<3>rotifer-agent: {}\n", text.replace('\n', " "));
    // Without a kernel log nobody can be told, so nobody is.
    if let Ok(mut log) = OpenOptions::new().write(true).open(KERNEL_LOG) {
        let _ = log.write_all(line.as_bytes());
    }
}

/// The app's way to the console.
#[derive(Debug)]
pub struct Console {
    state: RefCell<State>,
}

#[derive(Debug)]
enum State {
    /// No console, or nobody wants the lines there.
    Off,
    /// Nothing was written yet.
    Idle,
    Running {
        queue: SyncSender<Vec<u8>>,
        budget: Budget,
        dropped_count: u64,
    },
}

impl Console {
    /// A console that is opened when the first line comes.
    #[must_use]
    pub fn on_demand() -> Self {
        Self { state: RefCell::new(State::Idle) }
    }

    /// No console.
    #[must_use]
    pub fn off() -> Self {
        Self { state: RefCell::new(State::Off) }
    }

    /// Shows a line of the app, or counts it as dropped if there were too many.
    pub fn show(&self, line: &[u8]) {
        let mut state = self.state.borrow_mut();
        if matches!(*state, State::Idle) {
            *state = start();
        }
        let State::Running { queue, budget, dropped_count } = &mut *state else { return };
        let mut text = Vec::with_capacity(line.len() + 8);
        if *dropped_count > 0 {
            text.extend_from_slice(
                format!("app: ({dropped_count} lines are not shown here)\r\n").as_bytes(),
            );
        }
        text.extend_from_slice(b"app: ");
        text.extend_from_slice(line);
        text.extend_from_slice(b"\r\n");
        if budget.take(text.len() as u64, now_ns()) && queue.try_send(text).is_ok() {
            *dropped_count = 0;
        } else {
            *dropped_count += 1;
        }
    }
}

fn start() -> State {
    let console =
        OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC).open(CONSOLE);
    let Ok(mut console) = console else { return State::Off };
    let (queue, lines): (SyncSender<Vec<u8>>, Receiver<Vec<u8>>) =
        sync_channel(CONSOLE_QUEUE_LINES);
    let thread = std::thread::Builder::new()
        .name("console".into())
        .stack_size(THREAD_STACK_BYTES)
        .spawn(move || {
            for line in lines {
                if console.write_all(&line).is_err() {
                    return;
                }
            }
        });
    match thread {
        Ok(_) => State::Running { queue, budget: Budget::new(now_ns()), dropped_count: 0 },
        Err(_) => State::Off,
    }
}

/// A token bucket without a timer: what has flowed in is computed when something is taken out.
#[derive(Debug)]
struct Budget {
    available_bytes: u64,
    filled_at_ns: u64,
}

impl Budget {
    fn new(now_ns: u64) -> Self {
        Self { available_bytes: CONSOLE_BURST_BYTES, filled_at_ns: now_ns }
    }

    fn take(&mut self, bytes: u64, now_ns: u64) -> bool {
        let elapsed_ms = now_ns.saturating_sub(self.filled_at_ns) / 1_000_000;
        let earned = elapsed_ms.saturating_mul(CONSOLE_RATE_BYTES_PER_S) / 1000;
        if earned > 0 {
            self.available_bytes =
                self.available_bytes.saturating_add(earned).min(CONSOLE_BURST_BYTES);
            self.filled_at_ns = now_ns;
        }
        match self.available_bytes.checked_sub(bytes) {
            Some(rest) => {
                self.available_bytes = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_passes_at_the_rate() {
        let mut budget = Budget::new(0);
        assert!(budget.take(CONSOLE_BURST_BYTES, 0));
        assert!(!budget.take(1, 0));
        let mut passed_bytes = 0;
        for millisecond in 1..=10_000u64 {
            while budget.take(64, millisecond * 1_000_000) {
                passed_bytes += 64;
            }
        }
        let allowed = 10 * CONSOLE_RATE_BYTES_PER_S;
        assert!(passed_bytes <= allowed, "{passed_bytes} of {allowed}");
        assert!(passed_bytes >= allowed * 9 / 10, "{passed_bytes} of {allowed}");
    }
}
