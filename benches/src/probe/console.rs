//! What a VMM prints: the guest's serial console, and with some its log.

use std::fmt::Display;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, anyhow, bail};

use crate::guest::MARK;
use crate::vm::Process;

/// The reading end of the VMM's standard output.
pub struct Console {
    pipe: PipeReader,
    /// What it said; marks are left out.
    said: Vec<u8>,
}

/// How much of it an error shows.
const SHOWN_BYTES: usize = 2000;

impl Console {
    /// A new one, and what the VMM is to write to.
    ///
    /// # Errors
    /// The host refuses.
    pub fn new() -> Result<(Self, PipeWriter)> {
        let (pipe, writer) = std::io::pipe().context("cannot make a pipe for the console")?;
        Ok((Self { pipe, said: Vec::new() }, writer))
    }

    /// Waits for the guest's mark.
    ///
    /// # Errors
    /// The VMM ends or the deadline passes first.
    pub fn wait_for_mark(&mut self, process: &Process) -> Result<()> {
        loop {
            process
                .wait_for(&self.pipe, "the guest said something")
                .map_err(|error| self.explain(process, &error))?;
            if self.read_mark(process)? {
                return Ok(());
            }
        }
    }

    /// Reads what is there; whether a mark is in it.
    ///
    /// # Errors
    /// The VMM ended.
    pub fn read_mark(&mut self, process: &Process) -> Result<bool> {
        let mut piece = [0; 1024];
        let count = self.pipe.read(&mut piece).context("cannot read the console")?;
        if count == 0 {
            bail!(self.explain(process, &"the VMM ended"));
        }
        let piece = piece.get(..count).unwrap_or_default();
        self.said.extend(piece.iter().filter(|byte| **byte != MARK));
        self.said.drain(..self.said.len().saturating_sub(SHOWN_BYTES));
        Ok(piece.contains(&MARK))
    }

    /// An error with what was printed.
    pub fn explain(&self, process: &Process, error: &dyn Display) -> anyhow::Error {
        let said = String::from_utf8_lossy(&self.said);
        anyhow!("{:#}\nits console:\n{}", process.explain(error), said.trim_end())
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A process that prints what `script` does.
    fn started(script: &str) -> (Process, Console) {
        let directory = tempfile::tempdir().unwrap();
        let (console, writer) = Console::new().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let process = Process::start_with_output(command, directory.path(), writer.into()).unwrap();
        (process, console)
    }

    #[test]
    fn a_mark_is_found_among_the_lines_of_a_log() {
        let (process, mut console) = started("echo starting; printf '\\026'; exec sleep 1000");
        console.wait_for_mark(&process).unwrap();
        assert_eq!(console.said, b"starting\n");
    }

    #[test]
    fn a_machine_that_ends_without_a_mark_is_reported_with_what_it_said() {
        let (process, mut console) = started("echo 'no init'; exit 1");
        let error = format!("{:#}", console.wait_for_mark(&process).unwrap_err());
        assert!(error.contains("no init"), "{error}");
    }
}
