//! Where the snapshots of a test are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use tempfile::TempDir;

use crate::VmBuilder;

const PACK_HEADER_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 64 << 10;

/// The snapshot that the tests of this program share. Statics are not dropped, so it is taken out at the end.
static WEB_APP: Mutex<Option<TempDir>> = Mutex::new(None);

/// A directory of its own, and the path of a snapshot in it.
///
/// # Panics
/// If the host refuses.
pub fn place() -> (TempDir, PathBuf) {
    let directory = TempDir::new().expect("make a temporary directory");
    let snapshot = directory.path().join("vm.snap");
    (directory, snapshot)
}

/// A Debian guest with one vCPU and 512 MiB, in which the web app listens.
pub fn web_app() -> VmBuilder {
    VmBuilder::new().memory_mib(512).debian()
}

/// A snapshot of [`web_app`], of which one visit was made. It is taken when the first test of this
/// program asks for it, and nobody writes beside it.
///
/// # Panics
/// If the host refuses.
pub fn web_app_snapshot() -> &'static Path {
    static SNAPSHOT: OnceLock<PathBuf> = OnceLock::new();
    SNAPSHOT.get_or_init(|| {
        let (directory, snapshot) = place();
        let mut vm = web_app().start();
        vm.await_web_app();
        assert_eq!(vm.visit(), 1);
        vm.suspend(&snapshot, "Full");
        *WEB_APP.lock().expect("nobody has it") = Some(directory);
        // SAFETY: the function may run at the process's end: it uses nothing that has ended by then.
        assert_eq!(unsafe { libc::atexit(remove_web_app) }, 0);
        snapshot
    })
}

extern "C" fn remove_web_app() {
    if let Ok(mut directory) = WEB_APP.lock() {
        drop(directory.take());
    }
}

fn packs(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).expect("list a snapshot's directory");
    let files = entries.map(|entry| entry.expect("list a snapshot's directory").path());
    files.filter(|path| path.extension().is_some_and(|it| it == "pack"))
}

/// Bytes of the packs in a directory, by size.
///
/// # Panics
/// If the host refuses.
pub fn pack_sizes(directory: &Path) -> Vec<u64> {
    let sizes = packs(directory).map(|path| fs::metadata(path).expect("look at a pack").len());
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort_unstable();
    sizes
}

/// Changes every byte behind the headers of the packs in a directory: whatever is touched first is damaged.
///
/// # Panics
/// If the host refuses.
pub fn damage_packs(directory: &Path) {
    damage(directory, usize::MAX);
}

/// Changes the first chunk in the packs of a directory. Disks come before RAM, which stays as it is
/// if there are any.
///
/// # Panics
/// If the host refuses.
pub fn damage_disks(directory: &Path) {
    damage(directory, CHUNK_BYTES);
}

fn damage(directory: &Path, count: usize) {
    for path in packs(directory) {
        let mut bytes = fs::read(&path).expect("read a pack");
        let content = bytes[PACK_HEADER_BYTES..].iter_mut();
        content.take(count).for_each(|byte| *byte ^= 1);
        fs::write(path, bytes).expect("damage a pack");
    }
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
