//! Where things are: the checkout, and the cache that all checkouts of a user share.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The two directories everything else is in.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The checkout.
    pub root: PathBuf,
    /// Downloads and build results.
    pub cache: PathBuf,
}

impl Paths {
    /// From `ROTIFER_ROOT`, `ROTIFER_CACHE`, and their defaults.
    pub fn find() -> Result<Self> {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
        let root = env::var_os("ROTIFER_ROOT").map(PathBuf::from).or(built_in);
        let root = root.context("cannot tell where the checkout is: set ROTIFER_ROOT")?;
        let root = root.canonicalize().with_context(|| format!("no checkout at {root:?}"))?;
        let cache = env::var_os("ROTIFER_CACHE")
            .map(PathBuf::from)
            .or_else(|| env::var_os("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("rotifer")))
            .or_else(|| env::var_os("HOME").map(|dir| Path::new(&dir).join(".cache/rotifer")))
            .context("cannot tell where to cache: set HOME or ROTIFER_CACHE")?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {cache:?}"))?;
        let cache = cache.canonicalize().with_context(|| format!("cannot use {cache:?}"))?;
        Ok(Self { root, cache })
    }

    /// A command that unpacks Debian packages, with its first arguments.
    pub fn debs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.root.join("xtask/debs"));
        command.args(arguments).env("ROTIFER_CACHE", &self.cache);
        command
    }

    /// Cargo, with the toolchain that `./x` unpacked unless another one was asked for.
    pub fn cargo(&self) -> Command {
        let own = self.cache.join("rust/bin");
        let system = env::var_os("ROTIFER_RUST").is_some_and(|value| value == "system");
        let mut command = if system || !own.join("cargo").exists() {
            Command::new("cargo")
        } else {
            let path = env::var_os("PATH").unwrap_or_default();
            let paths = std::iter::once(own.clone()).chain(env::split_paths(&path));
            let mut command = Command::new(own.join("cargo"));
            command.env("PATH", env::join_paths(paths).unwrap_or(path));
            command
        };
        command.current_dir(&self.root).env("ROTIFER_CACHE", &self.cache);
        command.env("ROTIFER_ROOT", &self.root);
        command
    }
}

/// The first half of the SHA-256 of some bytes, in hexadecimal: a name for what they are.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
