//! What the pager did, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start. The pager writes them; reading costs it nothing.
#[derive(Debug, Default)]
pub struct Statistics {
    pub(super) faults: Counter,
    pub(super) write_faults: Counter,
    pub(super) copied_bytes: Counter,
    pub(super) prefetched_bytes: Counter,
    pub(super) zeroed_bytes: Counter,
    pub(super) removed_bytes: Counter,
}

/// [`Statistics`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Faults that were served, each a thread that waited.
    pub faults: u64,
    /// Of them, those of threads that wanted to write.
    pub write_faults: u64,
    /// Pages that are not zero, put into memory for faults and ahead of them.
    pub copied_bytes: u64,
    /// Of them, ahead of faults.
    pub prefetched_bytes: u64,
    /// Mapped as zeroes, for faults and ahead of them.
    pub zeroed_bytes: u64,
    /// Given back by the guest.
    pub removed_bytes: u64,
}

impl Statistics {
    /// The counts now, each for itself.
    pub fn counts(&self) -> Counts {
        Counts {
            faults: self.faults.get(),
            write_faults: self.write_faults.get(),
            copied_bytes: self.copied_bytes.get(),
            prefetched_bytes: self.prefetched_bytes.get(),
            zeroed_bytes: self.zeroed_bytes.get(),
            removed_bytes: self.removed_bytes.get(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
