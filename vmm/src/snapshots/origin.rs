//! The snapshot that a machine comes from, or that was last written of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rotifer_snapshot::{OpenError, PackId, PackSearch, Snapshot};

use super::host_file::absolute;
use super::{DiskError, HostFile, disks};
use crate::machine_state::{MachineState, StateSection};
use crate::table::DiskLayers;

/// A snapshot that is open, and where its packs are.
#[derive(Debug)]
pub struct Origin {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Of those packs whose files are known, by name.
    pub packs: BTreeMap<String, PathBuf>,
    /// Whether the machine's memory is shared: then the pages that are its own were written.
    pub is_shared: bool,
}

/// Why a snapshot cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OriginError(#[from] OpenError);

impl Origin {
    /// Opens a snapshot. Its packs are `memory_path`, if that is a file; what the host file names;
    /// and what ends with `.pack` in the directories of `snapshot_path` and `memory_path`.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub fn open(
        snapshot_path: &Path,
        memory_path: Option<&Path>,
        host: &HostFile,
    ) -> Result<Self, OriginError> {
        let mut search = PackSearch::new();
        for path in memory_path.into_iter().chain([snapshot_path]) {
            if path.is_dir() {
                search = search.directory(path);
                continue;
            }
            if Some(path) == memory_path {
                search = search.file(path);
            }
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            search = search.directory(parent.unwrap_or(Path::new(".")));
        }
        for (pack, path) in &host.packs {
            search = search.named(pack, path);
        }
        let snapshot = Snapshot::open(snapshot_path, &search)?;
        let mut packs = host.packs.clone();
        if let Some(path) = memory_path.filter(|path| path.is_file()) {
            let layers = &snapshot.manifest().layers;
            if let Some(own) = layers.get(layers.own) {
                packs.insert(own.pack.to_string(), absolute(path.into()));
            }
        }
        Ok(Self { snapshot, packs, is_shared: false })
    }

    /// The state of the machine's parts.
    pub fn machine_state(&self) -> MachineState {
        let section = |section: &rotifer_snapshot::MachineSection| StateSection {
            name: section.name.as_str().into(),
            tag: section.tag,
            bytes: section.bytes.clone(),
        };
        let sections = self.snapshot.manifest().machine.iter();
        let sections = sections.filter(|section| !disks::is_base(section)).map(section).collect();
        MachineState { sections }
    }

    /// What the snapshot has of disks.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn disk_layers(&self) -> Result<DiskLayers, DiskError> {
        disks::layers(&self.snapshot)
    }
}

/// Where a new pack goes: to this path, or under its own name into this directory.
pub(super) fn pack_path(memory_path: &Path, pack: PackId) -> PathBuf {
    if memory_path.is_dir() { memory_path.join(pack.file_name()) } else { memory_path.into() }
}
