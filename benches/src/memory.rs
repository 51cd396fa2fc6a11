//! Benchmark: what a VMM costs in memory beyond the RAM of its guest.

use std::process::Command;

use anyhow::{Context, Result};

use crate::api::SocketWatch;
use crate::bench::{Rounds, Setup, Subject};
use crate::process::{Footprint, mib};
use crate::record::{Metric, Recorder};
use crate::vm::{Machine, Process, Vm};

const ROUNDS: Rounds = Rounds { warm_up: 0, full: 5, counted: 3, quick: 2 };

const IDLE: [Metric; 3] = [
    Metric::lower("API ready, no machine: RSS", "MiB"),
    Metric::lower("API ready, no machine: PSS", "MiB"),
    Metric::lower("API ready, no machine: private", "MiB"),
];
const BOOTED: [Metric; 3] = [
    Metric::lower("guest booted: RSS beyond guest RAM", "MiB"),
    Metric::lower("guest booted: PSS beyond guest RAM", "MiB"),
    Metric::lower("guest booted: private beyond guest RAM", "MiB"),
];

/// Runs it.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    setup.rounds(ROUNDS, |subject, recorder| round(setup, subject, recorder))
}

fn round(setup: &Setup, subject: &Subject, recorder: &mut Recorder) -> Result<()> {
    let idle = idle(setup, subject).context("of a VMM without a machine")?;
    add(recorder, subject, &IDLE, idle);
    let booted = booted(setup, subject).context("of a VMM with a booted guest")?;
    add(recorder, subject, &BOOTED, booted);
    Ok(())
}

fn idle(setup: &Setup, subject: &Subject) -> Result<Footprint> {
    let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
    let watch = SocketWatch::new(directory.path())?;
    let mut command = Command::new(&subject.program);
    command.arg("--api-sock").arg(watch.socket());
    let process = Process::start(command, directory.path())?;
    let mut api = watch.wait(&process)?;
    api.get_instance()?;
    Footprint::all(process.id())
}

fn booted(setup: &Setup, subject: &Subject) -> Result<Footprint> {
    let machine = Machine::small();
    let vm = Vm::start(setup, &subject.program, &machine)?;
    vm.wait_until_ready()?;
    vm.agent().health().context("the agent does not answer")?;
    Footprint::beyond_guest_ram(vm.process().id(), machine.memory_bytes())
}

fn add(recorder: &mut Recorder, subject: &Subject, metrics: &[Metric; 3], footprint: Footprint) {
    let Footprint { resident_kib, proportional_kib, private_kib } = footprint;
    for (metric, kib) in metrics.iter().zip([resident_kib, proportional_kib, private_kib]) {
        recorder.add(subject.side, metric.clone(), mib(kib));
    }
}
