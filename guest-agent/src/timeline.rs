//! The moments of a boot, on the guest's monotonic clock, whose zero is the start of the kernel.

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::cell::Cell;

/// Nanoseconds of the monotonic clock.
#[must_use]
pub fn now_ns() -> u64 {
    // The monotonic clock cannot fail on Linux; zero would only blur a time line.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

/// When what happened; each moment is written once.
#[derive(Debug, Default)]
pub struct Timeline {
    agent_start_ns: Cell<Option<u64>>,
    root_mounted_ns: Cell<Option<u64>>,
    app_started_ns: Cell<Option<u64>>,
    serving_ns: Cell<Option<u64>>,
}

/// A moment of the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The first instruction of the agent.
    AgentStart,
    /// The root disk is mounted, or the initramfs was chosen to stay.
    RootMounted,
    /// The app's first process exists.
    AppStarted,
    /// The listener is bound and answers.
    Serving,
}

/// The time line as the health endpoint shows it; `null` is what has not happened.
#[derive(Debug, Clone, Serialize)]
pub struct Moments {
    kernel_start_ns: u64,
    agent_start_ns: Option<u64>,
    root_mounted_ns: Option<u64>,
    app_started_ns: Option<u64>,
    serving_ns: Option<u64>,
    now_ns: u64,
}

impl Timeline {
    /// Notes that `moment` is now, if it was not noted before.
    pub fn note(&self, moment: Moment) {
        let cell = match moment {
            Moment::AgentStart => &self.agent_start_ns,
            Moment::RootMounted => &self.root_mounted_ns,
            Moment::AppStarted => &self.app_started_ns,
            Moment::Serving => &self.serving_ns,
        };
        if cell.get().is_none() {
            cell.set(Some(now_ns()));
        }
    }

    /// What is known now.
    #[must_use]
    pub fn moments(&self) -> Moments {
        Moments {
            kernel_start_ns: 0,
            agent_start_ns: self.agent_start_ns.get(),
            root_mounted_ns: self.root_mounted_ns.get(),
            app_started_ns: self.app_started_ns.get(),
            serving_ns: self.serving_ns.get(),
            now_ns: now_ns(),
        }
    }
}
