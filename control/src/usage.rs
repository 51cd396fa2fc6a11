//! What each microVM has used, and when it came to each of its phases: derived from the fleet's changes, which
//! are noted in the transaction that keeps them.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use crate::answer::ServiceError;
use crate::clock::Timestamp;
use crate::endpoint::Gates;
use crate::fleet::microvm::Phase;
use crate::fleet::{Change, Fleet};
use crate::store::{Store, StoreError, attempt};

/// Where it is asked for; not an operation of the service.
pub const PATH: &str = "/rotifer/usage";
/// What is older is forgotten. No microVM lives so long.
const KEPT_MS: i64 = 90 * 24 * 3600 * 1000;
/// Notes that an answer is made from; the oldest are left out.
const NOTES_MAX: i64 = 200_000;
/// The baseline of every class: one processor for so much memory.
const MIB_PER_VCPU: f64 = 2048.0;
const MIB_PER_GIB: f64 = 1024.0;

/// A microVM came to a phase.
pub struct Move {
    microvm: String,
    phase: Phase,
    image: String,
    version: String,
    memory_mib: u64,
    /// Those that were let in since the last move.
    requests: u64,
}

impl Move {
    /// The moves among changes that a fleet does not know of yet.
    pub fn among(changes: &[Change], fleet: &Fleet, gates: &Gates) -> Vec<Self> {
        let move_of = |change: &Change| {
            let Change::PutMicrovm(new) = change else { return None };
            let old = fleet.look_up(&new.id);
            old.is_none_or(|old| old.phase != new.phase).then(|| Self {
                microvm: new.id.clone(),
                phase: new.phase,
                image: new.version.image.clone(),
                version: crate::fleet::records::version_text(new.version.number),
                memory_mib: new.memory_mib,
                requests: gates.requests(&new.id),
            })
        };
        changes.iter().filter_map(move_of).collect()
    }

    /// It is noted: what was counted until then is.
    pub fn is_kept(&self, gates: &Gates) {
        gates.forget_requests(&self.microvm, self.requests);
    }
}

/// Notes moves.
pub fn keep(
    transaction: &Transaction<'_>,
    moves: &[Move],
    now: Timestamp,
) -> Result<(), StoreError> {
    attempt("note what a microVM does", || {
        for Move { microvm, phase, image, version, memory_mib, requests } in moves {
            let sql = "INSERT INTO phase_change (microvm, time, phase, image, version, memory_mib, \
                       requests) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let phase = json!(phase);
            let phase = phase.as_str();
            transaction.execute(
                sql,
                params![microvm, now.0, phase, image, version, memory_mib, requests],
            )?;
        }
        if moves.iter().any(|it| it.phase == Phase::Terminated) {
            let sql = "DELETE FROM phase_change WHERE time < ?1";
            transaction.execute(sql, [now.0.saturating_sub(KEPT_MS)])?;
        }
        Ok(())
    })
}

/// A note.
struct Note {
    microvm: String,
    time: i64,
    phase: Phase,
    image: String,
    version: String,
    memory_mib: u32,
    requests: u64,
}

/// Answers a request: what was used since a time, or the timeline of one microVM.
pub fn answer(
    store: &Store,
    gates: &Gates,
    query: &str,
    now: Timestamp,
) -> Result<Value, ServiceError> {
    let (mut since, mut wanted) = (0, None);
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match name {
            "since" => {
                let text = "since is a number of milliseconds since 1970.";
                let wrong = |_| ServiceError::new(400, "ValidationException", text);
                since = value.parse().map_err(wrong)?;
            }
            "microvm" => {
                wanted = Some(percent_decode_str(value).decode_utf8_lossy().into_owned());
            }
            _ => {
                let text = format!("There is no parameter '{name}' here.");
                return Err(ServiceError::new(400, "ValidationException", text));
            }
        }
    }
    let notes = read(store, wanted.as_deref())?;
    let mut items = BTreeMap::new();
    for note in notes {
        items.entry(note.microvm.clone()).or_insert_with(Vec::new).push(note);
    }
    if let Some(id) = wanted {
        let notes = items.remove(&id).unwrap_or_default();
        if notes.is_empty() {
            let text = format!("MicroVM not found: {id}");
            return Err(ServiceError::new(404, "ResourceNotFoundException", text));
        }
        return Ok(json!({ "items": timeline(&notes) }));
    }
    let items = items.values().filter_map(|notes| used(notes, gates, since, now.0));
    Ok(json!({ "items": items.collect::<Vec<_>>() }))
}

fn read(store: &Store, microvm: Option<&str>) -> Result<Vec<Note>, StoreError> {
    store.read(|transaction| {
        attempt("read what microVMs have done", || {
            let sql = "SELECT microvm, time, phase, image, version, memory_mib, requests FROM \
                       (SELECT * FROM phase_change WHERE ?1 IS NULL OR microvm = ?1 ORDER BY id DESC \
                       LIMIT ?2) ORDER BY id";
            let mut statement = transaction.prepare(sql)?;
            let notes = statement.query_map(params![microvm, NOTES_MAX], |row| {
                let phase: String = row.get(2)?;
                let phase = Phase::ALL.into_iter().find(|known| json!(known) == json!(phase));
                Ok(Note {
                    microvm: row.get(0)?,
                    time: row.get(1)?,
                    phase: phase.unwrap_or(Phase::Terminated),
                    image: row.get(3)?,
                    version: row.get(4)?,
                    memory_mib: row.get(5)?,
                    requests: row.get(6)?,
                })
            })?;
            notes.collect()
        })
    })
}

/// What a microVM has used from a time on; nothing if it had ended before.
fn used(notes: &[Note], gates: &Gates, since: i64, now: i64) -> Option<Value> {
    let last = notes.last()?;
    if last.phase == Phase::Terminated && last.time < since {
        return None;
    }
    let (mut running_ms, mut suspended_ms, mut requests) = (0, 0, 0);
    let mut came_to = BTreeMap::from([("launches", 0), ("resumes", 0), ("suspends", 0)]);
    let ends = notes.iter().skip(1).map(|note| note.time).chain([now]);
    let mut before = None;
    for (note, end) in notes.iter().zip(ends) {
        // A clock that was set back makes no time.
        let length = end.saturating_sub(note.time.max(since)).max(0);
        match note.phase {
            Phase::Running | Phase::Suspending => running_ms += length,
            Phase::Suspended | Phase::Resuming | Phase::Waking => suspended_ms += length,
            Phase::Launching | Phase::Terminating | Phase::Terminated => {}
        }
        if note.time >= since {
            requests += note.requests;
            let what = match (before, note.phase) {
                (Some(Phase::Launching), Phase::Running) => Some("launches"),
                (Some(Phase::Resuming | Phase::Waking), Phase::Running) => Some("resumes"),
                (_, Phase::Suspended) if before == Some(Phase::Suspending) => Some("suspends"),
                _ => None,
            };
            what.and_then(|what| came_to.get_mut(what)).into_iter().for_each(|count| *count += 1);
        }
        before = Some(note.phase);
    }
    requests += gates.requests(&last.microvm);
    let (running, memory_mib) = (seconds(running_ms), f64::from(last.memory_mib));
    Some(json!({
        "microvmId": last.microvm, "imageName": last.image, "imageVersion": last.version,
        "state": last.phase.state(), "memoryMiB": last.memory_mib,
        "runningSeconds": running, "suspendedSeconds": seconds(suspended_ms),
        "baselineVcpuSeconds": running * memory_mib / MIB_PER_VCPU,
        "memoryGiBSeconds": running * memory_mib / MIB_PER_GIB,
        "requests": requests, "launches": came_to["launches"], "resumes": came_to["resumes"],
        "suspends": came_to["suspends"],
    }))
}

/// Each phase, when it began, and how long the one before had lasted.
fn timeline(notes: &[Note]) -> Vec<Value> {
    let before = [None].into_iter().chain(notes.iter().map(|note| Some(note.time)));
    let line = |(note, before): (&Note, Option<i64>)| {
        let after_ms = before.map(|before| note.time.saturating_sub(before));
        json!({
            "time": Timestamp(note.time).iso8601(), "phase": note.phase, "state": note.phase.state(),
            "afterMs": after_ms,
        })
    };
    notes.iter().zip(before).map(line).collect()
}

#[expect(clippy::cast_precision_loss, reason = "exact for 285000 years")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}
