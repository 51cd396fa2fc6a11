//! `./x image` and `./x kernel`: what guests are made of, in `target/artifacts`.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    archive::{Archive, DIRECTORY, PROGRAM, write_whole},
    cargo, debian, disk,
    paths::{Paths, digest},
    python,
    step::{output_of, run, step},
};

/// The files that tests, benchmarks, examples and the demonstration start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Artifact {
    /// `rotifer-vmm`, the VMM.
    Vmm,
    /// `rotifer-network`, the host's side of networks.
    Network,
    /// `Image`, the guest kernel.
    Kernel,
    /// `initramfs.cpio`, the agent.
    Initramfs,
    /// `debian.ext4`, a root disk with a web app.
    Debian,
    /// What image builds need: `rotifer-build-worker`, `build-store` with a base image, `network.json`.
    Build,
    /// `rotifer`, the daemon.
    Rotifer,
}

/// The base image of image builds, and what it has beyond every Debian.
const BASE: &str = "python:3.11";
const BASE_PACKAGES: &str = "python3,python3-pip";
/// What the base image is made by.
const BASE_RECIPE: &str = "control/build/src/base/debian.rs";

/// What every test starts from.
pub const ALL: [Artifact; 4] =
    [Artifact::Debian, Artifact::Initramfs, Artifact::Vmm, Artifact::Kernel];

/// The directory of the artifacts.
pub fn directory(paths: &Paths) -> PathBuf {
    paths.root.join("target/artifacts")
}

/// Makes the artifacts that are missing or outdated.
pub fn make(paths: &Paths, wanted: &[Artifact]) -> Result<()> {
    let artifacts = directory(paths);
    fs::create_dir_all(&artifacts).with_context(|| format!("cannot create {artifacts:?}"))?;
    for artifact in wanted {
        match artifact {
            Artifact::Kernel => cargo::publish(&kernel(paths)?, &artifacts.join("Image"))?,
            Artifact::Vmm => {
                let built = cargo::build(paths, "rotifer-vmm", "rotifer-vmm")?;
                cargo::publish(&built, &artifacts.join("rotifer-vmm"))?;
            }
            Artifact::Network => {
                let built = cargo::build(paths, "rotifer-network", "rotifer-network")?;
                cargo::publish(&built, &artifacts.join("rotifer-network"))?;
            }
            Artifact::Initramfs => initramfs(paths, &artifacts.join("initramfs.cpio"))?,
            Artifact::Debian => debian::make(paths, &artifacts.join("debian.ext4"))?,
            Artifact::Build => build_inputs(paths, &artifacts)?,
            Artifact::Rotifer => {
                // A profile of its own: a panic in a request must not end the daemon.
                let built = cargo::build_as(paths, "daemon", "rotifer-control", "rotifer")?;
                cargo::publish(&built, &artifacts.join("rotifer"))?;
            }
        }
    }
    Ok(())
}

/// Builds the guest kernel, or finds it in the cache; the result is its path.
pub fn kernel(paths: &Paths) -> Result<PathBuf> {
    let mut build = Command::new(paths.root.join("kernel-config/build.sh"));
    build.env("ROTIFER_CACHE", &paths.cache);
    let printed = output_of(&mut build)?;
    Ok(PathBuf::from(printed.trim()))
}

/// The worker, a base image from Debian's packages, and this machine's mirrors and certificates, which
/// the emulated host does not see otherwise.
fn build_inputs(paths: &Paths, artifacts: &Path) -> Result<()> {
    let worker = cargo::build(paths, "rotifer-build-worker", "rotifer-build-worker")?;
    cargo::publish(&worker, &artifacts.join("rotifer-build-worker"))?;
    let builder = |arguments: &[&str]| {
        let mut cargo = paths.cargo();
        cargo.args([
            "run",
            "--quiet",
            "--package",
            "rotifer-build",
            "--bin",
            "rotifer-build",
            "--",
        ]);
        cargo.args(arguments);
        cargo
    };
    // A pip there is in any case, which says where it gets packages.
    let programs = python::environment(paths)?.join("bin").into_os_string();
    let path = [programs, std::env::var_os("PATH").unwrap_or_default()].join(OsStr::new(":"));
    let network = output_of(builder(&["network"]).env("PATH", path))?;
    write_whole(&artifacts.join("network.json"), network.as_bytes())?;
    let store = artifacts.join("build-store");
    let recipe = paths.root.join(BASE_RECIPE);
    let mut inputs = fs::read(&recipe).with_context(|| format!("cannot read {recipe:?}"))?;
    inputs.extend(BASE_PACKAGES.bytes());
    let (identity, mark) = (digest(&inputs), store.join("identity"));
    if fs::read_to_string(&mark).is_ok_and(|known| known == identity) {
        return Ok(());
    }
    disk::require(&paths.root, disk::UNPACK_BYTES)?;
    let mut add = builder(&["base", "add", "--packages", BASE_PACKAGES, BASE, "--store"]);
    step("making a base image from Debian's packages", || run(add.arg(&store)))?;
    write_whole(&mark, identity.as_bytes())
}

/// The agent and nothing else: the console must be there before it can mount anything.
fn initramfs(paths: &Paths, to: &Path) -> Result<()> {
    let built = cargo::build(paths, "rotifer-agent", "rotifer-agent")?;
    let agent = fs::read(&built).with_context(|| format!("cannot read {built:?}"))?;
    let mut archive = Archive::default();
    archive.add("dev", DIRECTORY, &[])?;
    archive.add_device("dev/console", 5, 1)?;
    archive.add("init", PROGRAM, &agent)?;
    let bytes = archive.into_bytes()?;
    if fs::read(to).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    write_whole(to, &bytes)
}
