//! What the test runners reported, added up.

use std::{
    fmt,
    io::{BufRead, BufReader, Write},
    iter::Sum,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

/// Tests that were run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Did what they claim.
    pub passed: u64,
    /// Did not.
    pub failed: u64,
    /// Were left out by an `#[ignore]`.
    pub ignored: u64,
}

impl Count {
    /// Of something that is one test.
    pub fn of(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), ignored: 0 }
    }

    /// Of something that could not even be tried.
    pub fn one_failure() -> Self {
        Self::of(false)
    }

    /// The numbers of a line as Rust's test runner ends with.
    fn parse(line: &str) -> Option<Self> {
        let numbers = line.trim().strip_prefix("test result: ")?;
        let number = |what: &str| {
            numbers
                .split([';', '.'])
                .find_map(|field| field.trim().strip_suffix(what)?.trim().parse().ok())
        };
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
            ignored: number("ignored").unwrap_or(0),
        })
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            passed: sum.passed + count.passed,
            failed: sum.failed + count.failed,
            ignored: sum.ignored + count.ignored,
        })
    }
}

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(out, ", {} ignored", self.ignored)?;
        }
        Ok(())
    }
}

/// Runs a test runner, shows what it prints, and counts. One that fails without saying how many
/// tests failed counts as one failure.
pub fn run_and_count(command: &mut Command) -> Result<Count> {
    show_and_count(command, &mut std::io::stdout())
}

fn show_and_count(command: &mut Command, screen: &mut impl Write) -> Result<Count> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let output = child.stdout.take().context("a piped output is missing")?;
    let mut counts = Vec::new();
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).with_context(|| format!("cannot read {program}"))? > 0
    {
        let _nobody_listens = screen.write_all(&line);
        counts.extend(Count::parse(&String::from_utf8_lossy(&line)));
        line.clear();
    }
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    let count: Count = counts.into_iter().sum();
    let is_silent_failure = !status.success() && count.failed == 0;
    Ok(if is_silent_failure { [count, Count::one_failure()].into_iter().sum() } else { count })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_line_is_understood() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s\n";
        assert_eq!(Count::parse(line), Some(Count { passed: 12, failed: 3, ignored: 1 }));
        let line = "test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Count::parse(line), Some(Count { passed: 7, failed: 0, ignored: 0 }));
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in ["", "running 3 tests", "test a ... ok", "test result: ?", "3 passed"] {
            assert_eq!(Count::parse(line), None, "{line}");
        }
    }

    fn shell(script: &str) -> Count {
        // Not shown: whoever counts the lines of these tests would count these, too.
        show_and_count(Command::new("sh").args(["-c", script]), &mut std::io::sink()).unwrap()
    }

    #[test]
    fn several_runners_add_up() {
        let line = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'";
        assert_eq!(shell(&format!("{line}; {line}")), Count { passed: 4, failed: 0, ignored: 0 });
    }

    #[test]
    fn a_runner_that_dies_without_a_result_is_a_failure() {
        assert_eq!(shell("kill -9 $$"), Count { passed: 0, failed: 1, ignored: 0 });
        let before = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 1";
        assert_eq!(shell(before), Count { passed: 2, failed: 1, ignored: 0 });
    }
}
