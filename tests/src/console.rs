//! What a process printed, collected while it runs.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use crate::DEADLINE;

/// How much of the end a failure shows.
const TAIL_BYTES: usize = 3000;

/// The output of a guest's console or of a VMM, as it arrives.
#[derive(Clone, Default)]
pub struct Console {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    text: Vec<u8>,
    ended: bool,
}

impl Console {
    /// Collects all of `stream` on a thread of its own.
    pub fn collect(mut stream: impl Read + Send + 'static) -> Self {
        let console = Self::default();
        let shared = console.shared.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = stream.read(&mut buffer).unwrap_or(0);
                let mut state = shared.state.lock().expect("no panic happens under this lock");
                state.text.extend_from_slice(&buffer[..count]);
                state.ended = count == 0;
                shared.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        console
    }

    /// Waits until `text` has been printed.
    ///
    /// # Panics
    /// If the stream ends or the deadline passes first; the message shows what was printed.
    pub fn wait_for(&self, text: &str) {
        let found = |state: &State| contains(&state.text, text.as_bytes());
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.shared.state.lock().expect("no panic happens under this lock");
        while !found(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            let reason = match (state.ended, left.is_zero()) {
                (true, _) => "before the console ended",
                (_, true) => "before the deadline",
                _ => {
                    let wait = self.shared.changed.wait_timeout(state, left);
                    state = wait.expect("no panic happens under this lock").0;
                    continue;
                }
            };
            drop(state);
            panic!("{text:?} was not printed {reason}; the end of it:\n{}", self.tail());
        }
    }

    /// Waits until the stream has ended, and returns all of it.
    ///
    /// # Panics
    /// If the deadline passes first.
    pub fn all(&self) -> String {
        let state = self.shared.state.lock().expect("no panic happens under this lock");
        let ended = self.shared.changed.wait_timeout_while(state, DEADLINE, |state| !state.ended);
        let (state, timeout) = ended.expect("no panic happens under this lock");
        assert!(!timeout.timed_out(), "the console did not end");
        String::from_utf8_lossy(&state.text).into_owned()
    }

    /// Whether `text` has been printed so far.
    pub fn has(&self, text: &str) -> bool {
        let state = self.shared.state.lock().expect("no panic happens under this lock");
        contains(&state.text, text.as_bytes())
    }

    /// The end of what was printed so far.
    pub fn tail(&self) -> String {
        let state = self.shared.state.lock().expect("no panic happens under this lock");
        let start = state.text.len().saturating_sub(TAIL_BYTES);
        String::from_utf8_lossy(&state.text[start..]).into_owned()
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
