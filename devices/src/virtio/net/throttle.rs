//! A rate limit at work: whether one direction of the device may go on.

use std::time::{Duration, Instant};

use crate::rate_limiter::{Changes, RateLimiter};

/// Who has to wait, waits for so long, so that frames go in groups and not each with a timer of
/// its own. No bucket is full again sooner, so none of what it allows is lost.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// One direction's limits.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    limiter: RateLimiter,
    until: Option<Instant>,
}

impl Throttle {
    pub(super) fn change(&mut self, changes: Changes) {
        self.limiter.change(changes, Instant::now());
        self.until = None;
    }

    /// Whether nothing may go now; [`Self::until`] says for how long.
    pub(super) fn is_closed(&mut self) -> bool {
        if self.limiter.is_unlimited() {
            return false;
        }
        let now = Instant::now();
        if self.until.is_none_or(|until| until <= now) {
            let wait = self.limiter.wait(now).map(|wait| wait.max(WAIT_MIN));
            // A clock has room for more than a limiter says.
            self.until = wait.map(|wait| now.checked_add(wait).unwrap_or(now));
        }
        self.until.is_some()
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn spend(&mut self, len_bytes: u64) {
        self.limiter.spend(len_bytes);
    }
}
