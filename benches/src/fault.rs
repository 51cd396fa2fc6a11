//! Benchmark: a restored guest touches pages here and there, each for the first time.

use anyhow::Result;

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{Operation, Order, Touch, as_f64};
use crate::probe::mapping::{Figures, Wanted, with_each};
use crate::probe::{MIB_PAGES, Options, Shape, Snapshot};
use crate::record::Recorder;

const ROUNDS: Rounds = Rounds { warm_up: 1, full: 5, counted: 3, quick: 1 };

const SHAPE: Shape = Shape { memory_mib: 512, data_mib: 128 };
const HALF_PAGES: usize = SHAPE.data_mib / 2 * MIB_PAGES;
const TOUCHED_PAGES: usize = 500;

/// Runs it.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    let snapshots = setup
        .subjects()
        .iter()
        .map(|subject| Ok((subject.side, Snapshot::of(setup, &subject.program, SHAPE)?)));
    let snapshots = snapshots.collect::<Result<Vec<_>>>()?;
    setup.rounds(ROUNDS, |subject, recorder| {
        for (_, snapshot) in snapshots.iter().filter(|(side, _)| *side == subject.side) {
            // Nobody could have known what is touched.
            let wanted = Wanted { working_sets: false, firsts: true, handlers: true };
            with_each(setup, subject, wanted, ("fault", recorder), |options| {
                touch(setup, subject, snapshot, options)
            })?;
        }
        Ok(())
    })
}

fn touch(
    setup: &Setup,
    subject: &Subject,
    snapshot: &Snapshot,
    options: &Options,
) -> Result<Figures> {
    let mut figures = Figures::default();
    let (probe, _) = snapshot.restore(setup, &subject.program, options)?;
    let mut client = probe.connect()?;
    for (name, pages, operation) in [
        ("read", 0..HALF_PAGES, Operation::Read),
        ("write", HALF_PAGES..2 * HALF_PAGES, Operation::Write),
    ] {
        let (count, order) = (TOUCHED_PAGES, Order::Random);
        let touched = client.ask(&Touch { pages, count, order, operation, each: true })?;
        for nanos in touched.samples_ns {
            figures.add(format!("/{name}-of-a-page"), "us", as_f64(nanos) / 1e3);
        }
        let total_ms = as_f64(touched.elapsed_ns) / 1e6;
        figures.add(format!("/{name}-of-{TOUCHED_PAGES}-pages"), "ms", total_ms);
    }
    Ok(figures)
}
