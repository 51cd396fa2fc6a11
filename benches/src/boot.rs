//! Benchmark: from the start of the process to the answer of the agent.
//!
//! The guest tells its moments on its own clock, and the host's clock is laid beside it with the
//! quickest of a few requests: the guest read its clock somewhere between request and answer.

mod timeline;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::api::SocketWatch;
use crate::bench::{Rounds, Setup, Subject};
use crate::guest::milliseconds;
use crate::record::{Metric, Recorder};
use crate::vm::{Machine, Process, Vm};

use timeline::{ClockPair, Moments};

const ROUNDS: Rounds = Rounds { warm_up: 1, full: 10, counted: 5, quick: 2 };

const API_READY: Metric = Metric::lower("process start -> API socket ready", "ms");
const API_ANSWER: Metric = Metric::lower("process start -> first answer of the API", "ms");

/// The moments of one kind of boot, in their order.
struct Variant {
    kernel: Metric,
    init: Metric,
    /// Only where there is a root disk.
    root: Option<Metric>,
    ready: Metric,
    cpu: Metric,
}

const INITRAMFS: Variant = Variant {
    kernel: Metric::lower("initramfs: process start -> guest's clock starts", "ms"),
    init: Metric::lower("initramfs: process start -> /init", "ms"),
    root: None,
    ready: Metric::lower("initramfs: process start -> agent answers", "ms"),
    cpu: Metric::lower("initramfs: CPU time until then", "ms"),
};
const EXT4: Variant = Variant {
    kernel: Metric::lower("ext4 root: process start -> guest's clock starts", "ms"),
    init: Metric::lower("ext4 root: process start -> /init", "ms"),
    root: Some(Metric::lower("ext4 root: process start -> root mounted", "ms")),
    ready: Metric::lower("ext4 root: process start -> agent answers", "ms"),
    cpu: Metric::lower("ext4 root: CPU time until then", "ms"),
};

/// Requests for the time; the quickest counts.
const CLOCK_READINGS: u32 = 5;

/// Runs it.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    let root_disk = setup.artifacts.root_disk()?;
    let words = "rotifer.root=/dev/vda rotifer.rootfstype=ext4 ro";
    let with_root = Machine::small().drive(&root_disk, true).words(words);
    setup.rounds(ROUNDS, |subject, recorder| {
        start_api(setup, subject, recorder).context("start without a machine")?;
        boot(setup, subject, &Machine::small(), &INITRAMFS, recorder).context("initramfs")?;
        boot(setup, subject, &with_root, &EXT4, recorder).context("ext4 root")
    })
}

fn start_api(setup: &Setup, subject: &Subject, recorder: &mut Recorder) -> Result<()> {
    let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
    let watch = SocketWatch::new(directory.path())?;
    let mut command = Command::new(&subject.program);
    command.arg("--api-sock").arg(watch.socket());
    let process = Process::start(command, directory.path())?;
    let mut api = watch.wait(&process)?;
    let ready = process.started.elapsed();
    api.get_instance().map_err(|error| process.explain(format!("{error:#}")))?;
    let answered = process.started.elapsed();
    recorder.add(subject.side, API_READY, ready.as_secs_f64() * 1e3);
    recorder.add(subject.side, API_ANSWER, answered.as_secs_f64() * 1e3);
    Ok(())
}

fn boot(
    setup: &Setup,
    subject: &Subject,
    machine: &Machine,
    variant: &Variant,
    recorder: &mut Recorder,
) -> Result<()> {
    let vm = Vm::start(setup, &subject.program, machine)?;
    let ready = vm.wait_until_ready()?;
    let cpu = crate::process::CpuUse::of(vm.process().id())?;
    let agent = vm.agent();
    let started = vm.process().started;
    let mut clocks = ClockPair::default();
    let mut moments = None;
    for _ in 0..CLOCK_READINGS {
        let before = Instant::now();
        let health = agent.health();
        let after = Instant::now();
        let health = health.map_err(|error| vm.process().explain(error))?;
        let read = Moments::parse(&health)?;
        clocks.offer(before - started, after - started, read.now_ns);
        moments = Some(read);
    }
    let moments = moments.context("the agent was not asked")?;
    let at = |guest_ns: u64| clocks.on_host_ms(guest_ns);
    recorder.add(subject.side, variant.kernel.clone(), at(0));
    recorder.add(subject.side, variant.init.clone(), at(moments.agent_start_ns));
    if let Some(metric) = variant.root.clone() {
        recorder.add(subject.side, metric, at(moments.root_mounted_ns));
    }
    recorder.add(subject.side, variant.ready.clone(), ready.as_secs_f64() * 1e3);
    recorder.add(subject.side, variant.cpu.clone(), milliseconds(cpu.running_ns));
    Ok(())
}
