//! Benchmark: how long a guest stands still for a snapshot, how much is written, and when it answers again,
//! against how much of its memory has changed since it was restored.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{Operation, Touch};
use crate::probe::mapping::{Figures, Wanted, with_each};
use crate::probe::{Kind, MIB_PAGES, Options, Probe, Shape, Snapshot};
use crate::process::{Footprint, mib};
use crate::record::{Recorder, Side};

const ROUNDS: Rounds = Rounds { warm_up: 0, full: 5, counted: 3, quick: 1 };

const SHAPE: Shape = Shape { memory_mib: 512, data_mib: 256 };
/// How much of the data the guest changes; at most all of it.
const CHANGED_MIB: [usize; 4] = [1, 8, 64, 256];

/// Runs it.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    setup.rounds(ROUNDS, |subject, recorder| {
        let mut figures = Figures::default();
        let full = full(setup, subject, &mut figures).context("of all memory")?;
        figures.record(recorder, subject.side, "suspend");
        // How it was restored only matters as far as it has another mapping.
        let wanted = Wanted { working_sets: false, firsts: false, handlers: false };
        with_each(setup, subject, wanted, ("suspend", recorder), |options| {
            let mut figures = Figures::default();
            for changed_mib in CHANGED_MIB {
                let what = || format!("after {changed_mib} MiB have changed");
                changed(setup, subject, &full, options, changed_mib, &mut figures)
                    .with_context(what)?;
            }
            Ok(figures)
        })
    })
}

/// The first snapshot of a guest that was booted.
fn full(setup: &Setup, subject: &Subject, figures: &mut Figures) -> Result<Snapshot> {
    let mut probe = Probe::boot(setup, &subject.program, SHAPE)?;
    // Whose loss wakes the guest when it goes on.
    let mut client = probe.connect()?;
    client.ask(&Touch::nothing())?;
    suspend(setup, &mut probe, Kind::Full, "-full", figures)
}

/// A snapshot of a guest that was restored from another one.
fn changed(
    setup: &Setup,
    subject: &Subject,
    parent: &Snapshot,
    options: &Options,
    changed_mib: usize,
    figures: &mut Figures,
) -> Result<()> {
    let (mut probe, _) = parent.restore(setup, &subject.program, options)?;
    let count = changed_mib * MIB_PAGES;
    let touch = Touch { pages: 0..count, count, operation: Operation::Write, ..Touch::nothing() };
    // Whose loss wakes the guest when it goes on.
    let mut client = probe.connect()?;
    client.ask(&touch)?;
    let name = format!("-{changed_mib}mib");
    let snapshot = suspend(setup, &mut probe, Kind::Diff, &name, figures)?;
    if subject.side == Side::Peer {
        // Its snapshots of changes cannot be restored without a tool that merges them.
        return Ok(());
    }
    drop(probe);
    let (probe, moments) = snapshot.restore(setup, &subject.program, &parent.below(options))?;
    figures.add(format!("{name}/resumed/process-to-first-answer"), "ms", ms(moments.answered));
    let footprint = Footprint::all(probe.id())?;
    figures.add(format!("{name}/resumed: private memory"), "MiB", mib(footprint.private_kib));
    Ok(())
}

fn suspend(
    setup: &Setup,
    probe: &mut Probe,
    kind: Kind,
    name: &str,
    figures: &mut Figures,
) -> Result<Snapshot> {
    let pause = probe.pause()?;
    let (snapshot, create) = probe.create(setup, kind)?;
    figures.add(format!("{name}/pause"), "ms", ms(pause));
    figures.add(format!("{name}/create"), "ms", ms(create));
    figures.add(format!("{name}/written"), "MiB", mib(snapshot.bytes()? >> 10));
    Ok(snapshot)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
