//! Where the snapshots of a test are.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory of its own, and the path of a snapshot in it.
///
/// # Panics
/// If the host refuses.
pub fn place() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("make a temporary directory");
    let snapshot = directory.path().join("vm.snap");
    (directory, snapshot)
}

/// Bytes of the packs in a directory, by size.
///
/// # Panics
/// If the host refuses.
pub fn pack_sizes(directory: &Path) -> Vec<u64> {
    let entries = fs::read_dir(directory).expect("list a snapshot's directory");
    let files = entries.map(|entry| entry.expect("list a snapshot's directory").path());
    let packs = files.filter(|path| path.extension().is_some_and(|it| it == "pack"));
    let mut sizes: Vec<_> =
        packs.map(|path| fs::metadata(path).expect("look at a pack").len()).collect();
    sizes.sort_unstable();
    sizes
}

/// Copies what a snapshot consists of, and nothing that is of this host: the manifest and the packs.
///
/// # Panics
/// If the host refuses.
pub fn copy_snapshot(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("list a snapshot's directory") {
        let path = entry.expect("list a snapshot's directory").path();
        if path.extension().is_some_and(|it| it == "pack" || it == "snap") {
            let name = path.file_name().expect("a file has a name");
            fs::copy(&path, to.join(name)).expect("copy a snapshot");
        }
    }
}
