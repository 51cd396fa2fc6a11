//! What this host provides to a machine that was saved: beside the manifest, in a file of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rotifer_snapshot::storage::Storage;
use serde::{Deserialize, Serialize};

use crate::config::{self, Config};

/// A configuration has at most this many bytes; so has what is written here.
const BYTES_MAX: u64 = 1 << 20;

/// Where this host keeps what a saved machine needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFile {
    /// The machine's configuration when it was saved, without what is only needed to boot. Paths
    /// are absolute.
    pub config: Config,
    /// Where the packs are, by name.
    pub packs: BTreeMap<String, PathBuf>,
}

/// Why a host file cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum HostFileError {
    #[error("{attempt} the host file {}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the host file {} is refused", path.display())]
    Content { path: PathBuf, source: config::Error },
    #[error("the host file {} has more than {BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
}

impl HostFile {
    /// That of a machine with this configuration.
    pub fn of(config: &Config, packs: BTreeMap<String, PathBuf>) -> Self {
        let mut config = Config { boot_source: None, logger: None, ..config.clone() };
        for drive in &mut config.drives {
            drive.path_on_host = drive.path_on_host.take().map(absolute);
            drive.overlay_path = drive.overlay_path.take().map(absolute);
        }
        if let Some(vsock) = &mut config.vsock {
            vsock.uds_path = absolute(std::mem::take(&mut vsock.uds_path));
        }
        if let Some(serial) = &mut config.serial {
            serial.serial_out_path = serial.serial_out_path.take().map(absolute);
        }
        Self { config, packs }
    }

    /// Reads the one beside this manifest; none if there is none.
    ///
    /// # Errors
    /// See [`HostFileError`].
    pub fn beside(manifest: &Path) -> Result<Option<Self>, HostFileError> {
        match Self::read(path_beside(manifest)) {
            Err(HostFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Reads this one.
    ///
    /// # Errors
    /// See [`HostFileError`].
    pub fn read(path: PathBuf) -> Result<Self, HostFileError> {
        let failed = |source| HostFileError::Io { attempt: "read", path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        // What it usually has, so that it is read at once.
        let mut bytes = Vec::with_capacity(4 << 10);
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(HostFileError::TooLarge { path });
        }
        config::decode(&bytes, "host").map_err(|source| HostFileError::Content { path, source })
    }

    /// Writes it beside a manifest, in place of what is there, so that a power cut leaves the one
    /// or the other.
    ///
    /// # Errors
    /// See [`HostFileError`].
    pub fn write(&self, storage: &dyn Storage, manifest: &Path) -> Result<(), HostFileError> {
        let path = path_beside(manifest);
        let temporary = with_suffix(manifest, ".host.json.new");
        let bytes = serde_json::to_vec_pretty(self).expect("paths that came as JSON are text");
        // What a process left that died here; usually there is nothing.
        let _ = storage.remove(&temporary);
        let written = storage.create(&temporary).and_then(|mut file| {
            file.append(&bytes)?;
            file.sync()
        });
        let result = written.and_then(|()| storage.rename(&temporary, &path));
        result.map_err(|source| {
            let _ = storage.remove(&temporary);
            HostFileError::Io { attempt: "write", path, source }
        })
    }
}

/// Where the host file of a manifest is.
pub(super) fn path_beside(manifest: &Path) -> PathBuf {
    with_suffix(manifest, ".host.json")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// As seen from everywhere.
pub(super) fn absolute(path: PathBuf) -> PathBuf {
    fs::canonicalize(&path).or_else(|_| std::path::absolute(&path)).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use rotifer_snapshot::HostStorage;

    use super::*;
    use crate::config::{BootSource, Vsock};

    #[test]
    fn what_was_written_is_read_back_with_absolute_paths() {
        let directory = tempfile::tempdir().unwrap();
        let manifest = directory.path().join("vm.snap");
        assert_eq!(HostFile::beside(&manifest).unwrap(), None);
        let vsock = Vsock { vsock_id: None, guest_cid: 3, uds_path: "v.sock".into() };
        let boot =
            BootSource { kernel_image_path: "Image".into(), initrd_path: None, boot_args: None };
        let config = Config { vsock: Some(vsock), boot_source: Some(boot), ..Config::default() };
        let packs = BTreeMap::from([("00".to_owned(), directory.path().join("pack"))]);
        HostFile::of(&config, packs.clone()).write(&HostStorage, &manifest).unwrap();
        let read = HostFile::beside(&manifest).unwrap().unwrap();
        assert_eq!(read.packs, packs);
        assert!(read.config.vsock.unwrap().uds_path.is_absolute());
        assert_eq!(read.config.boot_source, None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing temporary stays");
    }

    #[test]
    fn a_file_that_is_none_is_refused_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let manifest = directory.path().join("vm.snap");
        fs::write(directory.path().join("vm.snap.host.json"), "{\"pakcs\": {}}").unwrap();
        let error = config::report(&HostFile::beside(&manifest).unwrap_err());
        assert!(error.contains("vm.snap.host.json") && error.contains("pakcs"), "{error}");
    }
}
