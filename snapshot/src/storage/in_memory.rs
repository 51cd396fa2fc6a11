//! A file system in memory that knows what a power cut leaves of it. For tests.
//!
//! It promises what POSIX does and nothing more: content is safe after `fsync` of the file, names
//! after `fsync` of the directory. Of everything else, any part may be there after a power cut.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Storage, StorageFile, directory_of};

/// Sectors reach a disk whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A file system in memory. Copies are the same file system.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
}

/// What is in the file system, by path.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

#[derive(Debug, Clone, Default)]
struct State {
    files: Vec<FileState>,
    names: BTreeMap<PathBuf, usize>,
    /// Names that a power cut does not change.
    safe_names: BTreeMap<PathBuf, usize>,
    /// Changes of names that it may undo, each by itself.
    unsafe_changes: Vec<NameChange>,
}

#[derive(Debug, Clone, Default)]
struct FileState {
    content: Vec<u8>,
    safe_bytes: usize,
}

/// From one name to another; either may be none.
#[derive(Debug, Clone)]
struct NameChange {
    file: usize,
    from: Option<PathBuf>,
    to: Option<PathBuf>,
}

struct MemoryFile {
    state: Arc<Mutex<State>>,
    file: usize,
}

impl MemoryStorage {
    /// The files as every program sees them.
    pub fn files(&self) -> Files {
        let state = lock(&self.state);
        state.names.iter().map(|(path, file)| (path.clone(), state.content(*file))).collect()
    }

    /// What a power cut now may leave, in every combination of changed names that got to the disk
    /// or did not, and for each with content that did, did not, or did in part.
    pub fn after_power_cut(&self) -> Vec<Files> {
        let state = lock(&self.state);
        let combinations = 1_u32.checked_shl(state.unsafe_changes.len() as u32).unwrap_or(0);
        let mut outcomes = Vec::new();
        for combination in 0..combinations {
            let names = state.names_after(combination);
            for content in [Torn::Nothing, Torn::Everything, Torn::Some(1), Torn::Some(2)] {
                let files = names.iter();
                let files = files.map(|(path, file)| (path.clone(), state.torn(*file, content)));
                outcomes.push(files.collect());
            }
        }
        outcomes
    }

    /// A file system in which these files are safe.
    pub fn with_files(files: Files) -> Self {
        let storage = Self::default();
        let mut state = lock(&storage.state);
        for (path, content) in files {
            let file = state.files.len();
            state.files.push(FileState { safe_bytes: content.len(), content });
            state.names.insert(path.clone(), file);
            state.safe_names.insert(path, file);
        }
        drop(state);
        storage
    }
}

/// How much of what was not synced is on the disk.
#[derive(Debug, Clone, Copy)]
enum Torn {
    Nothing,
    Everything,
    /// Some sectors, chosen by this number; the others are zero.
    Some(usize),
}

impl State {
    fn content(&self, file: usize) -> Vec<u8> {
        self.files.get(file).map(|file| file.content.clone()).unwrap_or_default()
    }

    fn names_after(&self, combination: u32) -> BTreeMap<PathBuf, usize> {
        let mut names = self.safe_names.clone();
        for (number, change) in (0_u32..).zip(&self.unsafe_changes) {
            if combination.checked_shr(number).unwrap_or(0) & 1 == 1 {
                apply(&mut names, change);
            }
        }
        names
    }

    fn torn(&self, file: usize, torn: Torn) -> Vec<u8> {
        let mut content = self.content(file);
        let safe_bytes = self.files.get(file).map_or(0, |file| file.safe_bytes);
        match torn {
            Torn::Nothing => content.truncate(safe_bytes),
            Torn::Everything => {}
            Torn::Some(seed) => {
                let unsafe_content = content.get_mut(safe_bytes..).unwrap_or_default();
                for (number, sector) in unsafe_content.chunks_mut(SECTOR_BYTES).enumerate() {
                    if number.wrapping_mul(7).wrapping_add(seed) % 3 == 0 {
                        sector.fill(0);
                    }
                }
            }
        }
        content
    }

    fn change(&mut self, file: usize, from: Option<&Path>, to: Option<&Path>) {
        let own = |path: Option<&Path>| path.map(Path::to_path_buf);
        let change = NameChange { file, from: own(from), to: own(to) };
        apply(&mut self.names, &change);
        self.unsafe_changes.push(change);
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    if let Some(from) = &change.from {
        names.remove(from);
    }
    if let Some(to) = &change.to {
        names.insert(to.clone(), change.file);
    }
}

impl Storage for MemoryStorage {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut state = lock(&self.state);
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.files.len();
        state.files.push(FileState::default());
        state.change(file, None, Some(path));
        Ok(Box::new(MemoryFile { state: Arc::clone(&self.state), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(file, Some(from), Some(to));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        state.change(file, Some(path), None);
        Ok(())
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        let changes = std::mem::take(&mut state.unsafe_changes);
        for change in changes {
            let name = change.to.as_deref().or(change.from.as_deref());
            if name.is_some_and(|name| directory_of(name) == path) {
                apply(&mut state.safe_names, &change);
            } else {
                state.unsafe_changes.push(change);
            }
        }
        Ok(())
    }
}

impl StorageFile for MemoryFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = state.files.get_mut(self.file).ok_or(io::ErrorKind::NotFound)?;
        file.content.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = state.files.get_mut(self.file).ok_or(io::ErrorKind::NotFound)?;
        file.safe_bytes = file.content.len();
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let storage = MemoryStorage::default();
        let (path, other) = (Path::new("a/x"), Path::new("a/y"));
        let mut file = storage.create(path).unwrap();
        file.append(&[1; 600]).unwrap();
        file.sync().unwrap();
        file.append(&[2; 600]).unwrap();
        storage.sync_directory(Path::new("a")).unwrap();
        storage.rename(path, other).unwrap();
        let outcomes = storage.after_power_cut();
        assert_eq!(outcomes.len(), 2 * 4);
        for files in &outcomes {
            assert_eq!(files.len(), 1);
            let content = files.values().next().unwrap();
            assert!(content.len() >= 600 && content[..600] == [1; 600]);
        }
        assert!(outcomes.iter().any(|files| files.contains_key(path)));
        assert!(outcomes.iter().any(|files| files.contains_key(other)));
        assert!(outcomes.iter().any(|files| files.values().all(|content| content.len() == 600)));
        assert!(
            outcomes
                .iter()
                .any(|files| files.values().any(|content| content.get(1112) == Some(&0)))
        );
    }
}
