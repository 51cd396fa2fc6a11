//! Building the project's own programs for ARM64.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    archive::write_whole,
    paths::Paths,
    step::{run, step},
};

/// Everything that runs on a host or in a guest is built for this.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Builds one package's program with optimisations; the result is its path.
pub fn build(paths: &Paths, package: &str, program: &str) -> Result<PathBuf> {
    build_as(paths, "release", package, program)
}

/// The same with one of the workspace's profiles.
pub fn build_as(paths: &Paths, profile: &str, package: &str, program: &str) -> Result<PathBuf> {
    let mut cargo = paths.cargo();
    cargo.args(["build", "--quiet", "--profile", profile, "--target", TARGET]);
    cargo.args(["--package", package, "--bin", program]);
    step(&format!("building {program}"), || run(&mut cargo))?;
    Ok(target_directory(paths).join(TARGET).join(profile).join(program))
}

/// Where cargo puts what it builds.
pub fn target_directory(paths: &Paths) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => paths.root.join(directory),
        None => paths.root.join("target"),
    }
}

/// Brings `to` to the content of `from`; one that is the same is not touched, so that who has seen
/// it need not look again.
pub fn publish(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {from:?}"))?;
    if fs::read(to).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    write_whole(to, &bytes)?;
    let permissions = fs::metadata(from).with_context(|| format!("cannot read {from:?}"))?;
    fs::set_permissions(to, permissions.permissions())
        .with_context(|| format!("cannot set the mode of {to:?}"))
}
