//! Ends a build from another thread: what it waits for is its machine, whose process is killed, or a registry,
//! which is given up.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;

/// Cancels a build. Clones are of the same one; a build that is over does not mind.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Wakes who waits for the end.
    over: Condvar,
    /// Wakes who waits for something else than a machine.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    why: Option<Why>,
    is_over: bool,
    machine: Option<Process>,
}

/// Why a build is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Asked,
    Timeout,
}

impl Cancel {
    /// Ends the build, soon.
    pub fn cancel(&self) {
        self.end(Why::Asked);
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        self.why() == Some(Why::Asked)
    }

    pub(crate) fn why(&self) -> Option<Why> {
        self.state().why
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: Why) {
        let mut state = self.state();
        state.why.get_or_insert(why);
        if let Some(machine) = &state.machine {
            machine.kill();
        }
        self.0.ended.notify_waiters();
    }

    /// Waits until there is reason to end the build.
    pub(crate) async fn ended(&self) {
        // It hears of what comes from here on.
        let ended = self.0.ended.notified();
        if self.why().is_none() {
            ended.await;
        }
    }

    /// The machine that the build waits for from now on. It is killed at once if there is reason.
    pub(crate) fn watch(&self, machine: &Process) {
        let mut state = self.state();
        if state.why.is_some() {
            machine.kill();
        }
        state.machine = Some(machine.clone());
    }

    /// Begins a build that has so much time, until the result is dropped.
    pub(crate) fn begin(&self, limit: Duration) -> Going {
        self.state().is_over = false;
        let watched = self.clone();
        thread::spawn(move || {
            let (state, over) = (watched.state(), &watched.0.over);
            let waited = over.wait_timeout_while(state, limit, |state| !state.is_over);
            let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            drop(state);
            if timeout.timed_out() {
                watched.end(Why::Timeout);
            }
        });
        Going(self.clone())
    }
}

/// A build that goes on.
pub(crate) struct Going(Cancel);

impl Drop for Going {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        state.machine = None;
        self.0.0.over.notify_all();
    }
}

/// A process that more than one thread can kill, and that is waited for once.
#[derive(Debug, Clone)]
pub(crate) struct Process(Arc<Mutex<Child>>);

impl Process {
    pub(crate) fn new(child: Child) -> Self {
        Self(Arc::new(Mutex::new(child)))
    }

    pub(crate) fn kill(&self) {
        let mut child = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has ended by itself is as dead as it should be.
        let _ = child.kill();
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn end(&self) -> io::Result<ExitStatus> {
        self.kill();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{ChildStdout, Command, Stdio};

    /// A process that does not end, and what is closed when it does.
    fn sleeper() -> (Process, ChildStdout) {
        let mut child = Command::new("sleep").arg("1000").stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        (Process::new(child), output)
    }

    fn await_end((process, mut output): (Process, ChildStdout)) {
        assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
        assert!(!process.end().unwrap().success());
    }

    #[test]
    fn a_canceled_build_loses_its_machine_and_gets_no_other() {
        let cancel = Cancel::default();
        let _going = cancel.begin(Duration::from_secs(1000));
        let (first, second) = (sleeper(), sleeper());
        cancel.watch(&first.0);
        cancel.cancel();
        await_end(first);
        cancel.watch(&second.0);
        await_end(second);
        assert!(cancel.is_canceled());
    }

    #[test]
    fn a_build_that_takes_too_long_is_ended() {
        let cancel = Cancel::default();
        let machine = sleeper();
        let _going = cancel.begin(Duration::ZERO);
        cancel.watch(&machine.0);
        await_end(machine);
        assert_eq!((cancel.why(), cancel.is_canceled()), (Some(Why::Timeout), false));
    }
}
