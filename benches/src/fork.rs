//! Benchmark: how long a guest that goes on stands still for a live snapshot and for a fork, against how
//! much of its memory it has changed, and how soon children of the fork have answered.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{Operation, Touch};
use crate::probe::mapping::{Figures, Wanted, with_each};
use crate::probe::{MIB_PAGES, Options, Probe, Shape, Snapshot};
use crate::record::{Recorder, Side};

const ROUNDS: Rounds = Rounds { warm_up: 0, full: 5, counted: 3, quick: 1 };

const SHAPE: Shape = Shape { memory_mib: 512, data_mib: 64 };
/// How much of the data the guest changes; at most all of it.
const CHANGED_MIB: [usize; 3] = [1, 8, 64];
const CHILDREN: usize = 3;

/// Runs it. The peer has nothing of the kind.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    setup.rounds(ROUNDS, |subject, recorder| {
        if subject.side == Side::Peer {
            return Ok(());
        }
        let parent = Snapshot::of(setup, &subject.program, SHAPE)?;
        let wanted = Wanted { working_sets: false, firsts: false, handlers: false };
        with_each(setup, subject, wanted, ("fork", recorder), |options| {
            let mut figures = Figures::default();
            for changed_mib in CHANGED_MIB {
                let what = || format!("after {changed_mib} MiB have changed");
                changed(setup, subject, &parent, options, changed_mib, &mut figures)
                    .with_context(what)?;
            }
            Ok(figures)
        })
    })
}

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
    // Its loss wakes the children.
    let mut client = probe.connect()?;
    client.ask(&touch)?;
    let mut add = |what: &str, duration: Duration| {
        figures.add(format!("-{changed_mib}mib/{what}"), "ms", duration.as_secs_f64() * 1e3);
    };
    let create = probe.create_live(setup)?;
    add("live-pause", live_pause(&probe)?);
    add("live-create", create);

    let begin = Instant::now();
    let fork = probe.fork()?;
    add("fork", begin.elapsed());
    add("fork-pause", fork.pause());
    let child = || fork.start_restore(setup, &subject.program, options)?.finish();
    let children = thread::scope(|scope| {
        let threads = [(); CHILDREN].map(|()| scope.spawn(child));
        let joined = threads.into_iter().map(|thread| thread.join());
        let answered = joined.map(|child| child.unwrap_or_else(|_| bail!("a thread panicked")));
        answered.collect::<Result<Vec<_>>>()
    })?;
    add("children-have-answered", begin.elapsed());
    drop(children);
    // The guest itself has noticed nothing.
    client.ask(&Touch::nothing()).map(drop)
}

/// How long the guest stood still, as its VMM says.
fn live_pause(probe: &Probe) -> Result<Duration> {
    let log = probe.log()?;
    let words = log.split_whitespace();
    let pause_us = words.filter_map(|word| word.strip_prefix("pause_us=")).next_back();
    let pause_us = pause_us.and_then(|number| number.parse().ok());
    pause_us
        .map(Duration::from_micros)
        .context("the log does not tell how long the guest stood still")
}
