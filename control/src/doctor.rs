//! `rotifer doctor`: whether this host can run microVMs, what would make them slow, and the remedy of each.

mod daemon;
mod host;

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The daemon's directory, which need not exist.
    pub state: PathBuf,
    /// The daemon's settings.
    pub config: Option<PathBuf>,
    /// Whether to print a JSON document for each finding.
    pub json: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What there is.
    pub text: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// MicroVMs run, and something would be better otherwise.
    Warning,
    /// MicroVMs do not run.
    Error,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, text: text.into(), remedy: None }
    }

    fn warning(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (text, remedy) = (text.into(), Some(remedy.into()));
        Self { check, level: Level::Warning, text, remedy }
    }

    fn error(check: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, ..Self::warning(check, text, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "ERROR",
        };
        write!(formatter, "{level:8} {:14} {}", self.check, self.text)?;
        match &self.remedy {
            Some(remedy) => write!(formatter, "\n{:23} remedy: {remedy}", ""),
            None => Ok(()),
        }
    }
}

/// Looks at everything and prints what is found. The exit status is 1 if microVMs cannot run.
pub fn run(wish: &Wish) -> Result<ExitCode, std::io::Error> {
    let findings = findings(wish);
    let mut output = std::io::stdout().lock();
    for finding in &findings {
        if wish.json {
            writeln!(output, "{}", serde_json::json!(finding))?;
        } else {
            writeln!(output, "{finding}")?;
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    if !wish.json {
        let verdict = if errors == 0 { "can" } else { "cannot" };
        writeln!(
            output,
            "\nThis host {verdict} run microVMs: {errors} errors, {warnings} warnings."
        )?;
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All findings, the host's first.
pub fn findings(wish: &Wish) -> Vec<Finding> {
    let mut findings = vec![
        host::architecture(),
        host::kvm(),
        host::userfaultfd(),
        host::huge_pages(),
        host::memory(),
        host::clock(),
        host::networks(),
    ];
    findings.extend(daemon::settings(wish.config.as_deref()));
    findings.extend(daemon::state(&wish.state));
    findings
}
