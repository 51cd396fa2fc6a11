//! Token buckets: how many bytes, and how many requests, in which time. Nothing in here looks at
//! a clock or waits: the caller says what time it is, and hears how long to wait.
//!
//! A request may be made while its bucket has a token, whatever it costs. One that costs more
//! than is there overdraws the bucket, and those behind it wait until that is paid. So a request
//! that is larger than its bucket is not stuck, nobody has to know its cost beforehand, and over
//! time the rate is exact.

use std::time::{Duration, Instant};

/// The longest time to refill a bucket.
pub const REFILL_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a bucket allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    size: u64,
    one_time_burst: u64,
    refill_time: Duration,
}

impl Rate {
    /// `size` tokens in each `refill_time` and at most so many at once, besides the
    /// `one_time_burst` with which it all begins. None where a number is zero that means "no
    /// limit" then; a refill time is at most [`REFILL_TIME_MAX`].
    pub fn new(size: u64, one_time_burst: u64, refill_time: Duration) -> Option<Self> {
        let refill_time = refill_time.min(REFILL_TIME_MAX);
        (size > 0 && !refill_time.is_zero()).then_some(Self { size, one_time_burst, refill_time })
    }
}

/// One limit.
#[derive(Debug)]
struct TokenBucket {
    rate: Rate,
    /// Tokens times the nanoseconds of a refill, so that a nanosecond brings `rate.size` of it and
    /// nothing is ever rounded. Below zero when it is overdrawn.
    level: i128,
    burst: u64,
    filled_at: Instant,
}

impl TokenBucket {
    fn new(rate: Rate, now: Instant) -> Self {
        let mut bucket = Self { rate, level: 0, burst: rate.one_time_burst, filled_at: now };
        bucket.level = bucket.full();
        bucket
    }

    fn refill_ns(&self) -> i128 {
        i128::try_from(self.rate.refill_time.as_nanos()).unwrap_or(i128::MAX)
    }

    fn full(&self) -> i128 {
        self.refill_ns().saturating_mul(self.rate.size.into())
    }

    /// How long until a request may be made; none if it may be now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let elapsed_ns = now.saturating_duration_since(self.filled_at).as_nanos();
        self.filled_at = self.filled_at.max(now);
        let size = i128::from(self.rate.size);
        let added = i128::try_from(elapsed_ns).unwrap_or(i128::MAX).saturating_mul(size);
        self.level = self.level.saturating_add(added).min(self.full());
        let missing = self.refill_ns().saturating_sub(self.level);
        if self.burst > 0 || missing <= 0 {
            return None;
        }
        // Rounded up.
        let missing_ns = missing.saturating_sub(1).checked_div(size)?.saturating_add(1);
        Some(Duration::from_nanos(u64::try_from(missing_ns).unwrap_or(u64::MAX)))
    }

    fn spend(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst = self.burst.saturating_sub(from_burst);
        let rest = i128::from(tokens.saturating_sub(from_burst));
        self.level = self.level.saturating_sub(rest.saturating_mul(self.refill_ns()));
    }
}

/// What becomes of a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change {
    /// It stays as it is.
    #[default]
    Keep,
    /// There is none any more.
    Lift,
    /// It is a new one, whose bucket is full.
    Limit(Rate),
}

impl Change {
    fn apply(self, bucket: &mut Option<TokenBucket>, now: Instant) {
        match self {
            Self::Keep => {}
            Self::Lift => *bucket = None,
            Self::Limit(rate) => *bucket = Some(TokenBucket::new(rate, now)),
        }
    }
}

/// What becomes of both limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// That of bytes.
    pub bandwidth: Change,
    /// That of requests.
    pub ops: Change,
}

/// Two limits, either of which may be missing.
#[derive(Debug, Default)]
pub struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// Sets new limits.
    pub fn change(&mut self, changes: Changes, now: Instant) {
        changes.bandwidth.apply(&mut self.bandwidth, now);
        changes.ops.apply(&mut self.ops, now);
    }

    /// Whether there is no limit at all; then the time does not matter.
    pub fn is_unlimited(&self) -> bool {
        self.bandwidth.is_none() && self.ops.is_none()
    }

    /// How long until a request may be made; none if it may be now.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let buckets = [&mut self.bandwidth, &mut self.ops];
        buckets.into_iter().flatten().filter_map(|bucket| bucket.wait(now)).max()
    }

    /// A request was made that moved so many bytes.
    pub fn spend(&mut self, len_bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.spend(len_bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.spend(1);
        }
    }
}

#[cfg(test)]
mod tests;
