//! Files of format version 1 that were written once and are never changed: every later program
//! reads them, and as long as it writes version 1 it writes these bytes.

use std::path::Path;
use std::sync::Arc;

use super::machine::*;
use crate::*;

/// A base, a snapshot on top of it, and one with compressed pieces on top of that.
const NAMES: [&str; 3] = ["base", "child", "cold"];
const MANIFESTS: [&[u8]; 3] = [
    include_bytes!("../../../tests/golden/snapshot-v1/base.manifest"),
    include_bytes!("../../../tests/golden/snapshot-v1/child.manifest"),
    include_bytes!("../../../tests/golden/snapshot-v1/cold.manifest"),
];
const PACKS: [&[u8]; 3] = [
    include_bytes!("../../../tests/golden/snapshot-v1/base.pack"),
    include_bytes!("../../../tests/golden/snapshot-v1/child.pack"),
    include_bytes!("../../../tests/golden/snapshot-v1/cold.pack"),
];
const IDS: [&str; 3] = [
    "f5d1d1a664e1b285ee3f6e5b5e4c1e9b8c37ebfb5927d108cf10fc1c76edcfde",
    "8e6cf6867df552fb7aefdeb6512552e87f76ec5fd1d278c1ac5e5506d366fcba",
    "18d6361958ca9e4a3ba50eab5d2117e5a7ed9874d107fb2b94a9b2168d0c492a",
];

fn models() -> [Model; 3] {
    let base = Model([0, 1, 2, 17, 600].map(|page| (("ram", page), u64::from(page))).into());
    let mut child = base.clone();
    child.0.insert(("ram", 1), 11);
    child.0.insert(("rootfs", 512), 12);
    child.0.remove(&("ram", 17));
    let mut cold = child.clone();
    cold.0.insert(("ram", 2), 13);
    [base, child, cold]
}

/// Writes the three snapshots into a directory.
fn write_all(directory: &Path) {
    let mut parent: Option<(Snapshot, Model)> = None;
    for (number, (name, model)) in NAMES.into_iter().zip(models()).enumerate() {
        let compression = (name == "cold").then_some(1);
        let options = Options { compression, ..options(number as u8 + 1) };
        let pack = directory.join(format!("{name}.pack"));
        let base = parent.as_ref().map(|(snapshot, _)| snapshot);
        let storage = Arc::new(HostStorage);
        let mut writer = Writer::create(storage, &pack, options, images(), base).unwrap();
        let before = parent.as_ref().map(|(_, model)| model.clone()).unwrap_or_default();
        put_changes(&mut writer, &before, &model, &[]).unwrap();
        let path = directory.join(format!("{name}.manifest"));
        writer.commit(&path, description(name)).unwrap();
        let search = PackSearch::new().directory(directory);
        parent = Some((Snapshot::open(&path, &search).unwrap(), model));
    }
}

#[test]
fn version_1_is_still_read() {
    let search = NAMES.into_iter().zip(PACKS).fold(PackSearch::new(), |search, (name, pack)| {
        search.content(name, Arc::new(pack.to_vec()))
    });
    for (number, model) in models().iter().enumerate() {
        let name = NAMES[number];
        let snapshot = Snapshot::from_bytes(name, MANIFESTS[number], &search).unwrap();
        assert_holds(&snapshot, model);
        assert_eq!(snapshot.id().to_string(), IDS[number], "{name}");
        let told = description(name);
        let manifest = snapshot.manifest();
        assert_eq!(manifest.metadata.label, told.label);
        assert_eq!(manifest.metadata.created_unix_ms, told.created_unix_ms);
        assert_eq!(manifest.memory_regions, told.memory_regions);
        assert_eq!(manifest.cpu_features, told.cpu_features);
        assert_eq!(manifest.working_set, told.working_set);
        assert_eq!(manifest.machine, told.machine);
        let (bytes, id) = manifest.encode().unwrap();
        assert_eq!((bytes.as_slice(), id), (MANIFESTS[number], snapshot.id()));
    }
}

#[test]
fn version_1_is_still_written() {
    let directory = tempfile::tempdir().unwrap();
    write_all(directory.path());
    // Not the compressed one: another zstd may well find other, equal compressions.
    for (number, name) in NAMES.into_iter().enumerate().take(2) {
        let read = |kind: &str| std::fs::read(directory.path().join(format!("{name}.{kind}")));
        assert!(read("manifest").unwrap() == MANIFESTS[number], "manifest of {name}");
        assert!(read("pack").unwrap() == PACKS[number], "pack of {name}");
    }
}

#[test]
#[ignore = "writes the golden files of a new format version"]
fn write_golden_files() {
    write_all(Path::new(&std::env::var("GOLDEN_DIRECTORY").unwrap()));
}
