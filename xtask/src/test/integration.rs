//! Tests that need KVM: built for ARM64, run on the hosts they ask for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    TestArguments,
    cases::{Route, name_of},
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

/// The parts that need more than every test does.
const IMAGE_BUILDS: &str = "build";
const NETWORKS: &str = "network";

/// Runs one file of `tests/tests/`.
pub fn run(
    paths: &Paths,
    name: &str,
    routes: &[Route],
    arguments: &TestArguments,
) -> Result<Count> {
    image::make(paths, &image::ALL)?;
    match name {
        IMAGE_BUILDS => image::make(paths, &[image::Artifact::Build])?,
        NETWORKS => image::make(paths, &[image::Artifact::Network])?,
        _ => {}
    }
    let build = ["--package", "rotifer-tests", "--test", name];
    let programs = build_tests(paths, name, &build)?;
    // An ARM64 machine is the one host it has.
    let only = if native::is_arm64() { Some(Variant::Gicv3) } else { arguments.host };
    let mut counts = Vec::new();
    for route in reduced(routes, only) {
        counts.push(match route[..] {
            [host] => run_on(paths, host, &programs, arguments.filter.as_deref(), None)?,
            _ => travel(paths, name, &route, &programs)?,
        });
    }
    Ok(counts.into_iter().sum())
}

/// The routes if there is no other host than `only`, each of them once.
fn reduced(routes: &[Route], only: Option<Variant>) -> Vec<Route> {
    let Some(only) = only else { return routes.to_vec() };
    let mut reduced: Vec<Route> = routes.iter().map(|route| vec![only; route.len()]).collect();
    reduced.dedup();
    reduced
}

/// Runs the tests of each stop, which are in its module, on its host. What they leave to those that
/// follow is in a directory of the checkout, which all hosts see.
fn travel(paths: &Paths, name: &str, route: &[Variant], programs: &[PathBuf]) -> Result<Count> {
    let luggage = paths.root.join("target/routes").join(name);
    say(&format!("the route {}", name_of(route)));
    let mut counts = Vec::new();
    empty(&luggage)?;
    for (index, host) in route.iter().enumerate() {
        let stop = format!("stop_{}::", index + 1);
        let count = run_on(paths, *host, programs, Some(&stop), Some(&luggage))?;
        counts.push(count);
        if count.failed > 0 || count.passed == 0 {
            bail!("{} did not get beyond its stop on {}", name_of(route), host.name());
        }
    }
    empty(&luggage)?;
    Ok(counts.into_iter().sum())
}

fn empty(directory: &Path) -> Result<()> {
    let _not_there_at_first = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).with_context(|| format!("cannot create {directory:?}"))
}

/// Runs the VMM's unit tests on a host: much of it does not exist on other machines.
pub fn unit(paths: &Paths, arguments: &TestArguments) -> Result<Count> {
    let build = ["--package", "rotifer-vmm", "--lib"];
    let programs = build_tests(paths, "rotifer-vmm", &build)?;
    let host = arguments.host.unwrap_or(Variant::Gicv3);
    run_on(paths, host, &programs, arguments.filter.as_deref(), None)
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
    filter: Option<&str>,
    luggage: Option<&Path>,
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
        runner.arg(program).arg("--test-threads=1").args(filter);
        if let Some(luggage) = luggage {
            runner.env("ROTIFER_ROUTE", luggage);
        }
        counts.push(run_and_count(&mut runner)?);
    }
    Ok(counts.into_iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_one_host_every_stop_is_there() {
        use Variant::{Gicv3, Pages16k, Sve};
        let routes = [vec![Gicv3, Pages16k], vec![Pages16k, Gicv3]];
        assert_eq!(reduced(&routes, None), routes);
        assert_eq!(reduced(&routes, Some(Sve)), [vec![Sve, Sve]]);
        assert_eq!(reduced(&[vec![Gicv3], vec![Sve]], Some(Sve)), [vec![Sve]]);
    }

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
