//! What is in a snapshot, what differs between two, and the same one in fewer packs.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::machine::*;
use crate::*;

/// Three snapshots, each on top of the one before.
fn chain(directory: &Path) -> Vec<(Snapshot, Model)> {
    let mut chain: Vec<(Snapshot, Model)> = Vec::new();
    let mut model = Model::default();
    for (number, first) in [(1, 0), (2, 30), (3, 60)] {
        model.0.extend((first..first + 50).map(|page| (("ram", page), u64::from(page + first))));
        model.0.insert(("rootfs", first), first.into());
        let parent = chain.last().map(|(snapshot, model)| (snapshot, model));
        let (snapshot, _) = write(directory, options(number), parent, &model, &[]);
        chain.push((snapshot, model.clone()));
    }
    chain
}

fn compacted(
    directory: &Path,
    snapshot: &Snapshot,
    options: Options,
    keep: &[u8],
) -> (Snapshot, Committed) {
    let path = directory.join("compact");
    let compaction = Compaction {
        pack_path: &directory.join(options.pack.file_name()),
        manifest_path: &path,
        options,
        keep: keep.iter().map(|pack| PackId([*pack; 16])).collect(),
    };
    let committed = compact(snapshot, Arc::new(HostStorage), &compaction).unwrap();
    let search = PackSearch::new().directory(directory);
    (Snapshot::open(&path, &search).unwrap(), committed)
}

fn packs(snapshot: &Snapshot) -> BTreeSet<u8> {
    snapshot.manifest().layers.iter().map(|(_, layer)| layer.pack.0[0]).collect()
}

#[test]
fn a_compacted_snapshot_is_the_same_in_one_pack() {
    let directory = tempfile::tempdir().unwrap();
    let chain = chain(directory.path());
    let (last, model) = chain.last().unwrap();
    assert_eq!(packs(last), [1, 2, 3].into());
    for compression in [None, Some(3)] {
        let pack = 10 + compression.unwrap_or(0) as u8;
        let options = Options { compression, ..options(pack) };
        let (compact, _) = compacted(directory.path(), last, options, &[]);
        assert_holds(&compact, model);
        assert_eq!(packs(&compact), [pack].into());
        assert!(diff(last, &compact).unwrap().is_empty());
        let (old, new) = (last.manifest(), compact.manifest());
        assert_eq!((&old.metadata, &old.machine), (&new.metadata, &new.machine));
    }
}

#[test]
fn a_base_that_others_share_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let chain = chain(directory.path());
    let (last, model) = chain.last().unwrap();
    let (compact, committed) = compacted(directory.path(), last, options(10), &[1]);
    assert_holds(&compact, model);
    assert_eq!(packs(&compact), [1, 10].into());
    assert_eq!(committed.statistics.written_pages, 80 + 2);
    let inspection = Inspection::of_snapshot(&compact).unwrap();
    let pages = inspection.layers.iter().map(|layer| layer.page_count.unwrap());
    assert_eq!(pages.collect::<Vec<_>>(), [31, 82]);
}

#[test]
fn a_diff_names_the_pages_and_states_that_changed() {
    let directory = tempfile::tempdir().unwrap();
    let chain = chain(directory.path());
    let difference = diff(&chain[0].0, &chain[1].0).unwrap();
    let ram = &difference.images[0];
    assert_eq!((ram.name.as_str(), ram.change, ram.blocks.len()), ("ram", Change::Changed, 1));
    assert_eq!(ram.blocks[0].pages, (30..80).collect::<Vec<_>>());
    assert_eq!(difference.images[1].blocks[0].pages, [30]);
    assert_eq!(
        difference.to_string(),
        "image ram: 50 pages changed\n  block 0: 50 pages\n\
         image rootfs: 1 pages changed\n  block 0: 1 pages\n"
    );
    assert!(diff(&chain[1].0, &chain[1].0).unwrap().is_empty());
}

#[test]
fn images_states_and_facts_that_only_one_has_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let chain = chain(directory.path());
    let (snapshot, _) = &chain[0];
    let path = directory.path().join("other.pack");
    let ram = images().swap_remove(0);
    let storage = Arc::new(HostStorage);
    let writer = Writer::create(storage, &path, options(9), vec![ram], Some(snapshot)).unwrap();
    let mut told = description("other");
    told.cpu_features.clear();
    told.machine[0].bytes.push(4);
    let manifest = directory.path().join("other");
    writer.commit(&manifest, told).unwrap();
    let search = PackSearch::new().directory(directory.path());
    let other = Snapshot::open(&manifest, &search).unwrap();
    let difference = diff(snapshot, &other).unwrap();
    assert_eq!(
        difference.to_string(),
        "CPU features changed\nimage rootfs removed\nVBLK v3 of rootfs changed\n"
    );
    assert_eq!(diff(&other, snapshot).unwrap().images[0].change, Change::Added);
}

#[test]
fn an_inspection_shows_layers_images_and_states() {
    let directory = tempfile::tempdir().unwrap();
    let chain = chain(directory.path());
    let (snapshot, _) = chain.last().unwrap();
    let inspection = Inspection::of_snapshot(snapshot).unwrap();
    let text = inspection.to_string();
    let pack = PackId([3; 16]);
    for expected in [
        format!("snapshot     {}", snapshot.id()),
        format!("layer 2      pack {pack}, "),
        "2 blocks, 31 pages\n".into(),
        ", its own\n".into(),
        "memory       2.0 MiB at 0x80000000\n".into(),
        "image        ram (Memory), 6.0 MiB, of it 440.0 KiB not zero in 1 blocks\n".into(),
        "working set  3 pages, 2 written, 2 runs\n             page 7 + 2, written\n".into(),
        "machine      VBLK v3 of rootfs, 3 bytes\n".into(),
        "cpu          ID_AA64PFR0_EL1.SVE = 0x1 (AtLeast)\n".into(),
    ] {
        assert!(text.contains(&expected), "{expected:?} is not in\n{text}");
    }
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["layers"][2]["pack"], pack.to_string());
    assert_eq!(json["images"][0]["kind"], "memory");
    assert_eq!(json["working_set"][0]["written"], true);
}

#[test]
fn another_working_set_makes_another_snapshot_of_the_same_content() {
    let directory = tempfile::tempdir().unwrap();
    let chain = chain(directory.path());
    let (snapshot, model) = chain.last().unwrap();
    let mut manifest = snapshot.manifest().clone();
    manifest.working_set = vec![PageRun { first_page: 1, page_count: 4, written: false }];
    let path = directory.path().join("manifest");
    let id = commit_manifest(&HostStorage, &path, &manifest).unwrap();
    assert_ne!(id, snapshot.id());
    let search = PackSearch::new().directory(directory.path());
    let recorded = Snapshot::open(&path, &search).unwrap();
    assert_holds(&recorded, model);
    assert_eq!((recorded.id(), recorded.manifest()), (id, &manifest));
    assert_eq!(diff(snapshot, &recorded).unwrap().facts, ["working set"]);
}

#[test]
fn staged_pages_are_written_as_they_were_when_they_were_staged() {
    let directory = tempfile::tempdir().unwrap();
    let ram = name("ram");
    let mut staging = Staging::with_room(4096).unwrap();
    for (block, page, seed) in [(1, 3, 5), (0, 511, 6), (1, 4, 7)] {
        let mut pages = PageSet::EMPTY;
        pages.insert(page);
        let place = staging.add(&ram, BlockIndex(block), &pages).unwrap();
        place.copy_from_slice(&content(seed));
    }
    assert_eq!(staging.used_bytes(), 3 * 4096);
    let (pack, path) = (directory.path().join("a.pack"), directory.path().join("manifest"));
    let storage = Arc::new(HostStorage);
    let mut writer = Writer::create(storage, &pack, options(1), images(), None).unwrap();
    writer.put_staged(&staging).unwrap();
    writer.commit(&path, description("staged")).unwrap();
    let model = Model([(515, 5), (511, 6), (516, 7)].map(|(page, it)| (("ram", page), it)).into());
    let search = PackSearch::new().file(&pack);
    assert_holds(&Snapshot::open(&path, &search).unwrap(), &model);
    staging.clear();
    assert_eq!((staging.used_bytes(), staging.blocks().count()), (0, 0));
}

#[test]
fn what_does_not_fit_an_image_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pack = directory.path().join("a.pack");
    let storage = Arc::new(HostStorage);
    let mut writer = Writer::create(storage, &pack, options(1), images(), None).unwrap();
    let (ram, one) = (name("ram"), PageSet::first(1));
    let mut refusal = |image: &Name, block, pages: &PageSet, bytes: usize| {
        writer.put_block(image, BlockIndex(block), pages, &vec![1; bytes]).unwrap_err().to_string()
    };
    assert_eq!(
        refusal(&ram, 0, &one, 4095),
        "4095 bytes were given for pages of block 0 that have 4096"
    );
    assert!(refusal(&ram, 4, &one, 4096).starts_with("pages of block 4 lie behind the end"));
    assert!(refusal(&ram, u32::MAX, &one, 4096).contains("behind the end"));
    let six = PageSet::first(6);
    assert!(refusal(&ram, 3, &six, 6 * 4096).contains("behind the end of image ram"));
    assert!(refusal(&name("swap"), 0, &one, 4096).contains("no image called swap"));
}

#[test]
fn a_snapshot_in_memory_has_the_bytes_of_one_in_files_and_is_opened_through_descriptors() {
    let directory = tempfile::tempdir().unwrap();
    let base = Model((0..40).map(|page| (("ram", page), u64::from(page))).collect());
    let (parent, _) = write(directory.path(), options(1), None, &base, &[]);
    assert!(parent.is_durable().unwrap());
    let mut changed = base.clone();
    changed.0.insert(("ram", 7), 99);
    let memory = MemfdStorage::new(1 << 20);
    let write_to = |storage: Arc<dyn Storage>, directory: &Path| {
        let pack = directory.join("pack");
        let mut writer =
            Writer::create(storage, &pack, options(2), images(), Some(&parent)).unwrap();
        put_changes(&mut writer, &base, &changed, &[]).unwrap();
        writer.commit(&directory.join("manifest"), description("memory")).unwrap()
    };
    let committed = write_to(Arc::new(memory.clone()), Path::new(""));
    assert_eq!(write_to(Arc::new(HostStorage), directory.path()).id, committed.id);
    let files = ["pack", "manifest"].map(|name| memory.take(Path::new(name)).unwrap());
    let [pack, manifest] =
        files.each_ref().map(|file| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
    for (name, path) in [("pack", &pack), ("manifest", &manifest)] {
        let same = fs::read(directory.path().join(name)).unwrap() == fs::read(path).unwrap();
        assert!(same, "the {name} differs");
    }
    let search = PackSearch::new().file(&pack).directory(directory.path());
    let snapshot = Snapshot::open(&manifest, &search).unwrap();
    drop(files);
    assert_holds(&snapshot, &changed);
    assert!(!snapshot.is_durable().unwrap(), "its pack has no name");

    let full = Writer::create(
        Arc::new(MemfdStorage::new(4 << 10)),
        Path::new("pack"),
        options(3),
        images(),
        None,
    );
    let mut full = full.unwrap();
    put_changes(&mut full, &Model::default(), &base, &[]).unwrap();
    let error = full.commit(Path::new("manifest"), description("full")).unwrap_err();
    assert_eq!(error.to_string(), "write the pack pack");
}
