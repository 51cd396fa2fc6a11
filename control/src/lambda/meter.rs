//! What running microVMs use of processors, looked at from time to time.

use super::{Driver, Parts, lock};
use crate::clock::Timestamp;
use crate::fleet::microvm::Phase;
use crate::store::StoreError;
use crate::usage::{self, Reading};

/// How often it is noted what running microVMs have used of processors. Burst is what is above the baseline in such a
/// time, and so much is lost of what a process used that dies by itself.
const PERIOD_MS: i64 = 10_000;

impl Driver {
    pub(super) fn meter_if_due(&self) {
        let (now, metered) = (self.parts.clock.now(), *lock(&self.metered));
        // A clock that was set back is followed.
        if now < metered || now.0.saturating_sub(metered.0) >= PERIOD_MS {
            self.meter();
        }
    }

    /// Notes what running microVMs have used of processors.
    pub(super) fn meter(&self) {
        let Parts { store, worker, clock, .. } = &self.parts;
        let now = clock.now();
        *lock(&self.metered) = now;
        let runs: Vec<(String, Timestamp)> = {
            let fleet = lock(&self.fleet);
            let running = fleet.microvms().filter(|microvm| microvm.phase == Phase::Running);
            running.map(|microvm| (microvm.id.clone(), microvm.idle_since)).collect()
        };
        // This takes a while, in which others may go on.
        let reading = |(microvm, run): (String, Timestamp)| {
            let time = worker.processor_time(&microvm)?;
            Some(Reading { microvm, run, time })
        };
        let readings: Vec<Reading> = runs.into_iter().filter_map(reading).collect();
        if readings.is_empty() {
            return;
        }
        // Nobody moves meanwhile: what a process had is not taken for what the next one has.
        let fleet = lock(&self.fleet);
        let find = |id: &str| fleet.look_up(id);
        let kept: Result<(), StoreError> =
            store.write(|transaction| usage::meter(transaction, &readings, find, now));
        if let Err(error) = kept {
            // The next readings have all that these had.
            let error = crate::report(&error);
            tracing::warn!("what microVMs use could not be noted; it is tried again: {error}");
        }
    }
}
