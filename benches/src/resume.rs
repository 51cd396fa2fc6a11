//! Benchmark: from the start of the process to the first answer of a restored guest, and what it
//! costs the guest then to touch data that it had before.
//!
//! The guest answers by itself: see `guest/probe.rs`. Whatever a VMM puts off until its guest needs
//! it is therefore in the rows of the guest's touches, if it is not in those of the restore.

mod timeline;
mod web_app;

use anyhow::{Context, Result};

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{Operation, Touch, milliseconds};
use crate::probe::client::Client;
use crate::probe::mapping::{ALL, Figures, with_each};
use crate::probe::{MIB_PAGES, Moments, Options, Probe, Shape, Snapshot};
use crate::process::available_kib;
use crate::record::{Recorder, Side};

const ROUNDS: Rounds = Rounds { warm_up: 1, full: 10, counted: 5, quick: 2 };

const MEMORIES_MIB: [u64; 3] = [128, 512, 4096];
/// Touched in two halves, the first only read, the second written.
const DATA_MIB: usize = 32;
const TOUCHED_PAGES: usize = DATA_MIB / 2 * MIB_PAGES;
/// Beside what guests and snapshots need.
const SPARE_MIB: u64 = 512;

/// Of one VMM and one size of guest.
struct Case<'a> {
    subject: &'a Subject,
    shape: Shape,
    snapshot: Snapshot,
}

/// Runs it.
///
/// # Errors
/// A machine failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    let mut cases = Vec::new();
    let memories_mib = match setup.memories_mib.as_slice() {
        [] => &MEMORIES_MIB,
        chosen => chosen,
    };
    for memory_mib in memories_mib.iter().copied() {
        for subject in setup.subjects() {
            let shape = Shape { memory_mib, data_mib: DATA_MIB };
            if !has_room(subject, shape)? {
                let program = subject.program.display();
                eprintln!(
                    "left out: {memory_mib} MiB with {program}, which the host has no room for"
                );
                continue;
            }
            let snapshot = Snapshot::of(setup, &subject.program, shape)
                .with_context(|| format!("cannot make a snapshot of {memory_mib} MiB"))?;
            let touch = |probe: &Probe| touch(&mut probe.connect()?).map(drop);
            snapshot.record(setup, subject, touch).context("cannot record what is needed")?;
            cases.push(Case { subject, shape, snapshot });
        }
    }
    let mut web_apps = Vec::new();
    for subject in setup.subjects().iter().filter(|_| setup.memories_mib.is_empty()) {
        let snapshot = web_app::snapshot(setup, subject);
        web_apps.push((subject.side, snapshot.context("cannot make a snapshot of a web app")?));
    }
    setup.rounds(ROUNDS, |subject, recorder| {
        for case in cases.iter().filter(|case| case.subject.side == subject.side) {
            let what = || format!("a guest of {} MiB", case.shape.memory_mib);
            case.round(setup, recorder).with_context(what)?;
        }
        for (_, snapshot) in web_apps.iter().filter(|(side, _)| *side == subject.side) {
            with_each(setup, subject, ALL, ("resume", recorder), |options| {
                web_app::restore(setup, subject, snapshot, options)
            })
            .context("a guest with a web app")?;
        }
        Ok(())
    })
}

/// Whether a snapshot, and a guest of it, can be in memory. Firecracker's snapshots are as large as
/// the guest; of ours the rest is never there.
fn has_room(subject: &Subject, shape: Shape) -> Result<bool> {
    let needed_mib = match subject.side {
        Side::Own => 2 * shape.data_mib as u64,
        Side::Peer => shape.memory_mib + shape.data_mib as u64,
    };
    Ok(available_kib()? >> 10 >= needed_mib + SPARE_MIB)
}

impl Case<'_> {
    fn round(&self, setup: &Setup, recorder: &mut Recorder) -> Result<()> {
        with_each(setup, self.subject, ALL, ("resume", recorder), |options| {
            let mut figures = Figures::default();
            self.restore(setup, options, &mut figures)?;
            // It would not be the first one.
            if self.subject.side == Side::Own && !options.is_first {
                self.timeline(setup, options, &mut figures)?;
            }
            Ok(figures)
        })
    }

    fn restore(&self, setup: &Setup, options: &Options, figures: &mut Figures) -> Result<()> {
        let (probe, moments) = self.snapshot.restore(setup, &self.subject.program, options)?;
        let mut client = probe.connect()?;
        client.ask(&Touch::nothing())?;
        let asked = probe.elapsed();
        let Moments { api_ready, loaded, answered, .. } = moments;
        for (what, moment) in [
            ("process-to-api-ready", api_ready),
            ("process-to-loaded", loaded),
            ("process-to-first-answer", answered),
            ("process-to-vsock-answer", asked),
        ] {
            self.add(figures, what, moment.as_secs_f64() * 1e3);
        }
        for (what, sample_ms) in touch(&mut client)? {
            self.add(figures, what, sample_ms);
        }
        Ok(())
    }

    /// A restore of its own, because writing the log takes time.
    fn timeline(&self, setup: &Setup, options: &Options, figures: &mut Figures) -> Result<()> {
        let words = ["--level", "Debug"].map(str::to_owned).into();
        let options = Options { words, ..options.clone() };
        let (probe, moments) = self.snapshot.restore(setup, &self.subject.program, &options)?;
        for (what, moment) in timeline::read(&probe.log()?, moments.started)? {
            self.add(figures, &format!("log: {what}"), moment.as_secs_f64() * 1e3);
        }
        Ok(())
    }

    fn add(&self, figures: &mut Figures, what: &str, sample_ms: f64) {
        figures.add(format!("-{}mib/{what}", self.shape.memory_mib), "ms", sample_ms);
    }
}

/// What the guest does after its first answer.
fn touch(client: &mut Client) -> Result<[(&'static str, f64); 2]> {
    let mut ask = |pages, operation| -> Result<f64> {
        let touch = Touch { pages, operation, count: TOUCHED_PAGES, ..Touch::nothing() };
        Ok(milliseconds(client.ask(&touch)?.elapsed_ns))
    };
    let read = ask(0..TOUCHED_PAGES, Operation::Read)?;
    let write = ask(TOUCHED_PAGES..2 * TOUCHED_PAGES, Operation::Write)?;
    Ok([("guest-reads-16mib", read), ("guest-writes-16mib", write)])
}
