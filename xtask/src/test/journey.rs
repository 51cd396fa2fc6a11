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

const SCRIPT: &str = "tests/journey/journey.py";
/// What the daemon and its builds need besides what every test does.
const ARTIFACTS: [Artifact; 2] = [Artifact::Build, Artifact::Rotifer];

/// Runs the script, which tells what it has seen.
pub fn run(paths: &Paths, arguments: &TestArguments) -> Result<Count> {
    image::make(paths, &image::ALL)?;
    image::make(paths, &ARTIFACTS)?;
    let xtask = std::env::current_exe().context("cannot tell which program this is")?;
    let variant = arguments.host.unwrap_or(Variant::Gicv3);
    let mut script = Command::new(python::environment(paths)?.join("bin/python"));
    script.arg(paths.root.join(SCRIPT)).current_dir(&paths.root);
    script.env("ROTIFER_ROOT", &paths.root).env("ROTIFER_CACHE", &paths.cache);
    script.env("ROTIFER_ARTIFACTS", image::directory(paths)).env("ROTIFER_X", xtask);
    script.env("ROTIFER_HOST_VARIANT", variant.name()).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(match run_step(&mut script) {
        Ok(()) => Count::of(true),
        Err(error) => {
            say(&format!("{error:#}"));
            Count::of(false)
        }
    })
}
