//! When each microVM came to each of its phases, and what was measured then.

use std::time::Duration;

use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::endpoint::Gates;
use crate::fleet::microvm::Phase;
use crate::fleet::records::{Microvm, version_text};
use crate::fleet::{Change, Fleet, Measured};
use crate::store::{Store, StoreError, attempt};

/// Notes that an answer is made from; the oldest are left out.
const NOTES_MAX: i64 = 200_000;
/// Steps of a launch or a resume that are kept.
const STEPS_MAX: usize = 16;

/// A microVM came to a phase.
pub struct Move {
    pub(super) microvm: Microvm,
    pub(super) measured: Measured,
    /// Whether a process of its own begins to run it.
    pub(super) is_begin: bool,
    /// Those that were let in since the last move.
    requests: u64,
}

impl Move {
    /// The moves among changes that a fleet does not know of yet. What was measured is of the one that moves.
    pub fn among(
        changes: &[Change],
        measured: &Measured,
        fleet: &Fleet,
        gates: &Gates,
    ) -> Vec<Self> {
        let move_of = |change: &Change| {
            let Change::PutMicrovm(new) = change else { return None };
            let old = fleet.look_up(&new.id).map(|old| old.phase);
            let was_stopped =
                matches!(old, Some(Phase::Launching | Phase::Resuming | Phase::Waking));
            (old != Some(new.phase)).then(|| Self {
                microvm: Microvm::clone(new),
                measured: measured.clone(),
                is_begin: was_stopped && new.phase == Phase::Running,
                requests: gates.requests(&new.id),
            })
        };
        changes.iter().filter_map(move_of).collect()
    }

    /// It is noted: what was counted until then is.
    pub fn is_kept(&self, gates: &Gates) {
        gates.forget_requests(&self.microvm.id, self.requests);
    }
}

pub(super) fn keep(
    transaction: &Transaction<'_>,
    moves: &[Move],
    now: Timestamp,
) -> Result<(), StoreError> {
    attempt("note what a microVM does", || {
        for Move { microvm, measured, requests, .. } in moves {
            let sql = "INSERT INTO phase_change (microvm, time, phase, image, version, memory_mib, \
                       requests, steps, stored_bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
            let phase = json!(microvm.phase);
            let row = params![
                microvm.id,
                now.0,
                phase.as_str(),
                microvm.version.image,
                version_text(microvm.version.number),
                microvm.memory_mib,
                requests,
                steps_text(&measured.steps),
                measured.stored_bytes,
            ];
            transaction.execute(sql, row)?;
        }
        Ok(())
    })
}

fn steps_text(steps: &[(&str, Duration)]) -> Option<String> {
    let step = |(name, time): &(&str, Duration)| {
        // Milliseconds, exact to a thousandth.
        let us = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        json!({ "name": name, "ms": f64::from(us) / 1000.0 })
    };
    let steps: Vec<Value> = steps.iter().take(STEPS_MAX).map(step).collect();
    (!steps.is_empty()).then(|| json!(steps).to_string())
}

/// A note.
pub(super) struct Note {
    pub microvm: String,
    pub time: i64,
    pub phase: Phase,
    pub image: String,
    pub version: String,
    pub memory_mib: u32,
    pub requests: u64,
    /// What the steps before this phase took, as it is answered.
    pub steps: Option<Value>,
    /// On the disk.
    pub stored_bytes: Option<u64>,
}

pub(super) fn read(store: &Store, microvm: Option<&str>) -> Result<Vec<Note>, StoreError> {
    store.read(|transaction| {
        attempt("read what microVMs have done", || {
            let sql = "SELECT microvm, time, phase, image, version, memory_mib, requests, steps, stored_bytes \
                       FROM (SELECT * FROM phase_change WHERE ?1 IS NULL OR microvm = ?1 ORDER BY id DESC \
                       LIMIT ?2) ORDER BY id";
            let mut statement = transaction.prepare(sql)?;
            let notes = statement.query_map(params![microvm, NOTES_MAX], |row| {
                let phase: String = row.get(2)?;
                let phase = Phase::ALL.into_iter().find(|known| json!(known) == json!(phase));
                let steps: Option<String> = row.get(7)?;
                Ok(Note {
                    microvm: row.get(0)?,
                    time: row.get(1)?,
                    phase: phase.unwrap_or(Phase::Terminated),
                    image: row.get(3)?,
                    version: row.get(4)?,
                    memory_mib: row.get(5)?,
                    requests: row.get(6)?,
                    steps: steps.and_then(|text| serde_json::from_str(&text).ok()),
                    stored_bytes: row.get(8)?,
                })
            })?;
            notes.collect()
        })
    })
}
