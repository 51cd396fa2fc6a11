//! Learns of ended children from SIGCHLD, and leaves no zombie behind.
//!
//! The reaper, every spawn and every kill live on one thread. So a child cannot be reaped between
//! its start and [`Reaper::watch`], and a process id is never signalled after it was reaped and
//! perhaps given to somebody else.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// It returned this exit status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with status {code}"),
            Exit::Signal(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// Whose ends the reaper collects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every child, orphans of others included: the duty of PID 1.
    Everything,
    /// Only the watched ones: the agent is a guest in somebody else's process.
    Watched,
}

/// The one place that waits for children.
#[derive(Debug)]
pub struct Reaper {
    scope: Scope,
    watched: RefCell<HashMap<i32, oneshot::Sender<Exit>>>,
    signals: RefCell<Option<tokio::signal::unix::Signal>>,
    collected: Notify,
}

impl Reaper {
    /// Starts to listen to SIGCHLD; nothing is collected before [`Reaper::run`].
    ///
    /// # Errors
    /// The signal cannot be listened to.
    pub fn new(scope: Scope) -> io::Result<Self> {
        let signals = RefCell::new(Some(signal(SignalKind::child())?));
        Ok(Self { scope, watched: RefCell::default(), signals, collected: Notify::new() })
    }

    /// The future end of a child that was started just now.
    pub fn watch(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.watched.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Signals the process group that the child leads, if the child was not reaped yet. Signals by
    /// number, because those of real time have no names.
    pub fn signal_group(&self, pid: i32, signal: i32) {
        if self.watched.borrow().contains_key(&pid) {
            // SAFETY: plain numbers. That it fails means that the group ended in this moment or
            // that the number is no signal: nobody is signalled.
            unsafe { libc::killpg(pid, signal) };
        }
    }

    /// Collects ended children for ever.
    pub async fn run(&self) {
        let Some(mut signals) = self.signals.borrow_mut().take() else { return };
        loop {
            self.collect();
            self.collected.notify_waiters();
            if signals.recv().await.is_none() {
                return;
            }
        }
    }

    /// Returns when this process has no children any more.
    pub async fn all_gone(&self) {
        loop {
            let collected = self.collected.notified();
            if !has_children() {
                return;
            }
            collected.await;
        }
    }

    fn collect(&self) {
        match self.scope {
            Scope::Everything => while self.collect_one(-1) {},
            Scope::Watched => {
                let pids: Vec<i32> = self.watched.borrow().keys().copied().collect();
                for pid in pids {
                    self.collect_one(pid);
                }
            }
        }
    }

    /// Whether there may be more.
    fn collect_one(&self, which: i32) -> bool {
        let mut status = 0;
        // SAFETY: the pointer is to a live integer. (nix's wrapper is of no use here: it loses a
        // child that a real-time signal killed.)
        let pid = unsafe { libc::waitpid(which, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return pid < 0 && Errno::last() == Errno::EINTR;
        }
        let status = ExitStatus::from_raw(status);
        let exit = match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => return true, // stopped or continued, which was not asked for
        };
        if let Some(sender) = self.watched.borrow_mut().remove(&pid) {
            // Nobody may be interested any more.
            let _ = sender.send(exit);
        }
        true
    }
}

fn has_children() -> bool {
    // SAFETY: a siginfo_t is plain bytes, for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to a live siginfo_t.
    unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) == 0 }
}
