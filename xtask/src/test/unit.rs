//! What needs no ARM64 host: formatting, clippy, unit tests.

use std::process::Command;

use anyhow::Result;

use super::{
    cases::CONTROL,
    count::{Count, run_and_count},
};
use crate::{cargo::TARGET, native, paths::Paths, python, step::run};

/// Tells the control plane's journeys where their clients are.
const PYTHON: &str = "ROTIFER_PYTHON";

/// Formatting of the workspace and of the fuzz targets, which are a workspace of their own.
pub fn format(paths: &Paths) -> Result<Count> {
    let check = |extra: &[&str]| {
        let mut cargo = paths.cargo();
        cargo.arg("fmt").args(extra).args(["--", "--check"]);
        cargo
    };
    let mut counts = vec![passes(&mut check(&["--all"]))];
    if paths.root.join("tests/fuzz/Cargo.toml").exists() {
        counts.push(passes(&mut check(&["--manifest-path", "tests/fuzz/Cargo.toml"])));
    }
    Ok(counts.into_iter().sum())
}

/// Warnings are errors, for this machine and for ARM64 if it is another.
pub fn clippy(paths: &Paths) -> Result<Count> {
    let mut counts = vec![passes(&mut clippy_command(paths, None))];
    if !native::is_arm64() {
        counts.push(passes(&mut clippy_command(paths, Some(TARGET))));
    }
    Ok(counts.into_iter().sum())
}

fn clippy_command(paths: &Paths, target: Option<&str>) -> Command {
    let mut cargo = paths.cargo();
    cargo.args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    if let Some(target) = target {
        // The control plane is the same code everywhere, and has most of the dependencies.
        cargo.args(["--target", target, "--exclude", CONTROL]);
    }
    cargo.args(["--", "-D", "warnings"]);
    cargo
}

/// Unit tests of all packages but the integration tests', which need a host.
pub fn all(paths: &Paths, filter: Option<&str>) -> Result<Count> {
    let mut workspace = paths.cargo();
    workspace.env(PYTHON, python::environment(paths)?);
    workspace.args([
        "test",
        "--quiet",
        "--workspace",
        "--exclude",
        "rotifer-tests",
        "--no-fail-fast",
    ]);
    let mut harness = paths.cargo();
    harness.args(["test", "--quiet", "--package", "rotifer-tests", "--lib"]);
    let mut counts = Vec::new();
    for cargo in [&mut workspace, &mut harness] {
        counts.push(run_and_count(cargo.args(filter))?);
    }
    Ok(counts.into_iter().sum())
}

/// Unit tests of one package.
pub fn package(paths: &Paths, package: &str, filter: Option<&str>) -> Result<Count> {
    let mut cargo = paths.cargo();
    if package == CONTROL {
        cargo.env(PYTHON, python::environment(paths)?);
    }
    cargo.args(["test", "--quiet", "--no-fail-fast", "--package", package]);
    run_and_count(cargo.args(filter))
}

fn passes(command: &mut Command) -> Count {
    match run(command) {
        Ok(()) => Count::of(true),
        Err(error) => {
            crate::step::say(&format!("{error:#}"));
            Count::of(false)
        }
    }
}
