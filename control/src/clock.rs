//! What time it is, and how the services write it.
//!
//! Nothing that decides reads a clock of its own: it is given a [`Timestamp`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since 1970: as exact as the services are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The host's wall clock. One that stands before 1970 is taken for 1970.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// This long after `self`.
    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1000)))
    }

    /// How many seconds `self` is after `earlier`; negative if it is before.
    pub fn seconds_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0) / 1000
    }

    /// As rest-json has it: seconds since 1970, with a fraction.
    #[expect(clippy::cast_precision_loss, reason = "exact until the year 287396")]
    pub fn epoch_seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// As XML and lambda-core have it: `2026-11-24T15:30:00.123Z`.
    pub fn iso8601(self) -> String {
        self.date_time().format(&Rfc3339).unwrap_or_default()
    }

    /// For libraries.
    pub fn date_time(self) -> OffsetDateTime {
        let nanoseconds = i128::from(self.0) * 1_000_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// Where the time comes from: whoever drives things asks it, and tells those who decide.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The host's wall clock.
    Host,
    /// One that is moved by hand, for tests: milliseconds since 1970.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Host => Timestamp::now(),
            Self::Manual(milliseconds) => Timestamp(milliseconds.load(Ordering::SeqCst)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_each_protocol_wants_it() {
        let time = Timestamp(1_782_129_600_123);
        assert_eq!(serde_json::json!(time.epoch_seconds()).to_string(), "1782129600.123");
        assert_eq!(time.iso8601(), "2026-06-22T12:00:00.123Z");
    }

    #[test]
    fn no_number_is_too_large() {
        let end = Timestamp(i64::MAX).plus_seconds(i64::MAX);
        assert_eq!(end.0, i64::MAX);
        assert!(!end.iso8601().is_empty());
    }
}
