//! A suspend that is stopped at any of its effects on the file system loses nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::machine::*;
use crate::storage::faulty::{Failure, FaultyStorage};
use crate::storage::in_memory::{Files, MemoryStorage};
use crate::*;

const OLD: &str = "snapshots/old";

/// An older snapshot, safely on the disk, and what is to be written on top of it.
struct Scene {
    storage: MemoryStorage,
    old: Model,
    new: Model,
    /// Where the new manifest goes: beside the old one, or in its place.
    new_path: &'static str,
}

impl Scene {
    fn new(new_path: &'static str) -> Self {
        let storage = MemoryStorage::default();
        let old = Model((0..20).map(|page| (("ram", page), u64::from(page))).collect());
        let mut new = old.clone();
        // Several writes of a megabyte.
        new.0.extend((10..700).map(|page| (("ram", page), 1000 + u64::from(page))));
        new.0.insert(("rootfs", 4), 7);
        let scene = Self { storage, old, new, new_path };
        let old_path = PathBuf::from("packs/old.pack");
        let images = images();
        let host = Arc::new(scene.storage.clone());
        let mut writer = Writer::create(host, &old_path, options(1), images, None).unwrap();
        put_changes(&mut writer, &Model::default(), &scene.old, &[]).unwrap();
        writer.commit(Path::new(OLD), description("old")).unwrap();
        scene
    }

    /// Suspends on top of the old snapshot.
    fn suspend(&self, storage: Arc<dyn Storage>, pack: u8) -> Result<Committed, WriteError> {
        let files = self.storage.files();
        let parent = open(&files, OLD).expect("the old snapshot is there");
        let path = PathBuf::from(format!("packs/{pack}.pack"));
        let mut writer = Writer::create(storage, &path, options(pack), images(), Some(&parent))?;
        put_changes(&mut writer, &self.old, &self.new, &[])?;
        writer.commit(Path::new(self.new_path), description("new"))
    }

    /// Whether the new snapshot is there; asserts that whatever is there is intact.
    fn check(&self, files: &Files) -> bool {
        let found = open(files, self.new_path);
        let label = |snapshot: &Snapshot| snapshot.manifest().metadata.label.clone();
        let is_new = found.as_ref().is_some_and(|snapshot| label(snapshot) == "new");
        if is_new {
            assert_holds(&found.unwrap(), &self.new);
        }
        if self.new_path != OLD || !is_new {
            assert_holds(&open(files, OLD).expect("the old snapshot is there"), &self.old);
        }
        is_new
    }
}

/// Opens a snapshot from files; none if there is no manifest.
fn open(files: &Files, path: &str) -> Option<Snapshot> {
    let manifest = files.get(Path::new(path))?;
    let mut search = PackSearch::new();
    for (path, content) in files {
        let content: Arc<dyn ReadAt> = Arc::new(content.clone());
        let label = path.display().to_string();
        // Packs that were being written are no packs yet.
        if Pack::open(&label, Arc::clone(&content)).is_ok() {
            search = search.content(&label, content);
        }
    }
    Some(Snapshot::from_bytes(path, manifest, &search).expect("what has a name is complete"))
}

/// Does the suspend once for every effect it has, with that effect failing.
fn for_every_effect(
    new_path: &'static str,
    failure: Failure,
    mut check: impl FnMut(&Scene, Result<Committed, WriteError>),
) {
    let mut at = 0;
    loop {
        let scene = Scene::new(new_path);
        let storage = FaultyStorage::new(Arc::new(scene.storage.clone()), failure, at);
        let result = scene.suspend(Arc::new(storage.clone()), 2);
        check(&scene, result);
        if storage.effect_count() <= at {
            break;
        }
        at += 1;
    }
    // Create, 4 writes, sync and sync of the directory; remove, create, write, sync, rename, sync.
    assert!(at >= 12, "only {at} effects");
}

#[test]
fn a_full_disk_at_any_effect_leaves_the_old_snapshot_and_nothing_else() {
    for new_path in [OLD, "snapshots/new", "elsewhere/new"] {
        let mut failures = 0;
        for_every_effect(new_path, Failure::NoSpace, |scene, result| {
            let files = scene.storage.files();
            let is_new = scene.check(&files);
            let temporary = files.keys().any(|path| path.to_string_lossy().contains(".new"));
            assert!(!temporary, "{:?}", files.keys());
            match result {
                // The first failure that changes nothing is that of removing what is not there.
                Ok(_) => assert!(is_new),
                Err(WriteError::NotDurable { .. }) => assert!(is_new),
                Err(error) => {
                    failures += 1;
                    assert!(!is_new);
                    assert_eq!(files.len(), 2, "{:?}", files.keys());
                    let text = error.to_string();
                    assert!(text.contains("pack") || text.contains("the manifest"), "{text}");
                    let host = Arc::new(scene.storage.clone());
                    scene.suspend(host, 2).expect("the next attempt succeeds");
                    assert!(scene.check(&scene.storage.files()));
                }
            }
        });
        assert!(failures >= 10, "{failures}");
    }
}

#[test]
fn death_at_any_effect_leaves_the_old_snapshot_or_the_whole_new_one() {
    for new_path in [OLD, "snapshots/new"] {
        for_every_effect(new_path, Failure::Death, |scene, result| {
            let is_new = scene.check(&scene.storage.files());
            assert!(is_new || result.is_err());
            if !is_new {
                let host = Arc::new(scene.storage.clone());
                scene.suspend(host, 3).expect("another process succeeds");
                assert!(scene.check(&scene.storage.files()));
            }
        });
    }
}

#[test]
fn a_power_cut_at_any_effect_leaves_the_old_snapshot_or_the_whole_new_one() {
    for new_path in [OLD, "snapshots/new", "elsewhere/new"] {
        let mut outcomes = [0, 0];
        for_every_effect(new_path, Failure::Death, |scene, result| {
            for files in scene.storage.after_power_cut() {
                let is_new = scene.check(&files);
                assert!(is_new || result.is_err(), "a finished suspend was lost");
                outcomes[usize::from(is_new)] += 1;
            }
        });
        assert!(outcomes[0] > 50 && outcomes[1] >= 4, "{outcomes:?}");
    }
}

#[test]
fn a_writer_that_is_given_up_leaves_nothing() {
    let scene = Scene::new(OLD);
    let host = Arc::new(scene.storage.clone());
    let path = Path::new("packs/2.pack");
    let mut writer = Writer::create(host, path, options(2), images(), None).unwrap();
    put_changes(&mut writer, &Model::default(), &scene.new, &[]).unwrap();
    drop(writer);
    assert_eq!(scene.storage.files().len(), 2);
    assert!(!scene.check(&scene.storage.files()));
}

#[test]
fn a_pack_never_replaces_a_file() {
    let scene = Scene::new(OLD);
    let host = Arc::new(scene.storage.clone());
    let path = Path::new("packs/old.pack");
    let error = Writer::create(host, path, options(2), images(), None).err().unwrap();
    assert_eq!(error.to_string(), "create the pack packs/old.pack");
    assert!(!scene.check(&scene.storage.files()));
}
