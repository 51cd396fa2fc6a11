//! Finding the packs of a snapshot: a snapshot names them, and only the host knows where they are.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::id::PackId;
use crate::layout::PACK_FILES_MAX;

use super::{Pack, PackError, ReadAt};

/// Where packs may be: content that is open already, files, and directories.
#[derive(Default)]
pub struct PackSearch {
    open: Vec<(String, Arc<dyn ReadAt>)>,
    files: Vec<PathBuf>,
    named: Vec<(String, PathBuf)>,
    directories: Vec<PathBuf>,
}

impl PackSearch {
    /// Nowhere yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also this content; `label` is what messages call it.
    pub fn content(mut self, label: &str, content: Arc<dyn ReadAt>) -> Self {
        self.open.push((label.into(), content));
        self
    }

    /// Also this file, which must be a pack.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(path.into());
        self
    }

    /// Also this file, which is said to be the pack of this name. Nobody looks at it for another one:
    /// it may be what a writer left that was killed.
    pub fn named(mut self, pack: &str, path: impl Into<PathBuf>) -> Self {
        self.named.push((pack.into(), path.into()));
        self
    }

    /// Also the files of this directory whose names end with `.pack`. One that is called as
    /// [`PackId::file_name`] says is found without a look at the others.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directories.push(path.into());
        self
    }

    /// Opens those of the packs that it finds; which ones are missing is for the caller to judge.
    ///
    /// # Errors
    /// See [`PackError`]. In directories, files that are no packs are passed over.
    pub(crate) fn find(
        &self,
        wanted: &BTreeSet<PackId>,
    ) -> Result<HashMap<PackId, Pack>, PackError> {
        let mut found = HashMap::new();
        for (label, content) in &self.open {
            keep(Pack::open(label, Arc::clone(content))?, wanted, &mut found);
        }
        for path in &self.files {
            keep(open(path)?, wanted, &mut found);
        }
        for id in wanted {
            let name = id.to_string();
            for (_, path) in self.named.iter().filter(|(named, _)| *named == name) {
                // One that was moved may be in a directory.
                if !found.contains_key(id) && path.exists() {
                    keep(open(path)?, wanted, &mut found);
                }
            }
        }
        for directory in &self.directories {
            for id in wanted {
                let path = directory.join(id.file_name());
                if !found.contains_key(id) && path.exists() {
                    keep(open(&path)?, wanted, &mut found);
                }
            }
            if found.len() < wanted.len() {
                scan(directory, wanted, &mut found)?;
            }
        }
        Ok(found)
    }
}

fn keep(pack: Pack, wanted: &BTreeSet<PackId>, found: &mut HashMap<PackId, Pack>) {
    if wanted.contains(&pack.id) {
        found.entry(pack.id).or_insert(pack);
    }
}

fn open(path: &Path) -> Result<Pack, PackError> {
    let label = path.display().to_string();
    // A pipe would block the one who opens it.
    let opened = path.metadata().and_then(|metadata| {
        if metadata.is_file() { File::open(path).map(Some) } else { Ok(None) }
    });
    match opened {
        // It stays locked as long as it is open, so that nobody prunes it.
        Ok(Some(file)) => match file.try_lock_shared() {
            Ok(()) | Err(TryLockError::Error(_)) => Pack::open(&label, Arc::new(file)),
            Err(TryLockError::WouldBlock) => Err(PackError::Busy { label }),
        },
        Ok(None) => Err(PackError::Header { label, reason: "it is no regular file" }),
        Err(source) => Err(PackError::Read { label, source }),
    }
}

fn scan(
    directory: &Path,
    wanted: &BTreeSet<PackId>,
    found: &mut HashMap<PackId, Pack>,
) -> Result<(), PackError> {
    let error =
        |source| PackError::Directory { directory: directory.display().to_string(), source };
    for entry in directory.read_dir().map_err(error)?.take(PACK_FILES_MAX) {
        let path = entry.map_err(error)?.path();
        let is_pack = path.extension().is_some_and(|extension| extension == "pack");
        if let Some(pack) = is_pack.then(|| open(&path).ok()).flatten() {
            keep(pack, wanted, found);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::encode_header;
    use super::*;

    #[test]
    fn packs_are_found_by_name_whatever_their_files_are_called() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two, absent) = (PackId([1; 16]), PackId([2; 16]), PackId([3; 16]));
        std::fs::write(directory.path().join(one.file_name()), encode_header(one)).unwrap();
        std::fs::write(directory.path().join("renamed.pack"), encode_header(two)).unwrap();
        std::fs::write(directory.path().join("noise.pack"), "noise").unwrap();
        let search = PackSearch::new().directory(directory.path());
        let found = search.find(&BTreeSet::from([one, two, absent])).unwrap();
        assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([one, two]));
    }

    #[test]
    fn a_pack_that_is_said_to_be_somewhere_is_looked_at_only_if_it_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let (wanted, torn) = (PackId([1; 16]), PackId([2; 16]));
        let (good, bad) = (directory.path().join("good"), directory.path().join("bad"));
        std::fs::write(&good, encode_header(wanted)).unwrap();
        std::fs::write(&bad, "Rotif").unwrap();
        let search = PackSearch::new()
            .named(&torn.to_string(), &bad)
            .named(&wanted.to_string(), directory.path().join("moved"))
            .named(&wanted.to_string(), &good);
        let found = search.find(&BTreeSet::from([wanted])).unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [wanted]);
        assert!(search.find(&BTreeSet::from([torn])).is_err());
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let error = PackSearch::new().file(directory.path()).find(&BTreeSet::new()).unwrap_err();
        assert!(error.to_string().ends_with("is no pack: it is no regular file"), "{error}");
    }

    #[test]
    fn a_file_that_is_named_must_be_a_pack() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("noise");
        std::fs::write(&path, [0; 5000]).unwrap();
        let error = PackSearch::new().file(&path).find(&BTreeSet::new()).unwrap_err();
        assert!(error.to_string().contains("noise is no pack"), "{error}");
        let gone = directory.path().join("gone");
        let error = PackSearch::new().directory(&gone).find(&BTreeSet::from([PackId([1; 16])]));
        assert!(error.unwrap_err().to_string().starts_with("look for packs in"));
    }
}
