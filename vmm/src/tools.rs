//! `rotifer-vmm snapshot ...`: what is in a snapshot, whether it is intact, what two differ in, and
//! which packs nobody needs any more.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use rotifer_snapshot::{Inspection, PruneError, Snapshot, SourceError, diff, prune, verify};
use serde::Serialize;

use crate::config::report;
use crate::outcome::{FAILURE, WRONG_USAGE};
use crate::snapshots::{HostFile, HostFileError, Origin, OriginError};

/// What to do with which snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// What to do.
    pub task: Task,
    /// Whether the answer is JSON.
    pub json: bool,
}

/// What to do with which snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Show what is in it.
    Inspect(PathBuf),
    /// Read all of it.
    Verify(PathBuf),
    /// Compare the earlier one with the later one.
    Diff(PathBuf, PathBuf),
    /// Remove packs of these directories that no snapshot in them needs.
    Prune(Vec<PathBuf>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[expect(missing_docs, reason = "each is the error of the part it is named after")]
pub enum ToolError {
    HostFile(#[from] HostFileError),
    Open(#[from] OriginError),
    Read(#[from] SourceError),
    Prune(#[from] PruneError),
    #[error("write the answer")]
    Output(#[from] io::Error),
}

/// What `verify` found.
#[derive(Serialize)]
struct Verified {
    intact: bool,
    blocks: u64,
    pages: u64,
    stored_bytes: u64,
    fault_count: u64,
    faults: Vec<String>,
}

impl Tool {
    /// Does it, and prints the answer. The exit status is 1 if a snapshot is damaged, or two
    /// differ.
    pub fn run(&self) -> u8 {
        match self.answer() {
            Ok(status) => status,
            Err(error) => {
                eprintln!("rotifer-vmm: {}", report(&error));
                match error {
                    ToolError::HostFile(_) | ToolError::Open(_) => WRONG_USAGE,
                    ToolError::Read(_) | ToolError::Prune(_) | ToolError::Output(_) => FAILURE,
                }
            }
        }
    }

    fn answer(&self) -> Result<u8, ToolError> {
        match &self.task {
            Task::Inspect(path) => {
                let inspection = Inspection::of_snapshot(&open(path)?)?;
                self.print(&inspection, &inspection)?;
                Ok(0)
            }
            Task::Prune(directories) => self.prune(directories),
            Task::Verify(path) => self.verify(&open(path)?),
            Task::Diff(before, after) => {
                let difference = diff(&open(before)?, &open(after)?)?;
                self.print(&difference, &difference)?;
                Ok(if difference.is_empty() { 0 } else { FAILURE })
            }
        }
    }

    fn prune(&self, directories: &[PathBuf]) -> Result<u8, ToolError> {
        let pruned = prune(directories)?;
        let count = pruned.removed.len();
        let mut text = format!("{count} packs removed, {} bytes", pruned.removed_bytes);
        for path in &pruned.in_use {
            text.push_str(&format!("\n  in use: {}", path.display()));
        }
        self.print(&pruned, &text)?;
        Ok(0)
    }

    fn verify(&self, snapshot: &Snapshot) -> Result<u8, ToolError> {
        let shows_progress = io::stderr().is_terminal();
        let found = verify(snapshot, |progress| {
            if shows_progress {
                eprint!("\r{} of {} blocks", progress.done_blocks, progress.total_blocks);
            }
        });
        if shows_progress {
            eprintln!();
        }
        let verified = Verified {
            intact: found.is_intact(),
            blocks: found.blocks,
            pages: found.pages,
            stored_bytes: found.stored_bytes,
            fault_count: found.fault_count,
            faults: found.faults.iter().map(|fault| report(fault)).collect(),
        };
        let verdict = if verified.intact { "intact" } else { "damaged" };
        let mut text = format!("{verdict}: {} blocks, {} pages", verified.blocks, verified.pages);
        for fault in &verified.faults {
            text.push_str(&format!("\n  {fault}"));
        }
        self.print(&verified, &text)?;
        Ok(if verified.intact { 0 } else { FAILURE })
    }

    fn print(
        &self,
        value: &impl Serialize,
        text: &impl std::fmt::Display,
    ) -> Result<(), ToolError> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            let text = text.to_string();
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Opens a snapshot with its packs, wherever the host has them.
fn open(path: &Path) -> Result<Snapshot, ToolError> {
    let host = HostFile::beside(path)?.unwrap_or_default();
    Ok(Origin::open(path, None, &host)?.snapshot)
}
