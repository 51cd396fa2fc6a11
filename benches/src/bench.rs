//! The benchmarks by name, and the rounds that each of them runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::artifacts::Artifacts;
use crate::cli::Arguments;
use crate::host::Host;
use crate::probe::mapping;
use crate::record::{Recorder, Side};
use crate::{
    block, boot, clone, control, fault, fork, idle, memory, net, networks, resume, suspend, vsock,
};

/// A benchmark.
#[derive(Debug)]
pub struct Benchmark {
    /// As on the command line.
    pub name: &'static str,
    /// What it measures.
    about: &'static str,
    /// Runs it.
    pub run: fn(&Setup) -> Result<Recorder>,
}

const BENCHMARKS: [Benchmark; 13] = [
    Benchmark {
        name: "boot",
        about: "process start to the agent's answer, with what happens in between",
        run: boot::run,
    },
    Benchmark {
        name: "memory",
        about: "the VMM's memory beyond guest RAM, idle and with a booted guest",
        run: memory::run,
    },
    Benchmark {
        name: "block",
        about: "throughput and requests per second of a guest's disk",
        run: block::run,
    },
    Benchmark {
        name: "vsock",
        about: "throughput in both directions and round trips between guest and host",
        run: vsock::run,
    },
    Benchmark {
        name: "net",
        about: "TCP in both directions, round trips and connections between guest and host",
        run: net::run,
    },
    Benchmark {
        name: "networks",
        about: "networks made, taken from the pool, changed and removed",
        run: networks::run,
    },
    Benchmark {
        name: "resume",
        about: "process start to a restored guest's first answer, and what it then touches",
        run: resume::run,
    },
    Benchmark {
        name: "suspend",
        about: "pause and snapshot of a guest, against how much of it has changed",
        run: suspend::run,
    },
    Benchmark {
        name: "clone",
        about: "many restores of one snapshot at once: answers, and memory",
        run: clone::run,
    },
    Benchmark {
        name: "fork",
        about: "live snapshots and forks of a guest that goes on, and the answers of children",
        run: fork::run,
    },
    Benchmark {
        name: "fault",
        about: "a restored guest touches pages here and there: the cost of each",
        run: fault::run,
    },
    Benchmark {
        name: "api",
        about: "image builds, launches, requests and resumes through the control plane",
        run: control::run,
    },
    Benchmark { name: "idle", about: "what idle guests cost the host's CPUs", run: idle::run },
];

/// The benchmark of that name.
///
/// # Errors
/// There is none.
pub fn find(name: &str) -> Result<&'static Benchmark> {
    let found = BENCHMARKS.iter().find(|benchmark| benchmark.name == name);
    found.with_context(|| {
        let names = BENCHMARKS.map(|benchmark| benchmark.name).join(", ");
        format!("there is no benchmark {name:?}: there are {names}")
    })
}

/// All of them, a line each.
pub fn list() -> String {
    BENCHMARKS.map(|benchmark| format!("{:<8} {}\n", benchmark.name, benchmark.about)).concat()
}

/// How often a benchmark is repeated.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Before anything counts: page cache, allocator and CPU find their places.
    pub warm_up: u32,
    /// Where time is real.
    pub full: u32,
    /// Where it counts instructions: there is little spread, and a round takes long.
    pub counted: u32,
    /// With `--quick`.
    pub quick: u32,
}

/// One of the VMMs.
#[derive(Debug)]
pub struct Subject {
    /// Which one.
    pub side: Side,
    /// Its program.
    pub program: PathBuf,
}

/// What every benchmark works with.
#[derive(Debug)]
pub struct Setup {
    /// What guests boot.
    pub artifacts: Artifacts,
    /// As little as possible.
    pub quick: bool,
    counted: bool,
    /// Many machines at once would take hours.
    pub emulated: bool,
    /// Of bringing memory back; all of them, if it is empty.
    pub ways: Vec<String>,
    /// The guests' sizes; all that a benchmark has, if it is empty.
    pub memories_mib: Vec<u64>,
    subjects: Vec<Subject>,
    scratch: TempDir,
}

impl Setup {
    /// Copies what is to be measured.
    ///
    /// # Errors
    /// Something is missing.
    pub fn new(arguments: &Arguments, host: &Host) -> Result<Self> {
        let artifacts = Artifacts::find()?;
        let mut subjects = vec![Subject { side: Side::Own, program: artifacts.vmm()? }];
        if let Some(peer) = &arguments.peer {
            if !peer.is_file() {
                bail!("the peer {} is no file", peer.display());
            }
            subjects.push(Subject { side: Side::Peer, program: artifacts.other(peer)? });
        }
        let scratch = tempfile::Builder::new().prefix("run-").tempdir_in(artifacts.stage());
        let scratch = scratch.context("cannot make a directory for the machines")?;
        let Host { counted, emulated, .. } = *host;
        mapping::check(&arguments.ways)?;
        Ok(Self {
            artifacts,
            quick: arguments.quick,
            counted,
            emulated,
            ways: arguments.ways.clone(),
            memories_mib: arguments.memory_mib.clone(),
            subjects,
            scratch,
        })
    }

    /// A directory on tmpfs that goes when the benchmark ends.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The VMMs, ours first.
    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    /// Runs `round` with each of the VMMs in turn: what changes on the host while we measure meets
    /// both. Progress goes to standard error.
    ///
    /// # Errors
    /// Those of `round`; nothing is recorded of a benchmark that fails.
    pub fn rounds(
        &self,
        rounds: Rounds,
        mut round: impl FnMut(&Subject, &mut Recorder) -> Result<()>,
    ) -> Result<Recorder> {
        let (warm_up, count) = match (self.quick, self.counted) {
            (true, _) => (0, rounds.quick),
            (false, true) => (rounds.warm_up, rounds.counted),
            (false, false) => (rounds.warm_up, rounds.full),
        };
        let (mut kept, mut discarded) = (Recorder::default(), Recorder::default());
        for index in 0..warm_up + count {
            let (recorder, what) = match index.checked_sub(warm_up) {
                None => (&mut discarded, format!("warm-up {} of {warm_up}", index + 1)),
                Some(index) => (&mut kept, format!("round {} of {count}", index + 1)),
            };
            eprintln!("{what}");
            for subject in &self.subjects {
                round(subject, recorder)
                    .with_context(|| format!("{what}, {}", subject.program.display()))?;
            }
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_benchmark_is_refused_with_the_names_that_there_are() {
        let error = find("boots").unwrap_err().to_string();
        assert!(error.contains("\"boots\"") && error.contains("boot, memory, block"), "{error}");
    }

    #[test]
    fn every_benchmark_is_listed_and_found() {
        assert_eq!(list().lines().count(), BENCHMARKS.len());
        for line in list().lines() {
            assert!(find(line.split_whitespace().next().unwrap()).is_ok());
        }
    }
}
