//! The load inside the guest: this program uploads itself there and runs as `guest ...`, which
//! prints its result as JSON.

mod block;
mod probe;
mod stream;

use std::env;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Subcommand;
use rotifer_agent::client::AgentClient;
use rotifer_agent::exec::ExecRequest;
use rotifer_agent::exec::collect::Collected;
use rotifer_agent::process::Exit;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use block::{BlockLoad, Operation, Order};
pub use probe::{MARK, PAGE_BYTES, PROBE_PORT, ProbeLoad, Touch, Touched};
pub use stream::{Direction, PIECE_BYTES, StreamLoad};

/// Where the program is in the guest: the initramfs is writable.
const PROGRAM: &str = "/rotifer-benches";
/// How much of a wrong answer an error shows.
const SHOWN_CHARS: usize = 500;

/// What to do in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Load {
    /// Read or write a disk
    Block(BlockLoad),
    /// Send to the host or receive from it
    Stream(StreamLoad),
    /// Be the only process of a guest, and touch memory when the host says so
    Probe(ProbeLoad),
}

/// How much was moved in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// How much.
    pub bytes: u64,
    /// In how many requests.
    pub requests: u64,
    /// How long it took, on the guest's clock.
    pub elapsed_ns: u64,
}

/// How long each of many things took, on the guest's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latencies {
    /// One number for each.
    pub samples_ns: Vec<u64>,
}

impl Transfer {
    fn since(start: Instant, bytes: u64, requests: u64) -> Self {
        Self { bytes, requests, elapsed_ns: elapsed_ns(start) }
    }

    /// Throughput.
    pub fn mib_per_s(self) -> f64 {
        as_f64(self.bytes) / f64::from(1 << 20) / seconds(self.elapsed_ns)
    }

    /// Requests per second.
    pub fn requests_per_s(self) -> f64 {
        as_f64(self.requests) / seconds(self.elapsed_ns)
    }
}

/// Runs the load; its result goes to standard output.
///
/// # Errors
/// It failed.
pub fn run(load: &Load) -> Result<()> {
    let result = match load {
        Load::Probe(load) => return load.run(),
        Load::Block(load) => serde_json::to_string(&load.run()?),
        Load::Stream(load) => match load.run()? {
            stream::Outcome::Transfer(transfer) => serde_json::to_string(&transfer),
            stream::Outcome::Latencies(latencies) => serde_json::to_string(&latencies),
        },
    };
    println!("{}", result.context("cannot encode the result")?);
    Ok(())
}

/// On the host: puts this program into the guest.
///
/// # Errors
/// The agent does not take it.
pub fn install(agent: &AgentClient) -> Result<()> {
    let own = env::current_exe().context("cannot tell which program we are")?;
    let file = File::open(&own).with_context(|| format!("cannot read {}", own.display()))?;
    let length_bytes = file.metadata().context("cannot tell how long our program is")?.len();
    agent
        .put_file(Path::new(PROGRAM), "mode=755", file, length_bytes)
        .context("cannot copy our program into the guest")
}

/// On the host: runs a load in the guest that has the program, and returns its result.
///
/// # Errors
/// The load failed, or its answer is none.
pub fn call<T: DeserializeOwned>(agent: &AgentClient, words: &[String]) -> Result<T> {
    let command = [PROGRAM, "guest"].map(str::to_owned).into_iter().chain(words.iter().cloned());
    let request = ExecRequest { command: command.collect(), ..ExecRequest::default() };
    let what = || format!("the load {:?} in the guest", words.join(" "));
    let collected = agent.exec(&request).with_context(|| format!("cannot run {}", what()))?;
    result(&collected).with_context(|| format!("{} failed", what()))
}

fn result<T: DeserializeOwned>(collected: &Collected) -> Result<T> {
    if collected.report.exit != Exit::Code(0) {
        bail!("it {}: {}", collected.report.exit, shown(&collected.stderr));
    }
    if collected.truncated {
        bail!("its answer was too long for the agent");
    }
    serde_json::from_str(&collected.stdout)
        .map_err(|error| anyhow!("its answer is not valid ({error}): {}", shown(&collected.stdout)))
}

fn shown(text: &str) -> String {
    text.trim().chars().take(SHOWN_CHARS).collect()
}

fn elapsed_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Cheap, and never zero if it did not start so (xorshift64).
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn seconds(nanos: u64) -> f64 {
    // A clock that did not move would make the rate infinite, which no report takes.
    as_f64(nanos) / 1e9
}

/// Nanoseconds as milliseconds.
pub fn milliseconds(nanos: u64) -> f64 {
    as_f64(nanos) / 1e6
}

/// A size or a time.
#[expect(clippy::cast_precision_loss, reason = "sizes and times are far below 2^52")]
pub fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rotifer_agent::exec::Report;

    fn collected(exit: Exit, stdout: &str, stderr: &str) -> Collected {
        Collected {
            report: Report { exit, timed_out: false },
            stdout: stdout.into(),
            stderr: stderr.into(),
            truncated: false,
            duration_ns: 1,
        }
    }

    #[test]
    fn an_answer_survives_the_way_from_the_guest() {
        let transfer = Transfer { bytes: 4096, requests: 1, elapsed_ns: 500 };
        let text = serde_json::to_string(&transfer).unwrap() + "\n";
        let read: Transfer = result(&collected(Exit::Code(0), &text, "")).unwrap();
        assert_eq!(read, transfer);
    }

    #[test]
    fn a_load_that_fails_is_reported_with_its_message() {
        let failed = collected(Exit::Code(1), "", "error: no such disk\n");
        let error = result::<Transfer>(&failed).unwrap_err().to_string();
        assert!(error.contains("status 1") && error.contains("no such disk"), "{error}");
        let killed = collected(Exit::Signal(9), "", "");
        assert!(result::<Transfer>(&killed).unwrap_err().to_string().contains("signal 9"));
    }

    #[test]
    fn an_answer_of_another_shape_is_refused_and_shown() {
        for text in ["", "{}", r#"{"bytes": 1, "requests": 1, "elapsed_ns": -1}"#, "[1]"] {
            assert!(result::<Transfer>(&collected(Exit::Code(0), text, "")).is_err(), "{text}");
        }
        let error = result::<Latencies>(&collected(Exit::Code(0), "Segfault", "")).unwrap_err();
        assert!(error.to_string().contains("Segfault"), "{error}");
        let truncated = Collected { truncated: true, ..collected(Exit::Code(0), "{", "") };
        assert!(result::<Latencies>(&truncated).is_err());
    }

    #[test]
    fn rates_are_per_second() {
        let transfer = Transfer { bytes: 64 << 20, requests: 512, elapsed_ns: 500_000_000 };
        assert_eq!((transfer.mib_per_s(), transfer.requests_per_s()), (128.0, 1024.0));
    }
}
