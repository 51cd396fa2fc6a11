//! Runs a command to its end and keeps a bounded part of its output.

use super::output::{Event, Output};
use super::{Report, Running};
use crate::limits::EXEC_OUTPUT_MAX_BYTES;
use crate::process::pipe::Pipe;
use crate::timeline::now_ns;
use serde::{Deserialize, Serialize};

const READ_BYTES: usize = 16 * 1024;

/// The end of a command, with what it wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// How it ended.
    #[serde(flatten)]
    pub report: Report,
    /// The beginning of standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// The beginning of standard error, likewise.
    pub stderr: String,
    /// Whether either of them went on.
    pub truncated: bool,
    /// From the start of the process to the end of its output.
    pub duration_ns: u64,
}

#[derive(Default)]
struct Captured {
    kept: Vec<u8>,
    truncated: bool,
}

/// Feeds `input`, collects output, waits.
pub async fn run(mut running: Running, input: Vec<u8>) -> Collected {
    let started_ns = now_ns();
    let (stdin, stdout, stderr) =
        (running.pipes.stdin.take(), running.pipes.stdout.take(), running.pipes.stderr.take());
    let ended = Event::default();
    let process = async {
        let report = running.ended().await;
        ended.set();
        report
    };
    let (report, stdout, stderr, ()) = tokio::join!(
        process,
        capture(stdout, &ended),
        capture(stderr, &ended),
        feed(stdin, &input, &ended),
    );
    Collected {
        report,
        truncated: stdout.truncated || stderr.truncated,
        stdout: stdout.text(),
        stderr: stderr.text(),
        duration_ns: now_ns().saturating_sub(started_ns),
    }
}

impl Captured {
    fn text(self) -> String {
        String::from_utf8(self.kept)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

/// Writes until the process has ended or reads no more; it need not read its input.
async fn feed(pipe: Option<Pipe>, mut input: &[u8], ended: &Event) {
    let Some(pipe) = pipe else { return };
    while !input.is_empty() {
        let written = tokio::select! {
            written = pipe.write(input) => written,
            () = ended.wait() => return,
        };
        let Ok(count) = written else { return };
        input = input.get(count..).unwrap_or_default();
    }
}

/// Reads to the end even when nothing more is kept: the process must not block on a full pipe.
async fn capture(pipe: Option<Pipe>, ended: &Event) -> Captured {
    let mut captured = Captured::default();
    let Some(pipe) = pipe else { return captured };
    let mut output = Output::new(&pipe, ended);
    let mut buffer = vec![0; READ_BYTES];
    while let Some(bytes) = output.next(&mut buffer).await {
        let room = EXEC_OUTPUT_MAX_BYTES - captured.kept.len();
        captured.kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        captured.truncated |= bytes.len() > room;
    }
    captured
}
