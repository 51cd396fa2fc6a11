//! Benchmark: many restores of one snapshot at the same time, and what they take of the host's
//! memory together.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{Operation, Touch};
use crate::probe::mapping::{ALL, Figures, with_each};
use crate::probe::{MIB_PAGES, Options, Probe, Shape, Snapshot};
use crate::process::{Footprint, mib};
use crate::record::Recorder;

const ROUNDS: Rounds = Rounds { warm_up: 0, full: 5, counted: 2, quick: 1 };

const SHAPE: Shape = Shape { memory_mib: 512, data_mib: 32 };
const READ_PAGES: usize = 16 * MIB_PAGES;
const WRITTEN_PAGES: usize = MIB_PAGES;

/// Runs it.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    let mut snapshots = Vec::new();
    for subject in setup.subjects() {
        let snapshot = Snapshot::of(setup, &subject.program, SHAPE)?;
        snapshot.record(setup, subject, work).context("cannot record what clones need")?;
        snapshots.push((subject.side, snapshot));
    }
    let many = if setup.quick || setup.emulated { None } else { Some(100) };
    let counts: Vec<usize> = [1, 10].into_iter().chain(many).collect();
    setup.rounds(ROUNDS, |subject, recorder| {
        for (_, snapshot) in snapshots.iter().filter(|(side, _)| *side == subject.side) {
            for count in &counts {
                with_each(setup, subject, ALL, ("clone", recorder), |options| {
                    let mut figures = Figures::default();
                    clones(setup, subject, snapshot, options, *count, &mut figures)
                        .with_context(|| format!("{count} at once"))?;
                    Ok(figures)
                })?;
            }
        }
        Ok(())
    })
}

fn clones(
    setup: &Setup,
    subject: &Subject,
    snapshot: &Snapshot,
    options: &Options,
    count: usize,
    figures: &mut Figures,
) -> Result<()> {
    let barrier = Barrier::new(count);
    let restore = || -> Result<(Probe, Duration, Instant)> {
        barrier.wait();
        let (probe, moments) = snapshot.restore(setup, &subject.program, options)?;
        Ok((probe, moments.answered, Instant::now()))
    };
    let begin = Instant::now();
    let restored = thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(restore)).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(restored) => restored,
            Err(_) => bail!("a thread panicked"),
        });
        joined.collect::<Result<Vec<_>>>()
    })?;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    for (_, answered, _) in &restored {
        figures.add(format!("-{count}/process-to-first-answer"), "ms", ms(*answered));
    }
    let last = restored.iter().map(|(_, _, end)| *end - begin).max().unwrap_or_default();
    figures.add(format!("-{count}/all-have-answered"), "ms", ms(last));
    let probes: Vec<Probe> = restored.into_iter().map(|(probe, ..)| probe).collect();
    let pager = options.pager;
    memory(&probes, pager, &format!("-{count}/answered"), figures)?;
    for probe in &probes {
        work(probe)?;
    }
    memory(&probes, pager, &format!("-{count}/16mib-read-1mib-written"), figures)
}

/// What a clone does.
fn work(probe: &Probe) -> Result<()> {
    let mut client = probe.connect()?;
    client.ask(&Touch { pages: 0..READ_PAGES, count: READ_PAGES, ..Touch::nothing() })?;
    let pages = READ_PAGES..READ_PAGES + WRITTEN_PAGES;
    let operation = Operation::Write;
    client.ask(&Touch { pages, count: WRITTEN_PAGES, operation, ..Touch::nothing() })?;
    Ok(())
}

/// What the processes have; a page that several map counts for each in part.
fn memory(probes: &[Probe], pager: Option<u32>, name: &str, figures: &mut Figures) -> Result<()> {
    let mut sum_kib = 0;
    if let Some(pager) = pager {
        let footprint = Footprint::all(pager)?;
        figures.add(format!("{name}: PSS of the pager"), "MiB", mib(footprint.proportional_kib));
        sum_kib += footprint.proportional_kib;
    }
    for probe in probes {
        let footprint = Footprint::all(probe.id())?;
        figures.add(format!("{name}: PSS of each"), "MiB", mib(footprint.proportional_kib));
        figures.add(format!("{name}: private of each"), "MiB", mib(footprint.private_kib));
        sum_kib += footprint.proportional_kib;
    }
    figures.add(format!("{name}: PSS of all"), "MiB", mib(sum_kib));
    Ok(())
}
