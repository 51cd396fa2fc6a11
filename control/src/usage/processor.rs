//! Processor time that guests have had, and what of it was above the baseline.
//!
//! The kernel counts for each VMM's process, and goes on counting when the daemon has ended, however it ended. A
//! *reading* is that counter. What was used between two readings of the same process is its difference; of this,
//! burst is what is more than the baseline allows for the time between them. The last reading of a process and what
//! followed from it are one row, written in one transaction, so nothing is counted twice.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::{OptionalExtension, Transaction, params};

use super::Move;
use crate::clock::Timestamp;
use crate::fleet::microvm::Phase;
use crate::fleet::records::Microvm;
use crate::store::{Store, StoreError, attempt};

/// A row is continued for so long: an answer takes what was used in it as spread evenly.
const ROW_MS: i64 = 3600 * 1000;
/// The baseline of every class: one processor for so much memory.
pub(super) const MIB_PER_VCPU: u32 = 2048;

/// What a running microVM's guest has had since its process was started.
pub struct Reading {
    /// Whose.
    pub microvm: String,
    /// Since when it runs.
    pub run: Timestamp,
    /// The counter.
    pub time: Duration,
}

/// A row that is continued.
struct Row {
    id: i64,
    begin_ms: i64,
    end_ms: i64,
    counter_us: i64,
}

/// Takes readings into account, of those that have not moved since they were read.
pub fn meter<'a>(
    transaction: &Transaction<'_>,
    readings: &[Reading],
    find: impl Fn(&str) -> Option<&'a Microvm>,
    now: Timestamp,
) -> Result<(), StoreError> {
    attempt("note processor time", || {
        for Reading { microvm, run, time } in readings {
            let is_same = |it: &&Microvm| it.phase == Phase::Running && it.idle_since == *run;
            if let Some(microvm) = find(microvm).filter(is_same) {
                go_on(transaction, microvm, *time, now)?;
            }
        }
        Ok(())
    })
}

/// Begins to count for a process, or takes its last reading into account.
pub(super) fn keep(
    transaction: &Transaction<'_>,
    moves: &[Move],
    now: Timestamp,
) -> Result<(), StoreError> {
    attempt("note processor time", || {
        for Move { microvm, measured, is_begin, .. } in moves {
            match measured.processor_time {
                time if *is_begin => {
                    // What it took to come here belongs to no time that it ran.
                    let counter_us = time.map_or(0, micros);
                    insert(transaction, &microvm.id, (now.0, now.0), counter_us, (0, 0))?;
                }
                Some(time) => go_on(transaction, microvm, time, now)?,
                None => {}
            }
        }
        Ok(())
    })
}

fn go_on(
    transaction: &Transaction<'_>,
    microvm: &Microvm,
    time: Duration,
    now: Timestamp,
) -> Result<(), rusqlite::Error> {
    let sql = "SELECT id, begin_ms, end_ms, counter_us FROM processor_use WHERE microvm = ?1 ORDER BY id DESC LIMIT 1";
    let row = transaction.query_row(sql, [&microvm.id], |row| {
        let (id, begin_ms, end_ms) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Row { id, begin_ms, end_ms, counter_us: row.get(3)? })
    });
    let counter_us = micros(time);
    let Some(row) = row.optional()? else {
        // It ran before this program counted.
        return insert(transaction, &microvm.id, (now.0, now.0), counter_us, (0, 0));
    };
    // An older reading than the last one says nothing new.
    let used_us = counter_us.saturating_sub(row.counter_us);
    let is_earlier = now.0 < row.end_ms;
    if used_us < 0 || (used_us == 0 && is_earlier) {
        return Ok(());
    }
    // The clock was set back: nobody knows how long it took to use this.
    if is_earlier {
        return insert(transaction, &microvm.id, (now.0, now.0), counter_us, (used_us, 0));
    }
    let end_ms = now.0;
    let burst_us = used_us.saturating_sub(allowed_us(microvm, end_ms - row.end_ms)).max(0);
    if row.end_ms - row.begin_ms >= ROW_MS {
        let times = (row.end_ms, end_ms);
        return insert(transaction, &microvm.id, times, counter_us, (used_us, burst_us));
    }
    let sql = "UPDATE processor_use SET end_ms = ?2, counter_us = ?3, used_us = used_us + ?4, \
               burst_us = burst_us + ?5 WHERE id = ?1";
    transaction.execute(sql, params![row.id, end_ms, counter_us, used_us, burst_us])?;
    Ok(())
}

fn insert(
    transaction: &Transaction<'_>,
    microvm: &str,
    (begin_ms, end_ms): (i64, i64),
    counter_us: i64,
    (used_us, burst_us): (i64, i64),
) -> Result<(), rusqlite::Error> {
    let sql = "INSERT INTO processor_use (microvm, begin_ms, end_ms, counter_us, used_us, burst_us) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    transaction.execute(sql, params![microvm, begin_ms, end_ms, counter_us, used_us, burst_us])?;
    Ok(())
}

/// What the baseline allows for a time.
fn allowed_us(microvm: &Microvm, ms: i64) -> i64 {
    let memory_mib = i64::try_from(microvm.memory_mib).unwrap_or(i64::MAX);
    ms.saturating_mul(1000).saturating_mul(memory_mib) / i64::from(MIB_PER_VCPU)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Seconds that were used, and those of them above the baseline.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub seconds: f64,
    pub burst_seconds: f64,
}

/// What each microVM has used since a time.
pub(super) fn read(store: &Store, since: i64) -> Result<BTreeMap<String, Used>, StoreError> {
    store.read(|transaction| {
        attempt("read what was used of processors", || {
            let sql = "SELECT microvm, sum(used_us * share), sum(burst_us * share) FROM (SELECT *, CASE \
                       WHEN begin_ms >= ?1 OR end_ms <= begin_ms THEN 1.0 \
                       ELSE (end_ms - ?1) * 1.0 / (end_ms - begin_ms) END AS share \
                       FROM processor_use WHERE end_ms >= ?1) GROUP BY microvm";
            let mut statement = transaction.prepare(sql)?;
            let rows = statement.query_map([since], |row| {
                let (used_us, burst_us): (f64, f64) = (row.get(1)?, row.get(2)?);
                Ok((row.get(0)?, Used { seconds: used_us / 1e6, burst_seconds: burst_us / 1e6 }))
            })?;
            rows.collect()
        })
    })
}
