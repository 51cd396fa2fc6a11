//! The restore of a guest with a web app, until that answers.

use anyhow::Result;

use crate::bench::{Setup, Subject};
use crate::probe::mapping::Figures;
use crate::probe::{Kind, Options, Probe, Snapshot};

/// A snapshot of such a guest.
///
/// # Errors
/// The machine failed.
pub fn snapshot(setup: &Setup, subject: &Subject) -> Result<Snapshot> {
    let mut probe = Probe::boot_web_app(setup, &subject.program)?;
    probe.pause()?;
    let snapshot = probe.create(setup, Kind::Full)?.0;
    drop(probe);
    snapshot.record(setup, subject, |probe| {
        probe.wait_for_agent()?;
        probe.visit().map(drop)
    })?;
    Ok(snapshot)
}

/// Restores it: the agent is asked first, then the app.
///
/// # Errors
/// The machine failed.
pub fn restore(
    setup: &Setup,
    subject: &Subject,
    snapshot: &Snapshot,
    options: &Options,
) -> Result<Figures> {
    let mut figures = Figures::default();
    let (probe, loaded) = snapshot.start_restore(setup, &subject.program, options)?.load()?;
    for (what, moment) in [
        ("process-to-loaded", loaded),
        ("process-to-agent-answer", probe.wait_for_agent()?),
        ("process-to-first-http-byte", probe.visit()?),
    ] {
        figures.add(format!("-web-app/{what}"), "ms", moment.as_secs_f64() * 1e3);
    }
    Ok(figures)
}
