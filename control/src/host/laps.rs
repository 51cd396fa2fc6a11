//! How long each step of a launch or a resume takes, for the log and for the timeline.

use std::fmt;
use std::time::{Duration, Instant};

/// Steps, one after the other.
#[derive(Debug)]
pub struct Laps {
    begin: Instant,
    steps: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// The first step begins.
    pub fn begin() -> Self {
        Self { begin: Instant::now(), steps: Vec::new() }
    }

    /// A step has ended, and the next one begins.
    pub fn end_of(&mut self, step: &'static str) {
        let before: Duration = self.steps.iter().map(|(_, time)| *time).sum();
        self.steps.push((step, self.begin.elapsed().saturating_sub(before)));
    }

    /// All that have ended.
    pub fn steps(self) -> Vec<(&'static str, Duration)> {
        self.steps
    }
}

impl fmt::Display for Laps {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Duration = self.steps.iter().map(|(_, time)| *time).sum();
        write!(out, "{:.1} ms", all.as_secs_f64() * 1e3)?;
        for (step, time) in &self.steps {
            write!(out, ", {step} {:.1}", time.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}
