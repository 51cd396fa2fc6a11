//! The guest's moments on the host's clock.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// What the agent tells, in nanoseconds of the guest's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// The first instruction of /init.
    pub agent_start_ns: u64,
    /// The root disk is mounted, or the initramfs stays.
    pub root_mounted_ns: u64,
    /// When it was asked.
    pub now_ns: u64,
}

impl Moments {
    /// From the agent's health.
    ///
    /// # Errors
    /// A moment is missing.
    pub fn parse(health: &Value) -> Result<Self> {
        let moment = |name: &str| {
            let value = health.get("timeline").and_then(|timeline| timeline.get(name));
            value
                .and_then(Value::as_u64)
                .with_context(|| format!("the agent's health has no timeline.{name}: {health}"))
        };
        Ok(Self {
            agent_start_ns: moment("agent_start_ns")?,
            root_mounted_ns: moment("root_mounted_ns")?,
            now_ns: moment("now_ns")?,
        })
    }
}

/// One moment on two clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClockPair {
    best: Option<Reading>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    /// How long the request took: the clocks may be apart by half of it.
    width: Duration,
    host: Duration,
    guest_ns: u64,
}

impl ClockPair {
    /// The guest's clock showed `guest_ns` somewhere between `before` and `after`.
    pub fn offer(&mut self, before: Duration, after: Duration, guest_ns: u64) {
        let width = after.saturating_sub(before);
        if self.best.is_none_or(|best| width < best.width) {
            self.best = Some(Reading { width, host: before + width / 2, guest_ns });
        }
    }

    /// When it was `guest_ns` in the guest, in milliseconds of the host; no number if the clocks
    /// were never read.
    #[expect(clippy::cast_precision_loss, reason = "a boot is far below 2^52 ns")]
    pub fn on_host_ms(&self, guest_ns: u64) -> f64 {
        self.best.map_or(f64::NAN, |best| {
            let back_ns = best.guest_ns as f64 - guest_ns as f64;
            best.host.as_secs_f64() * 1e3 - back_ns / 1e6
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_quickest_request_sets_the_clocks() {
        let mut clocks = ClockPair::default();
        clocks.offer(50 * MS, 60 * MS, 40_000_000);
        clocks.offer(70 * MS, 72 * MS, 61_000_000);
        clocks.offer(80 * MS, 90 * MS, 1);
        assert_eq!(clocks.on_host_ms(61_000_000), 71.0);
        assert_eq!(clocks.on_host_ms(0), 10.0);
    }

    #[test]
    fn clocks_that_were_never_read_give_no_number() {
        assert!(ClockPair::default().on_host_ms(0).is_nan());
    }

    #[test]
    fn moments_are_read_from_the_health_and_missing_ones_are_named() {
        let mut health = json!({ "timeline": {
            "kernel_start_ns": 0, "agent_start_ns": 5, "root_mounted_ns": 6,
            "app_started_ns": null, "serving_ns": 7, "now_ns": 9,
        } });
        let expected = Moments { agent_start_ns: 5, root_mounted_ns: 6, now_ns: 9 };
        assert_eq!(Moments::parse(&health).unwrap(), expected);
        health["timeline"]["root_mounted_ns"] = Value::Null;
        let error = Moments::parse(&health).unwrap_err().to_string();
        assert!(error.contains("root_mounted_ns"), "{error}");
    }
}
