//! Benchmarks of a VMM with Firecracker's interface, alone or pairwise against another one.
//!
//! `docs/performance.md` says how to run them and what their figures mean. This one binary is on
//! both sides: on the host it starts microVMs and measures them, and inside the guest, where it
//! uploads itself through the agent, it makes the load (`guest ...`), so that a guest needs nothing
//! of a distribution.

mod api;
mod artifacts;
mod bench;
mod block;
mod boot;
mod cli;
mod clone;
mod control;
mod fault;
mod fork;
mod guest;
mod host;
mod idle;
mod memory;
mod net;
mod networks;
mod plot;
mod probe;
mod process;
mod record;
mod report;
mod resume;
mod stats;
mod suspend;
mod vm;
mod vsock;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::bench::Setup;
use crate::cli::{Arguments, Command};
use crate::host::Host;
use crate::report::Report;

fn main() -> ExitCode {
    let result = match Arguments::command() {
        Command::Guest(load) => guest::run(&load),
        Command::List => {
            print!("{}", bench::list());
            Ok(())
        }
        Command::Measure(arguments) => measure(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let benchmark = bench::find(arguments.name())?;
    let host = Host::find();
    let setup = Setup::new(arguments, &host)?;
    let series = (benchmark.run)(&setup)
        .with_context(|| format!("the benchmark {} did not finish", benchmark.name))?;
    let report = Report::new(benchmark.name, host, &series.into_series())?;
    print!("{}", report.table());
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    if let Some(path) = &arguments.svg {
        plot::write(&report, path)?;
    }
    Ok(())
}
