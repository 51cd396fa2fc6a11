//! What a builder is told by whoever runs the host: one JSON file.

use crate::base::pull::is_registry;
use crate::network::Network;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file. Paths in it are relative to its directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The VMM's program.
    pub vmm: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// A root disk with `sh`, `mount` and `mke2fs`, from which build machines start. They only read it.
    pub builder_disk: PathBuf,
    /// `rotifer-build-worker`, for ARM64.
    pub worker: PathBuf,
    /// Where base images, results of steps and caches are kept.
    pub store: PathBuf,
    /// How much the results of steps may take, in bytes on the disk.
    #[serde(default = "default_cache_bytes")]
    pub cache_bytes: u64,
    /// How much base images may take on the disk, in bytes, for a build to pull another one.
    #[serde(default = "default_base_bytes")]
    pub base_bytes: u64,
    /// The size of the root disk, in bytes. It is sparse.
    #[serde(default = "default_disk_bytes")]
    pub disk_bytes: u64,
    /// A build machine's processors.
    #[serde(default = "default_vcpu_count")]
    pub vcpu_count: u8,
    /// A build machine's memory, in MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u32,
    /// How long a step may be silent, in seconds.
    #[serde(default = "default_step_timeout_s")]
    pub step_timeout_s: u64,
    /// How long a build may take, in seconds.
    #[serde(default = "default_build_timeout_s")]
    pub build_timeout_s: u64,
    /// Names of base images that stand for others.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// Registries from which builds pull base images that are not in the store.
    #[serde(default)]
    pub registries: Vec<String>,
    /// What `RUN` can reach. Nothing if absent.
    #[serde(default)]
    pub network: Option<Network>,
    /// A file that holds [`Settings::network`] in its place.
    #[serde(default)]
    pub network_file: Option<PathBuf>,
}

fn default_cache_bytes() -> u64 {
    20 << 30
}

fn default_base_bytes() -> u64 {
    100 << 30
}

fn default_disk_bytes() -> u64 {
    8 << 30
}

fn default_vcpu_count() -> u8 {
    2
}

fn default_memory_mib() -> u32 {
    2048
}

fn default_step_timeout_s() -> u64 {
    30 * 60
}

fn default_build_timeout_s() -> u64 {
    2 * 60 * 60
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Two settings exclude each other.
    #[error("{}: {reason}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not there or not valid.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let mut settings: Settings = read_json(path)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let wrong =
            |reason: &str| SettingsError::Wrong { path: path.into(), reason: reason.into() };
        let paths = [
            &mut settings.vmm,
            &mut settings.kernel,
            &mut settings.initramfs,
            &mut settings.builder_disk,
            &mut settings.worker,
            &mut settings.store,
        ];
        for relative in paths {
            *relative = directory.join(&relative);
        }
        if let Some(file) = &settings.network_file {
            if settings.network.is_some() {
                return Err(wrong("network and network_file exclude each other"));
            }
            settings.network = Some(read_json(&directory.join(file))?);
        }
        if settings.disk_bytes < 16 << 20 || settings.disk_bytes > 32 << 30 {
            return Err(wrong("disk_bytes has to be between 16 MiB and 32 GiB"));
        }
        if !settings.disk_bytes.is_multiple_of(4096) {
            return Err(wrong("disk_bytes has to be a multiple of 4096"));
        }
        if let Some(name) = settings.registries.iter().find(|name| !is_registry(name)) {
            return Err(wrong(&format!(
                "registries: {name:?} is no name of a registry, like docker.io or registry.example:5000"
            )));
        }
        Ok(settings)
    }

    /// How long a step may be silent.
    #[must_use]
    pub fn step_timeout(&self) -> Duration {
        Duration::from_secs(self.step_timeout_s)
    }

    /// How long a build may take.
    #[must_use]
    pub fn build_timeout(&self) -> Duration {
        Duration::from_secs(self.build_timeout_s)
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, SettingsError> {
    let text = fs::read_to_string(path)
        .map_err(|source| SettingsError::Read { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|source| SettingsError::Parse { path: path.into(), source })
}
