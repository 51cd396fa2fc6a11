//! How often operations may be called: a bucket for each kind, filled at its rate.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::settings;

/// The buckets.
#[derive(Debug)]
pub struct Rates {
    settings: settings::Rates,
    buckets: BTreeMap<String, Bucket>,
}

/// Thousandths of a request, so that a millisecond adds a whole number.
#[derive(Debug)]
struct Bucket {
    milli_requests: i64,
    filled_at: Timestamp,
}

impl Rates {
    pub fn new(settings: &settings::Rates) -> Self {
        Self { settings: settings.clone(), buckets: BTreeMap::new() }
    }

    /// Whether a request may pass now.
    pub fn take(&mut self, operation: &str, now: Timestamp) -> bool {
        let rate = i64::from(self.rate(operation));
        let full = rate * 1000;
        let bucket = self
            .buckets
            .entry(operation.to_owned())
            .or_insert(Bucket { milli_requests: full, filled_at: now });
        // A clock that is set back adds nothing.
        let elapsed_ms = now.0.saturating_sub(bucket.filled_at.0).max(0);
        let filled = bucket.milli_requests.saturating_add(elapsed_ms.saturating_mul(rate));
        bucket.milli_requests = filled.min(full);
        bucket.filled_at = now;
        if bucket.milli_requests < 1000 {
            return false;
        }
        bucket.milli_requests -= 1000;
        true
    }

    fn rate(&self, operation: &str) -> u32 {
        match operation {
            "RunMicrovm" => self.settings.run,
            "ResumeMicrovm" => self.settings.resume,
            "SuspendMicrovm" => self.settings.suspend,
            "TerminateMicrovm" => self.settings.terminate,
            "CreateMicrovmAuthToken" | "CreateMicrovmShellAuthToken" => self.settings.token,
            _ => self.settings.other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_the_rate_pass_at_once_and_then_as_many_a_second() {
        let mut rates = Rates::new(&settings::Rates { run: 5, ..Default::default() });
        let mut pass = |milliseconds: i64| {
            let now = Timestamp(1_000_000 + milliseconds);
            (0..20).filter(|_| rates.take("RunMicrovm", now)).count()
        };
        assert_eq!(pass(0), 5);
        assert_eq!(pass(199), 0);
        assert_eq!(pass(400), 2);
        assert_eq!(pass(60_000), 5);
        assert_eq!(pass(0), 0, "the clock was set back");
    }

    #[test]
    fn operations_do_not_use_up_each_others() {
        let mut rates = Rates::new(&settings::Rates { run: 1, resume: 1, ..Default::default() });
        assert!(rates.take("RunMicrovm", Timestamp(0)));
        assert!(!rates.take("RunMicrovm", Timestamp(0)));
        assert!(rates.take("ResumeMicrovm", Timestamp(0)));
    }
}
