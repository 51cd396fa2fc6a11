//! The control plane from end to end: the daemon with real microVMs on an ARM64 host, AWS's own clients
//! on this machine, and a port between them.

use std::process::Command;

use anyhow::{Context, Result};

use super::{TestArguments, count::Count};
use crate::{
    host::variant::Variant,
    image::{self, Artifact},
    paths::Paths,
    python,
    step::{run as run_step, say},
};

/// Each is one test.
const SCRIPTS: [&str; 2] = ["journey.py", "guide.py"];
/// What the daemon and its builds need besides what every test does.
const ARTIFACTS: [Artifact; 2] = [Artifact::Build, Artifact::Rotifer];

/// Runs the scripts, which tell what they have seen.
pub fn run(paths: &Paths, arguments: &TestArguments) -> Result<Count> {
    let variant = arguments.host.unwrap_or(Variant::Gicv3);
    prepare(paths)?;
    let wanted = |name: &&str| arguments.filter.as_ref().is_none_or(|text| name.contains(text));
    let run_one = |name: &str| {
        let result = script(paths, variant, name).and_then(|mut script| run_step(&mut script));
        if let Err(error) = &result {
            say(&format!("{error:#}"));
        }
        Count::of(result.is_ok())
    };
    Ok(SCRIPTS.into_iter().filter(wanted).map(run_one).sum())
}

/// Makes what the scripts need on the host.
pub fn prepare(paths: &Paths) -> Result<()> {
    image::make(paths, &image::ALL)?;
    image::make(paths, &ARTIFACTS)
}

/// A script of `tests/journey`, with what it is told.
pub fn script(paths: &Paths, variant: Variant, name: &str) -> Result<Command> {
    let xtask = std::env::current_exe().context("cannot tell which program this is")?;
    let mut script = Command::new(python::environment(paths)?.join("bin/python"));
    script.arg(paths.root.join("tests/journey").join(name)).current_dir(&paths.root);
    script.env("ROTIFER_ROOT", &paths.root).env("ROTIFER_CACHE", &paths.cache);
    script.env("ROTIFER_ARTIFACTS", image::directory(paths)).env("ROTIFER_X", xtask);
    script.env("ROTIFER_HOST_VARIANT", variant.name()).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(script)
}
