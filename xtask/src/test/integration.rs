//! Tests that need KVM: built for ARM64, run on the hosts they ask for.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    TestArguments,
    count::{Count, run_and_count},
};
use crate::{
    cargo::TARGET,
    host::variant::Variant,
    image, native,
    paths::Paths,
    step::{output_of, say, step},
};

/// A part that takes longer hangs. The whole of the tests has an hour.
const PART_TIMEOUT_S: u64 = 1500;

/// Runs one file of `tests/tests/`.
pub fn run(
    paths: &Paths,
    name: &str,
    hosts: &[Variant],
    arguments: &TestArguments,
) -> Result<Count> {
    image::make(paths, &image::ALL)?;
    let build = ["--package", "rotifer-tests", "--test", name];
    let programs = build_tests(paths, name, &build)?;
    let only = arguments.host.map(|host| vec![host]);
    // An ARM64 machine is the one host it has.
    let here = [Variant::Gicv3];
    let hosts = if native::is_arm64() { &here } else { only.as_deref().unwrap_or(hosts) };
    let mut counts = Vec::new();
    for host in hosts {
        counts.push(run_on(paths, *host, &programs, arguments)?);
    }
    Ok(counts.into_iter().sum())
}

/// Runs the VMM's unit tests on a host: much of it does not exist on other machines.
pub fn unit(paths: &Paths, arguments: &TestArguments) -> Result<Count> {
    let build = ["--package", "rotifer-vmm", "--lib", "--bins"];
    let programs = build_tests(paths, "rotifer-vmm", &build)?;
    run_on(paths, arguments.host.unwrap_or(Variant::Gicv3), &programs, arguments)
}

fn build_tests(paths: &Paths, name: &str, selection: &[&str]) -> Result<Vec<PathBuf>> {
    let mut cargo = paths.cargo();
    cargo.args(["test", "--quiet", "--no-run", "--target", TARGET, "--message-format", "json"]);
    cargo.args(selection);
    let messages = step(&format!("building the tests of {name}"), || output_of(&mut cargo))?;
    let programs = executables(&messages);
    if programs.is_empty() {
        bail!("cargo built no test program for {name}");
    }
    Ok(programs)
}

/// The test programs that cargo says it built.
fn executables(messages: &str) -> Vec<PathBuf> {
    let values = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

fn run_on(
    paths: &Paths,
    host: Variant,
    programs: &[PathBuf],
    arguments: &TestArguments,
) -> Result<Count> {
    let mut counts = Vec::new();
    let xtask = std::env::current_exe().context("cannot tell which program this is")?;
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        say(&format!("running {name} on a {} host", host.name()));
        let mut runner = Command::new(&xtask);
        runner.current_dir(&paths.root).env("ROTIFER_ROOT", &paths.root);
        runner.env("ROTIFER_CACHE", &paths.cache);
        runner.env("ROTIFER_ARTIFACTS", image::directory(paths));
        runner.args(["runner", "--variant", host.name()]);
        runner.args(["--timeout", &PART_TIMEOUT_S.to_string()]);
        // Machines that boot at the same time slow each other down on an emulated host.
        runner.arg(program).arg("--test-threads=1").args(arguments.filter.as_deref());
        counts.push(run_and_count(&mut runner)?);
    }
    Ok(counts.into_iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_run() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/bin/helper"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/bin/test"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":null}"#,
            "\nno json\n",
        );
        assert_eq!(executables(messages), [PathBuf::from("/bin/test")]);
    }
}
