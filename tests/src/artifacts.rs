//! What `./x` has built for guests.

use std::env;
use std::path::{Path, PathBuf};

/// Where things are.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// The VMM's binary.
    pub vmm: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// An initramfs that holds the agent.
    pub initramfs: PathBuf,
    /// A Debian root disk with a web app.
    pub debian: PathBuf,
}

impl Artifacts {
    /// From `ROTIFER_ARTIFACTS`, by default `target/artifacts` of the checkout.
    ///
    /// # Panics
    /// If something is missing: there is nothing to test then.
    pub fn find() -> Self {
        Self {
            vmm: file("rotifer-vmm"),
            kernel: file("Image"),
            initramfs: file("initramfs.cpio"),
            debian: file("debian.ext4"),
        }
    }

    /// The program for networks.
    ///
    /// # Panics
    /// If it is missing.
    pub fn network_program() -> PathBuf {
        file("rotifer-network")
    }
}

fn file(name: &str) -> PathBuf {
    let directory = env::var_os("ROTIFER_ARTIFACTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/artifacts"),
        PathBuf::from,
    );
    let path = directory.join(name);
    assert!(path.exists(), "{} is missing: ./x test makes it", path.display());
    path
}
