//! What happened when, seen from the host and from inside the guest.

use std::{
    fmt,
    time::{Duration, Instant},
};

use serde_json::Value;

/// The guest's moments, as the agent names them; zero is the start of the kernel.
const GUEST: [(&str, &str); 5] = [
    ("kernel_start_ns", "the kernel's clock starts"),
    ("agent_start_ns", "the agent runs as process 1"),
    ("root_mounted_ns", "the root disk is mounted"),
    ("app_started_ns", "the app's process exists"),
    ("serving_ns", "the agent serves"),
];

/// Moments in the order in which they were noted.
pub struct Timeline {
    start: Instant,
    host: Vec<(&'static str, Duration)>,
    guest: Vec<(&'static str, Duration)>,
}

impl Timeline {
    /// Zero is now.
    pub fn start() -> Self {
        Self { start: Instant::now(), host: Vec::new(), guest: Vec::new() }
    }

    /// Something happened just now.
    pub fn note(&mut self, what: &'static str) {
        self.host.push((what, self.start.elapsed()));
    }

    /// The moments that the agent reports; what has not happened is left out.
    pub fn add_guest(&mut self, moments: &Value) {
        for (key, what) in GUEST {
            if let Some(time_ns) = moments[key].as_u64() {
                self.guest.push((what, Duration::from_nanos(time_ns)));
            }
        }
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "Seen from the host, since the VMM was started:")?;
        write_moments(out, &self.host)?;
        writeln!(out, "Seen from the guest, since its kernel was started:")?;
        write_moments(out, &self.guest)
    }
}

fn write_moments(
    out: &mut fmt::Formatter<'_>,
    moments: &[(&'static str, Duration)],
) -> fmt::Result {
    moments.iter().try_for_each(|(what, time)| {
        writeln!(out, "  {:>10.1} ms  {what}", time.as_secs_f64() * 1e3)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_not_happened_is_left_out() {
        let mut timeline = Timeline::start();
        timeline.add_guest(&json!({ "agent_start_ns": 1_500_000, "serving_ns": null }));
        let text = timeline.to_string();
        assert!(text.contains("1.5 ms  the agent runs as process 1"), "{text}");
        assert!(!text.contains("the agent serves"), "{text}");
    }
}
