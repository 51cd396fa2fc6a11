//! The cargo runner: runs a binary for ARM64 where it can run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    host::{self, client::Input, instance::Instance, variant::Variant},
    native,
    paths::{Paths, digest},
};

/// Runs `program` on the host of that variant, or here if this is an ARM64 machine.
pub fn main(
    paths: &Paths,
    variant: Variant,
    program: &Path,
    arguments: &[String],
    timeout: Option<Duration>,
) -> Result<i32> {
    let program =
        program.canonicalize().with_context(|| format!("no program to run at {program:?}"))?;
    if native::is_arm64() {
        let mut words = vec![program.to_string_lossy().into_owned()];
        words.extend(arguments.iter().cloned());
        return native::run(&words);
    }
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let staged = stage(paths, &program)?;
    let input = if host::client::terminal_size().is_some() { Input::Nothing } else { Input::Ours };
    let connection = Instance::new(paths, variant)?.connect()?;
    host::run_program(connection, &staged, &name, arguments, input, timeout)
}

/// A copy in the cache, which the host sees, named by what it is, without debug sections.
fn stage(paths: &Paths, program: &Path) -> Result<PathBuf> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {program:?}"))?;
    let directory = paths.cache.join("host/programs");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {directory:?}"))?;
    let staged = directory.join(digest(&bytes));
    if staged.exists() {
        return Ok(staged);
    }
    let partial = directory.join(format!("partial-{}", std::process::id()));
    let mut strip = Command::new("aarch64-linux-gnu-strip");
    strip.arg("--strip-debug").arg("-o").arg(&partial).arg(program);
    if !strip.output().is_ok_and(|output| output.status.success()) {
        fs::write(&partial, &bytes).with_context(|| format!("cannot write {partial:?}"))?;
    }
    fs::rename(&partial, &staged).with_context(|| format!("cannot name {staged:?}"))?;
    Ok(staged)
}
