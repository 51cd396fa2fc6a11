//! Removing packs that no snapshot consists of any more.
//!
//! A pack that is being written is locked by its writer until its manifest has its name, and one that
//! is open is locked by its readers; so whoever can lock a pack alone, and then finds it in no
//! manifest, may remove it.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::id::PackId;
use crate::manifest::{MAGIC, Manifest, ManifestError};
use crate::pack::{PACK_MAGIC, Pack, PackError};
use crate::snapshot::read_manifest;
use crate::storage::{HostStorage, Storage};

/// What was removed, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Packs that are gone.
    pub removed: Vec<PathBuf>,
    /// Their length together.
    pub removed_bytes: u64,
    /// Packs of no snapshot that somebody reads or writes.
    pub in_use: Vec<PathBuf>,
}

/// Why nothing more is removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The host refuses.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A manifest that says nothing of its packs may mean any of them.
    #[error("find out which packs {} needs; move it elsewhere if it is worth nothing", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// A file that begins as a pack does and is none.
    #[error("look at a pack")]
    Pack(#[source] PackError),
}

/// Removes the packs in these directories that no manifest in any of them names.
///
/// # Errors
/// See [`PruneError`]. What was removed before was not needed.
pub fn prune(directories: &[PathBuf]) -> Result<Pruned, PruneError> {
    let mut pruned = Pruned::default();
    let Found { named, packs } = Found::in_directories(directories)?;
    let mut locked = Vec::new();
    for (path, id) in packs.into_iter().filter(|(_, id)| !named.contains(id)) {
        let file = File::open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => locked.push((path, id, file)),
            Err(TryLockError::WouldBlock) => pruned.in_use.push(path),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
    }
    if locked.is_empty() {
        return Ok(pruned);
    }
    // A snapshot may have come into being since; from now on none of these packs can become part of
    // one.
    let Found { named, .. } = Found::in_directories(directories)?;
    for (path, id, file) in locked {
        if named.contains(&id) {
            continue;
        }
        let bytes = file.metadata().map_err(failed("look at", &path))?.len();
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        pruned.removed_bytes = pruned.removed_bytes.saturating_add(bytes);
        pruned.removed.push(path);
    }
    for directory in directories {
        HostStorage.sync_directory(directory).map_err(failed("sync", directory))?;
    }
    Ok(pruned)
}

/// What is in some directories.
#[derive(Default)]
struct Found {
    /// Packs that manifests name.
    named: BTreeSet<PackId>,
    packs: Vec<(PathBuf, PackId)>,
}

impl Found {
    fn in_directories(directories: &[PathBuf]) -> Result<Self, PruneError> {
        let mut found = Self::default();
        for directory in directories {
            for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
                let entry = entry.map_err(failed("list", directory))?;
                let path = entry.path();
                if entry.file_type().map_err(failed("look at", &path))?.is_file() {
                    found.look_at(path)?;
                }
            }
        }
        Ok(found)
    }

    fn look_at(&mut self, path: PathBuf) -> Result<(), PruneError> {
        let mut file = match File::open(&path) {
            // It has got another name, or was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(failed("open", &path))?,
        };
        let mut magic = Vec::new();
        file.by_ref().take(8).read_to_end(&mut magic).map_err(failed("read", &path))?;
        if magic == MAGIC {
            let file = File::open(&path).map_err(failed("open", &path))?;
            let bytes = read_manifest(&file).map_err(failed("read", &path))?;
            let (manifest, _) = Manifest::decode(&bytes)
                .map_err(|source| PruneError::Manifest { path: path.clone(), source })?;
            self.named.extend(manifest.layers.iter().map(|(_, layer)| layer.pack));
        } else if magic == PACK_MAGIC {
            let label = path.display().to_string();
            match Pack::open(&label, Arc::new(file)) {
                Ok(pack) => self.packs.push((path, pack.id)),
                // One of which the writer was killed before it had written the header.
                Err(PackError::Read { .. }) => self.packs.push((path, PackId::NIL)),
                Err(error) => return Err(PruneError::Pack(error)),
            }
        }
        Ok(())
    }
}

fn failed(attempt: &'static str, path: &Path) -> impl Fn(io::Error) -> PruneError {
    move |source| PruneError::Io { attempt, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Architecture, Description, Image, ImageKind, MemoryRegion, Name, Options, PackSearch,
        PageSet, Snapshot, Writer, layout::BlockIndex,
    };

    /// Writes a snapshot of one page to `manifest`, over what is there.
    fn write(directory: &Path, manifest: &str, byte: u8, parent: Option<&Snapshot>) -> Snapshot {
        let ram = Name::new("ram").unwrap();
        let image = Image { kind: ImageKind::Memory, name: ram.clone(), bytes: 2 << 20 };
        let options = Options::new().unwrap();
        let pack = directory.join(options.pack.file_name());
        let storage = Arc::new(HostStorage);
        let mut writer = Writer::create(storage, &pack, options, vec![image], parent).unwrap();
        let mut page = PageSet::EMPTY;
        page.insert(byte.into());
        writer.put_block(&ram, BlockIndex(0), &page, &[byte; 4096]).unwrap();
        let description = Description {
            architecture: Architecture::Aarch64,
            created_unix_ms: 0,
            label: String::new(),
            memory_regions: vec![MemoryRegion { guest_address: 1 << 31, bytes: 2 << 20 }],
            cpu_features: Vec::new(),
            working_set: Vec::new(),
            machine: Vec::new(),
        };
        let path = directory.join(manifest);
        writer.commit(&path, description).unwrap();
        Snapshot::open(&path, &PackSearch::new().directory(directory)).unwrap()
    }

    fn packs(directory: &Path) -> usize {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|it| it == "pack")).count()
    }

    #[test]
    fn packs_of_no_snapshot_go_and_all_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let directories = [path.to_owned()];
        let first = write(path, "one", 1, None);
        let second = write(path, "two", 2, Some(&first));
        drop(first);
        write(path, "one", 3, None);
        fs::write(path.join("notes"), "RotiferX is something else").unwrap();
        assert_eq!(prune(&directories).unwrap(), Pruned::default(), "the second has the first's");
        write(path, "two", 4, None);
        let in_use = prune(&directories).unwrap();
        assert_eq!((in_use.removed.len(), in_use.in_use.len()), (0, 2), "the second is open");
        drop(second);
        let pruned = prune(&directories).unwrap();
        assert_eq!((pruned.removed.len(), packs(path)), (2, 2));
        assert!(pruned.removed_bytes > 8192);
        let search = || PackSearch::new().directory(path);
        for manifest in ["one", "two"] {
            let snapshot = Snapshot::open(&path.join(manifest), &search()).unwrap();
            assert!(crate::verify(&snapshot, |_| {}).is_intact());
        }
    }

    #[test]
    fn a_pack_that_is_being_written_stays() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options::new().unwrap();
        let pack = directory.path().join(options.pack.file_name());
        let ram = Name::new("ram").unwrap();
        let image = Image { kind: ImageKind::Memory, name: ram, bytes: 2 << 20 };
        let storage = Arc::new(HostStorage);
        let writer = Writer::create(storage, &pack, options, vec![image], None).unwrap();
        let directories = [directory.path().to_owned()];
        prune(&directories).unwrap();
        assert!(pack.exists());
        // The writer of this one was killed.
        let torn = directory.path().join("torn.pack");
        fs::write(&torn, PACK_MAGIC).unwrap();
        let pruned = prune(&directories).unwrap();
        assert_eq!(pruned.removed, [torn]);
        drop(writer);
    }

    #[test]
    fn nothing_is_removed_beside_a_manifest_that_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        drop(write(path, "one", 1, None));
        let mut bytes = fs::read(path.join("one")).unwrap();
        bytes[20] ^= 1;
        fs::write(path.join("one"), bytes).unwrap();
        let error = prune(&[path.to_owned()]).unwrap_err().to_string();
        assert!(error.contains("one") && packs(path) == 1, "{error}");
    }
}
