//! Benchmark: what guests that do nothing cost the host's CPUs.
//!
//! The kernel's account of each VMM's threads (`schedstat`, in nanoseconds, the guest's time
//! included) is read before and after a window in which nobody asks anything of the guests.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::{Rounds, Setup, Subject};
use crate::guest;
use crate::process::CpuUse;
use crate::record::{Metric, Recorder};
use crate::vm::{Machine, Vm};

const ROUNDS: Rounds = Rounds { warm_up: 0, full: 3, counted: 2, quick: 1 };

const RUNNING: Metric = Metric::lower("CPU time of an idle guest", "us/s");
const SLICES: Metric = Metric::lower("wake-ups of its threads", "1/s");
const TOTAL: Metric = Metric::lower("CPU share of all guests together", "%");

const GUESTS: usize = 20;
const GUESTS_QUICK: usize = 4;
/// What a guest does once after its boot shall not count: kernel threads that settle, timers that
/// are set once.
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(20);
const WINDOW_QUICK: Duration = Duration::from_secs(5);

/// Runs it.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    setup.rounds(ROUNDS, |subject, recorder| round(setup, subject, recorder))
}

fn round(setup: &Setup, subject: &Subject, recorder: &mut Recorder) -> Result<()> {
    let (count, window) = if setup.quick { (GUESTS_QUICK, WINDOW_QUICK) } else { (GUESTS, WINDOW) };
    let mut guests = Vec::new();
    for index in 1..=count {
        let start = || -> Result<Vm> {
            let vm = Vm::start(setup, &subject.program, &Machine::small())?;
            vm.wait_until_ready()?;
            Ok(vm)
        };
        guests.push(start().with_context(|| format!("guest {index} of {count}"))?);
    }
    // Here time has to pass: it is what is measured.
    sleep(SETTLE);
    let before = read(&guests)?;
    sleep(window);
    let after = read(&guests)?;
    let mut total_us_per_s = 0.0;
    for (after, before) in after.iter().zip(before) {
        let used = after.since(before);
        let us_per_s = guest::as_f64(used.running_ns) / 1e3 / window.as_secs_f64();
        total_us_per_s += us_per_s;
        recorder.add(subject.side, RUNNING, us_per_s);
        recorder.add(subject.side, SLICES, guest::as_f64(used.slices) / window.as_secs_f64());
    }
    recorder.add(subject.side, TOTAL, total_us_per_s / 1e4);
    Ok(())
}

fn read(guests: &[Vm]) -> Result<Vec<CpuUse>> {
    guests.iter().map(|vm| CpuUse::of(vm.process().id())).collect()
}
