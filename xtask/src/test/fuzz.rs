//! Every fuzz target, each for a bounded time.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::count::Count;
use crate::{
    paths::Paths,
    step::{output_of, run, say, step},
};

/// Enough to find what a change has just broken; a campaign asks for more.
pub const SECONDS: u64 = 20;
const MANIFEST: &str = "tests/fuzz/Cargo.toml";
/// More than this on one input is a finding.
const INPUT_TIMEOUT_S: u64 = 30;
const MEMORY_LIMIT_MIB: u64 = 2048;

/// Runs all targets; each counts as one test.
pub fn run_all(paths: &Paths, seconds: u64) -> Result<Count> {
    let tool = cargo_fuzz(paths)?;
    let targets = targets(paths)?;
    if targets.is_empty() {
        bail!("{MANIFEST} lists no fuzz target");
    }
    step("building the fuzz targets", || run(&mut command(paths, &tool, &["build"])))?;
    // Each is one thread that computes, so as many at a time as there are CPUs.
    let at_a_time = thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(targets.into_iter());
    let next = || queue.lock().ok()?.next();
    let worker = || std::iter::from_fn(next).map(|it| fuzz(paths, &tool, &it, seconds)).sum();
    let counts: Vec<thread::Result<Count>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join()).collect()
    });
    Ok(counts.into_iter().map(|count| count.unwrap_or_else(|_| Count::one_failure())).sum())
}

fn fuzz(paths: &Paths, tool: &Path, target: &str, seconds: u64) -> Count {
    say(&format!("fuzzing {target} for {seconds} s"));
    let mut fuzz = command(paths, tool, &["run"]);
    fuzz.args([target, "--", &format!("-max_total_time={seconds}")]);
    fuzz.arg(format!("-timeout={INPUT_TIMEOUT_S}"));
    fuzz.arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"));
    fuzz.args(["-print_final_stats=1", "-verbosity=0"]);
    let result = run(&mut fuzz);
    if let Err(error) = &result {
        say(&format!("{target}: {error:#}; the input is in tests/fuzz/artifacts/{target}"));
    }
    println!("fuzz {target} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
    Count::of(result.is_ok())
}

/// The fuzzer instruments with options that a stable compiler hides; Debian's has no sanitizers.
fn command(paths: &Paths, tool: &Path, verb: &[&str]) -> std::process::Command {
    let mut cargo = paths.cargo();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = vec![paths.cache.join("rust/bin")];
    directories.extend(tool.parent().map(Path::to_path_buf));
    directories.extend(std::env::split_paths(&path));
    cargo.env("PATH", std::env::join_paths(directories).unwrap_or(path));
    cargo.env("RUSTC_BOOTSTRAP", "1").arg("fuzz").args(verb);
    cargo.args(["--fuzz-dir", "tests/fuzz", "--sanitizer", "none"]);
    cargo
}

fn cargo_fuzz(paths: &Paths) -> Result<PathBuf> {
    let root = paths.cache.join("tools");
    let tool = root.join("bin/cargo-fuzz");
    if !tool.exists() {
        let mut cargo = paths.cargo();
        cargo.args(["install", "--quiet", "--locked", "cargo-fuzz", "--root"]).arg(&root);
        step("building cargo-fuzz", || run(&mut cargo))?;
    }
    Ok(tool)
}

fn targets(paths: &Paths) -> Result<Vec<String>> {
    let mut cargo = paths.cargo();
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path", MANIFEST]);
    let text = output_of(&mut cargo)?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata printed no JSON")?;
    Ok(programs(&metadata))
}

fn programs(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.flat_map(|package| package["targets"].as_array().into_iter().flatten());
    let programs = targets.filter(|target| target["kind"][0] == "bin");
    programs.filter_map(|target| target["name"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_binary_of_the_package_is_a_target() {
        let metadata = json!({ "packages": [{ "targets": [
            { "kind": ["lib"], "name": "helper" },
            { "kind": ["bin"], "name": "rings" },
            { "kind": ["bin"], "name": "api" },
        ] }] });
        assert_eq!(programs(&metadata), ["rings", "api"]);
    }
}
