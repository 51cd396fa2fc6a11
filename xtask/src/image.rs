//! `./x image` and `./x kernel`: what guests are made of, in `target/artifacts`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    archive::{Archive, DIRECTORY, PROGRAM},
    cargo, debian,
    paths::Paths,
    step::output_of,
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
}

/// All of them.
pub const ALL: [Artifact; 5] =
    [Artifact::Debian, Artifact::Initramfs, Artifact::Vmm, Artifact::Network, Artifact::Kernel];

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
    crate::archive::write_whole(to, &bytes)
}
