//! Gates: who may pass to a microVM at this moment, and what has passed.
//!
//! The fleet decides in what phase a microVM is; its gate is what the proxy sees of that, without waiting
//! for the fleet, which at times waits for a disk. Whoever passes is counted until the last byte of the
//! answer has gone: an idle microVM is one whose gate nobody is in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;

use super::upstream::Upstreams;
use crate::clock::{Clock, Timestamp};
use crate::fleet::Traffic;
use crate::fleet::microvm::{Admission, Phase};
use crate::fleet::records::Microvm;
use crate::settings::Settings;
use crate::worker::Worker;

/// All gates.
pub struct Gates {
    clock: Clock,
    worker: Arc<dyn Worker>,
    settings: Arc<Settings>,
    maps: RwLock<Maps>,
    counts: Arc<watch::Sender<Counts>>,
}

/// How many there are at all gates together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests and WebSockets that are in.
    pub open: usize,
    /// Those that wait to be let in.
    pub held: usize,
}

#[derive(Default)]
struct Maps {
    by_host: HashMap<String, Arc<Gate>>,
    by_id: HashMap<String, Arc<Gate>>,
}

/// The gate of one microVM.
pub struct Gate {
    /// The microVM's id.
    pub id: String,
    /// The name of its endpoint.
    pub host: String,
    clock: Clock,
    worker: Arc<dyn Worker>,
    settings: Arc<Settings>,
    counts: Arc<watch::Sender<Counts>>,
    state: Mutex<State>,
    phase: watch::Sender<Phase>,
}

struct State {
    may_wake: bool,
    /// Who is in.
    open: usize,
    /// Who waits to be let in.
    held: usize,
    /// Who was let in and is not noted anywhere else yet.
    requests: u64,
    /// When the last one went.
    ended: Timestamp,
    upstreams: Option<Upstreams>,
}

/// What somebody at a gate is told.
pub enum Entry {
    /// Come in.
    Pass(Pass),
    /// The microVM has to be woken first.
    Wake(Held),
    /// Something is under way.
    Wait(Held),
    /// There is nothing to come to.
    Closed,
    /// There are too many.
    Full,
}

/// Somebody who is in. Dropped when the last byte has gone.
pub struct Pass(Arc<Gate>);

/// Somebody who waits.
pub struct Held(Arc<Gate>);

impl Gates {
    /// No gates yet.
    pub fn new(clock: Clock, worker: Arc<dyn Worker>, settings: &Arc<Settings>) -> Self {
        let (settings, counts) = (Arc::clone(settings), Arc::default());
        Self { clock, worker, settings, maps: RwLock::default(), counts }
    }

    /// The gate of a host name.
    pub fn find(&self, host: &str) -> Option<Arc<Gate>> {
        self.read(|maps| maps.by_host.get(host).cloned())
    }

    /// What came through the gate of a microVM.
    pub fn traffic(&self, id: &str) -> Traffic {
        let Some(gate) = self.read(|maps| maps.by_id.get(id).cloned()) else {
            return Traffic::None;
        };
        let state = gate.state();
        if state.open > 0 { Traffic::Open } else { Traffic::Ended(state.ended) }
    }

    /// Requests and WebSockets that were let in to a microVM, without those that were forgotten.
    pub fn requests(&self, id: &str) -> u64 {
        let gate = self.read(|maps| maps.by_id.get(id).cloned());
        gate.map_or(0, |gate| gate.state().requests)
    }

    /// So many of them are noted elsewhere.
    pub fn forget_requests(&self, id: &str, count: u64) {
        if let Some(gate) = self.read(|maps| maps.by_id.get(id).cloned()) {
            let mut state = gate.state();
            state.requests = state.requests.saturating_sub(count);
        }
    }

    /// Keeps everybody out of a microVM that is to be suspended for being idle, if it still is.
    pub fn close_if_idle(&self, id: &str) -> bool {
        let Some(gate) = self.read(|maps| maps.by_id.get(id).cloned()) else { return true };
        let mut state = gate.state();
        let is_idle = state.open == 0;
        if is_idle {
            state.upstreams = None;
            gate.phase.send_replace(Phase::Suspending);
        }
        is_idle
    }

    /// A microVM is as the fleet says.
    pub fn put(&self, microvm: &Microvm) {
        let gate = self.read(|maps| maps.by_id.get(&microvm.id).cloned());
        let gate = gate.unwrap_or_else(|| {
            let gate = Arc::new(self.new_gate(microvm));
            let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
            maps.by_host.insert(gate.host.clone(), Arc::clone(&gate));
            maps.by_id.insert(gate.id.clone(), Arc::clone(&gate));
            gate
        });
        let mut state = gate.state();
        state.may_wake = microvm.idle_policy.is_some_and(|policy| policy.auto_resume_enabled);
        if microvm.phase != Phase::Running {
            // Nothing that was kept alive is alive afterwards.
            state.upstreams = None;
        }
        gate.phase.send_replace(microvm.phase);
    }

    /// A microVM is forgotten.
    pub fn remove(&self, id: &str) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = maps.by_id.remove(id) {
            maps.by_host.remove(&gate.host);
        }
    }

    /// How many there are, and every change of it.
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// The phases of all microVMs.
    pub fn phases(&self) -> Vec<Phase> {
        self.read(|maps| maps.by_id.values().map(|gate| *gate.phase.borrow()).collect())
    }

    fn new_gate(&self, microvm: &Microvm) -> Gate {
        let (may_wake, ended) = (false, self.clock.now());
        Gate {
            id: microvm.id.clone(),
            host: microvm.endpoint.clone(),
            clock: self.clock.clone(),
            worker: Arc::clone(&self.worker),
            settings: Arc::clone(&self.settings),
            counts: Arc::clone(&self.counts),
            state: Mutex::new(State {
                may_wake,
                open: 0,
                held: 0,
                requests: 0,
                ended,
                upstreams: None,
            }),
            phase: watch::Sender::new(microvm.phase),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Maps) -> T) -> T {
        look(&self.maps.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Gate {
    /// Asks to be let in.
    pub fn enter(self: &Arc<Self>) -> Entry {
        let mut state = self.state();
        let admission = self.phase.borrow().admit(state.may_wake);
        match admission {
            Admission::Pass => {
                let in_all = self.counts.borrow().open;
                if state.open >= self.settings.limits.streams_per_microvm
                    || in_all >= self.settings.limits.streams
                {
                    return Entry::Full;
                }
                state.open += 1;
                state.requests += 1;
                self.counts.send_modify(|counts| counts.open += 1);
                Entry::Pass(Pass(Arc::clone(self)))
            }
            Admission::Refuse => Entry::Closed,
            Admission::Wake | Admission::Wait => {
                if state.held >= self.settings.limits.held_per_microvm {
                    return Entry::Full;
                }
                state.held += 1;
                self.counts.send_modify(|counts| counts.held += 1);
                let held = Held(Arc::clone(self));
                if admission == Admission::Wake { Entry::Wake(held) } else { Entry::Wait(held) }
            }
        }
    }

    /// Tells of every change of the phase.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// The gate.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.0
    }

    /// What connects to the microVM's ports.
    pub fn upstreams(&self) -> Upstreams {
        let gate = &self.0;
        let mut state = gate.state();
        if *gate.phase.borrow() != Phase::Running {
            // Not to be kept: the microVM is about to be suspended.
            return Upstreams::new(&gate.worker, &gate.id, &gate.host);
        }
        let make = || Upstreams::new(&gate.worker, &gate.id, &gate.host);
        state.upstreams.get_or_insert_with(make).clone()
    }

    /// Ends when nothing that goes to and fro can arrive any more.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut phases = self.0.watch();
        async move {
            let is_open = |phase: &Phase| matches!(phase, Phase::Running | Phase::Suspending);
            // An error is a gate that is gone.
            let _phase = phases.wait_for(|phase| !is_open(phase)).await;
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open -= 1;
        state.ended = self.0.clock.now();
        drop(state);
        self.0.counts.send_modify(|counts| counts.open -= 1);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.state().held -= 1;
        self.0.counts.send_modify(|counts| counts.held -= 1);
    }
}
