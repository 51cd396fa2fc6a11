//! The ways in which a VMM brings a guest's memory back, each of which is measured.

use std::path::Path;
use std::process::Command;
use std::thread::yield_now;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Options, VSOCK};
use crate::api::SocketWatch;
use crate::bench::{Setup, Subject};
use crate::record::{Metric, Recorder, Side};
use crate::vm::{DEADLINE, Process};

/// How our VMM's answer to `--version` begins.
const OURS: &[u8] = b"rotifer-vmm";
const PAGER_LISTENS: &str = "the pager listens";

/// One of them.
struct Mapping {
    /// What it is called on the command line.
    name: &'static str,
    /// Whether memory comes through a pager that all machines of the host share.
    is_shared: bool,
    /// Whether all of it is loaded before the guest runs.
    is_eager: bool,
    /// Whether the snapshot tells what will be needed.
    has_working_set: bool,
    /// It is measured so often, one after the other with the same pager. What stands behind the
    /// benchmark's name; nothing for what a user gets who says nothing.
    runs: &'static [Run],
}

struct Run {
    suffix: &'static str,
    /// Whether it is also set beside the peer's backend `Uffd`, under [`BESIDE_UFFD`].
    is_beside_uffd: bool,
    /// Whether no machine of the snapshot has run before on this pager.
    is_first: bool,
}

/// Those of our VMM, a line each. The peer has one, Firecracker's backend `File`, which is set
/// beside each of them.
const MAPPINGS: [Mapping; 5] = [
    alone("copy", false, &[warm("")]),
    alone("copy-ws", true, &[warm("-ws")]),
    Mapping { is_eager: true, ..alone("eager", false, &[warm("-eager")]) },
    shared(
        "shared",
        false,
        &[first("-shared-first"), Run { is_beside_uffd: true, ..warm("-shared") }],
    ),
    shared("shared-ws", true, &[first("-shared-ws-first"), warm("-shared-ws")]),
];

/// Stands behind the benchmark's name where the peer's page faults are served by a handler of ours.
const BESIDE_UFFD: &str = "-shared-beside-uffd";

const fn alone(name: &'static str, has_working_set: bool, runs: &'static [Run]) -> Mapping {
    Mapping { name, is_shared: false, is_eager: false, has_working_set, runs }
}

const fn shared(name: &'static str, has_working_set: bool, runs: &'static [Run]) -> Mapping {
    Mapping { is_shared: true, ..alone(name, has_working_set, runs) }
}

const fn first(suffix: &'static str) -> Run {
    Run { suffix, is_beside_uffd: false, is_first: true }
}

const fn warm(suffix: &'static str) -> Run {
    Run { suffix, is_beside_uffd: false, is_first: false }
}

/// Which of them a benchmark has a use for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Those with a working set, which the snapshot must have.
    pub working_sets: bool,
    /// Those on a pager that has just been started.
    pub firsts: bool,
    /// The peer's backend `Uffd`, too.
    pub handlers: bool,
}

/// Everything.
pub const ALL: Wanted = Wanted { working_sets: true, firsts: true, handlers: true };

impl Wanted {
    fn has(self, mapping: &Mapping, run: &Run) -> bool {
        (self.working_sets || !mapping.has_working_set) && (self.firsts || !run.is_first)
    }
}

/// Refuses a way that does not exist.
///
/// # Errors
/// There is one.
pub fn check(ways: &[String]) -> Result<()> {
    match ways.iter().find(|way| !MAPPINGS.iter().any(|mapping| mapping.name == **way)) {
        None => Ok(()),
        Some(way) => {
            let names = MAPPINGS.map(|mapping| mapping.name).join(", ");
            bail!("memory is not brought back by {way:?}: the ways are {names}")
        }
    }
}

/// Samples of one run, by what stands behind the benchmark's name.
#[derive(Debug, Default)]
pub struct Figures(Vec<(String, &'static str, f64)>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, sample: f64) {
        self.0.push((name.into(), unit, sample));
    }

    /// Records them under a name.
    pub fn record(&self, recorder: &mut Recorder, side: Side, name: &str) {
        for (rest, unit, sample) in &self.0 {
            recorder.add(side, Metric::lower_of(format!("{name}{rest}"), unit), *sample);
        }
    }
}

/// The process that keeps what machines share. Dropping it kills it.
struct Pager {
    process: Process,
    watch: SocketWatch,
    /// Of the socket and the log.
    _directory: TempDir,
}

impl Pager {
    fn start(setup: &Setup, subject: &Subject) -> Result<Self> {
        let directory = tempfile::tempdir_in(setup.scratch()).context("cannot make a directory")?;
        let watch = SocketWatch::new(directory.path())?;
        let mut command = Command::new(&subject.program);
        command.args(["pager", "--socket"]).arg(watch.socket());
        let process = Process::start(command, directory.path())?;
        watch.wait_until_created(&process)?;
        let deadline = Instant::now() + DEADLINE;
        // It says so right after the socket was made.
        while !process.log().contains(PAGER_LISTENS) {
            if Instant::now() > deadline {
                bail!(process.explain("the pager does not listen"));
            }
            yield_now();
        }
        Ok(Self { process, watch, _directory: directory })
    }
}

/// Firecracker keeps the socket's path as it was given, relative to where it runs; ours does not,
/// and neither does an older one of ours that is the peer.
///
/// # Errors
/// The program does not run.
pub fn vsock_override(program: &Path) -> Result<Value> {
    let version = Command::new(program).arg("--version").output();
    let version = version.with_context(|| format!("cannot run {}", program.display()))?;
    Ok(match version.stdout.starts_with(OURS) {
        true => json!({ "vsock_override": { "uds_path": VSOCK } }),
        false => json!({}),
    })
}

/// Runs `measure` with each way that the VMM has and is wanted, and records under `name`.
///
/// # Errors
/// Those of `measure`.
pub fn with_each(
    setup: &Setup,
    subject: &Subject,
    wanted: Wanted,
    (name, recorder): (&str, &mut Recorder),
    mut measure: impl FnMut(&Options) -> Result<Figures>,
) -> Result<()> {
    let load = vsock_override(&subject.program)?;
    let options = Options { load, ..Options::default() };
    if subject.side == Side::Peer {
        let figures = measure(&options)?;
        for mapping in &MAPPINGS {
            for run in mapping.runs.iter().filter(|run| wanted.has(mapping, run)) {
                figures.record(recorder, Side::Peer, &format!("{name}{}", run.suffix));
            }
        }
        let is_asked_for = setup.ways.is_empty() || setup.ways.iter().any(|way| way == "shared");
        if wanted.handlers && is_asked_for {
            let options = Options { with_handler: true, ..options };
            let figures = measure(&options).context("with its backend Uffd")?;
            figures.record(recorder, Side::Peer, &format!("{name}{BESIDE_UFFD}"));
        }
        return Ok(());
    }
    let is_asked_for = |mapping: &&Mapping| {
        setup.ways.is_empty() || setup.ways.iter().any(|it| it == mapping.name)
    };
    for mapping in MAPPINGS.iter().filter(is_asked_for) {
        let mut options = options.clone();
        options.with_working_set = mapping.has_working_set;
        if mapping.is_eager {
            options.load["load_eagerly"] = true.into();
        }
        let pager = mapping.is_shared.then(|| Pager::start(setup, subject)).transpose()?;
        if let Some(pager) = &pager {
            let backend = json!({ "backend_type": "Uffd", "backend_path": pager.watch.socket() });
            options.load["mem_backend"] = backend;
            options.pager = Some(pager.process.id());
        }
        for run in mapping.runs.iter().filter(|run| wanted.has(mapping, run)) {
            options.is_first = run.is_first;
            let row = format!("{name}{}", run.suffix);
            let figures = measure(&options).with_context(|| row.clone())?;
            figures.record(recorder, Side::Own, &row);
            if wanted.handlers
                && run.is_beside_uffd
                && setup.subjects().iter().any(|it| it.side == Side::Peer)
            {
                figures.record(recorder, Side::Own, &format!("{name}{BESIDE_UFFD}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ways_have_the_same_name_and_one_has_none() {
        let mut names: Vec<_> =
            MAPPINGS.iter().flat_map(|mapping| mapping.runs).map(|run| run.suffix).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), names[0]), (count, ""));
    }

    #[test]
    fn figures_are_recorded_behind_the_benchmarks_name() {
        let mut figures = Figures::default();
        figures.add("-1mib/time", "ms", 3.0);
        let mut recorder = Recorder::default();
        figures.record(&mut recorder, Side::Own, "resume-shared");
        figures.record(&mut recorder, Side::Peer, "resume-shared");
        let series = recorder.into_series();
        assert_eq!(series[0].metric, Metric::lower("resume-shared-1mib/time", "ms"));
        assert_eq!((&series[0].own, &series[0].peer), (&vec![3.0], &vec![3.0]));
    }
}
