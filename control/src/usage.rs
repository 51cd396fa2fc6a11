//! What each microVM and each version has used, and when a microVM came to each of its phases: derived from the
//! fleet's changes, which are noted in the transaction that keeps them, with what the worker has measured.

mod phases;
mod processor;
mod versions;

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use rusqlite::Transaction;
use serde_json::{Value, json};

use crate::answer::ServiceError;
use crate::clock::Timestamp;
use crate::endpoint::Gates;
use crate::fleet::microvm::Phase;
use crate::store::{Store, StoreError, attempt};
pub use phases::Move;
use phases::Note;
use processor::{MIB_PER_VCPU, Used};
pub use processor::{Reading, meter};
pub use versions::Size;

/// Where it is asked for; not an operation of the service.
pub const PATH: &str = "/rotifer/usage";
/// What is older is forgotten. No microVM lives so long.
const KEPT_MS: i64 = 90 * 24 * 3600 * 1000;
const MIB_PER_GIB: f64 = 1024.0;
const BYTES_PER_GIB: f64 = 1024.0 * 1024.0 * MIB_PER_GIB;

/// Keeps what follows from changes, in the transaction that keeps these.
pub fn keep(
    transaction: &Transaction<'_>,
    moves: &[Move],
    sizes: &[Size],
    now: Timestamp,
) -> Result<(), StoreError> {
    phases::keep(transaction, moves, now)?;
    processor::keep(transaction, moves, now)?;
    versions::keep(transaction, sizes, now)?;
    let before = now.0.saturating_sub(KEPT_MS);
    if moves.iter().any(|it| it.microvm.phase == Phase::Terminated) {
        attempt("forget what microVMs have done", || {
            transaction.execute("DELETE FROM phase_change WHERE time < ?1", [before])?;
            transaction.execute("DELETE FROM processor_use WHERE end_ms < ?1", [before])
        })?;
    }
    if sizes.is_empty() { Ok(()) } else { versions::forget(transaction, before) }
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
    let notes = phases::read(store, wanted.as_deref())?;
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
    let processors = processor::read(store, since)?;
    let used = |(id, notes): (&String, &Vec<Note>)| {
        let processor = processors.get(id).copied().unwrap_or_default();
        used(notes, processor, gates, (since, now.0))
    };
    let items: Vec<_> = items.iter().filter_map(used).collect();
    Ok(json!({ "items": items, "versions": versions::answer(store, since, now.0)? }))
}

/// What a microVM has used from a time on; nothing if it had ended before.
fn used(notes: &[Note], processor: Used, gates: &Gates, (since, now): (i64, i64)) -> Option<Value> {
    let last = notes.last()?;
    if last.phase == Phase::Terminated && last.time < since {
        return None;
    }
    let (mut running_ms, mut suspended_ms, mut requests) = (0, 0, 0);
    let (mut stored_bytes, mut snapshot_gib_seconds) = (0, 0.0);
    let mut came_to = BTreeMap::from([("launches", 0), ("resumes", 0), ("suspends", 0)]);
    let ends = notes.iter().skip(1).map(|note| note.time).chain([now]);
    let mut before = None;
    for (note, end) in notes.iter().zip(ends) {
        // One that cannot be resumed is suspended as before.
        stored_bytes = note.stored_bytes.unwrap_or(stored_bytes);
        // A clock that was set back makes no time.
        let length = end.saturating_sub(note.time.max(since)).max(0);
        match note.phase {
            Phase::Running | Phase::Suspending => running_ms += length,
            Phase::Suspended | Phase::Resuming | Phase::Waking => {
                suspended_ms += length;
                snapshot_gib_seconds += gib_seconds(stored_bytes, length);
            }
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
        "baselineVcpuSeconds": running * memory_mib / f64::from(MIB_PER_VCPU),
        "usedVcpuSeconds": processor.seconds, "burstVcpuSeconds": processor.burst_seconds,
        "memoryGiBSeconds": running * memory_mib / MIB_PER_GIB, "snapshotGiBSeconds": snapshot_gib_seconds,
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
            "afterMs": after_ms, "steps": note.steps, "storedBytes": note.stored_bytes,
        })
    };
    notes.iter().zip(before).map(line).collect()
}

#[expect(clippy::cast_precision_loss, reason = "exact for 285000 years")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "exact for 8 PiB")]
fn gib_seconds(bytes: u64, ms: i64) -> f64 {
    bytes as f64 / BYTES_PER_GIB * seconds(ms)
}
