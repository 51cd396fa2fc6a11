//! Chains of snapshots read back as the images were.

use proptest::prelude::*;

use super::machine::*;
use crate::layout::PAGE_BYTES;
use crate::*;

fn model(pages: impl IntoIterator<Item = (&'static str, u32, u64)>) -> Model {
    Model(pages.into_iter().map(|(image, page, seed)| ((image, page), seed)).collect())
}

#[test]
fn a_snapshot_reads_back_and_says_what_it_was_told() {
    let directory = tempfile::tempdir().unwrap();
    let model = model([("ram", 0, 1), ("ram", 1540, 2), ("rootfs", 512, 3), ("ram", 600, 4)]);
    let (snapshot, committed) = write(directory.path(), options(1), None, &model, &[]);
    assert_holds(&snapshot, &model);
    assert_eq!((snapshot.id(), snapshot.manifest()), (committed.id, &committed.manifest));
    let told = description("test");
    assert_eq!(snapshot.manifest().machine, told.machine);
    assert_eq!(snapshot.manifest().cpu_features, told.cpu_features);
    assert_eq!(snapshot.manifest().working_set, told.working_set);
    assert_eq!(snapshot.manifest().metadata.parent, None);
    assert_eq!(committed.statistics.written_pages, 4);
}

#[test]
fn a_diff_writes_only_the_pages_that_changed() {
    let directory = tempfile::tempdir().unwrap();
    let base = model((0..1500).map(|page| ("ram", page, u64::from(page))));
    let (parent, _) = write(directory.path(), options(1), None, &base, &[]);
    let mut changed = base.clone();
    changed.0.insert(("ram", 3), 9999);
    changed.0.insert(("ram", 700), 9998);
    changed.0.remove(&("ram", 5));
    // Given, too, though they did not change: a whole chunk, some pages, and a zero one.
    let also: Vec<_> = (160..176).chain([1000, 1001, 1520]).map(|page| ("ram", page)).collect();
    let (child, committed) =
        write(directory.path(), options(2), Some((&parent, &base)), &changed, &also);
    assert_holds(&child, &changed);
    assert_holds(&parent, &base);
    let statistics = committed.statistics;
    assert_eq!((statistics.given_pages, statistics.written_pages), (22, 2));
    assert_eq!((statistics.zero_pages, statistics.same_pages), (2, 18));
    let overhead = committed.pack_bytes - 2 * PAGE_BYTES as u64;
    assert!(overhead < 10_000, "{overhead} bytes besides the pages");
    assert_eq!(child.manifest().metadata.parent, Some(parent.id()));
}

#[test]
fn equal_content_is_stored_once_and_zeroes_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let model = model((0..1024).map(|page| ("ram", page, 5)));
    let also: Vec<_> = (1024..1500).map(|page| ("ram", page)).collect();
    let (snapshot, committed) = write(directory.path(), options(1), None, &model, &also);
    assert_holds(&snapshot, &model);
    assert_eq!(committed.statistics.written_pages, 16);
    assert_eq!(committed.statistics.repeated_pages, 1024 - 16);
    // One chunk, one record, one header.
    assert_eq!(committed.pack_bytes, 4096 + 65536 + 32 * 52);
}

#[test]
fn zeroes_of_a_disk_are_pages_as_others_and_are_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let base = model([("rootfs", 3, 1), ("rootfs", 20, 2)]);
    let (parent, _) = write(directory.path(), options(1), None, &base, &[]);
    let pack = directory.path().join("zeroes.pack");
    let storage = std::sync::Arc::new(HostStorage);
    let mut writer = Writer::create(storage, &pack, options(2), images(), Some(&parent)).unwrap();
    let (rootfs, zeroes) = (name("rootfs"), PageSet::first(400));
    writer.put_zero(&rootfs, BlockIndex(0), &zeroes).unwrap();
    let path = directory.path().join("manifest");
    let committed = writer.commit(&path, description("zeroes")).unwrap();
    assert_eq!(committed.statistics.written_pages, 16);
    let search = PackSearch::new().directory(directory.path());
    let child = Snapshot::open(&path, &search).unwrap();
    assert_holds(&child, &model((0..400).map(|page| ("rootfs", page, ZEROES))));
    let difference = diff(&parent, &child).unwrap();
    assert_eq!(difference.images[0].page_count(), 400, "zero is not as in the base");
    // The same zeroes once more are nothing new, and stay when the chain is made short.
    let pack = directory.path().join("again.pack");
    let storage = std::sync::Arc::new(HostStorage);
    let mut writer = Writer::create(storage, &pack, options(3), images(), Some(&child)).unwrap();
    writer.put_zero(&rootfs, BlockIndex(0), &zeroes).unwrap();
    let committed = writer.commit(&path, description("again")).unwrap();
    assert_eq!(committed.statistics.written_pages, 0);
    let search = PackSearch::new().directory(directory.path());
    let compaction = Compaction {
        pack_path: &directory.path().join("compact.pack"),
        manifest_path: &directory.path().join("compact"),
        options: options(4),
        keep: [].into(),
    };
    let storage = std::sync::Arc::new(HostStorage);
    let again = Snapshot::open(&path, &search).unwrap();
    compact(&again, storage, &compaction).unwrap();
    let search = PackSearch::new().directory(directory.path());
    let compact = Snapshot::open(compaction.manifest_path, &search).unwrap();
    assert_holds(&compact, &model((0..400).map(|page| ("rootfs", page, ZEROES))));
}

#[test]
fn compressed_pages_read_back_and_take_less_room() {
    let directory = tempfile::tempdir().unwrap();
    let model = model((0..300).map(|page| ("ram", page, u64::from(page))));
    let cold = Options { compression: Some(3), ..options(1) };
    let (snapshot, committed) = write(directory.path(), cold, None, &model, &[]);
    assert_holds(&snapshot, &model);
    assert!(committed.pack_bytes < 300 * PAGE_BYTES as u64 / 4, "{}", committed.pack_bytes);
}

#[test]
fn a_layer_that_nothing_refers_to_is_given_up_and_its_slot_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let one = model([("ram", 0, 1), ("ram", 600, 2)]);
    let (first, _) = write(directory.path(), options(1), None, &one, &[]);
    let two = model([("ram", 0, 3), ("ram", 600, 2)]);
    let (second, _) = write(directory.path(), options(2), Some((&first, &one)), &two, &[]);
    let three = model([("ram", 0, 4), ("ram", 600, 5)]);
    let (third, _) = write(directory.path(), options(3), Some((&second, &two)), &three, &[]);
    let packs = |snapshot: &Snapshot| -> Vec<_> {
        snapshot.manifest().layers.iter().map(|(slot, layer)| (slot, layer.pack.0[0])).collect()
    };
    assert_eq!(packs(&second), [(0, 1), (1, 2)]);
    assert_eq!(packs(&third), [(2, 3)]);
    let four = model([("ram", 0, 4), ("ram", 600, 6)]);
    let (fourth, _) = write(directory.path(), options(4), Some((&third, &three)), &four, &[]);
    assert_eq!(packs(&fourth), [(0, 4), (2, 3)]);
    for pack in [1, 2] {
        std::fs::remove_file(directory.path().join(PackId([pack; 16]).file_name())).unwrap();
    }
    let path = directory.path().join("manifest");
    let search = PackSearch::new().directory(directory.path());
    assert_holds(&Snapshot::open(&path, &search).unwrap(), &four);
}

#[test]
fn a_chain_as_long_as_the_format_allows_is_refused_by_name_and_not_before() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let mut parent: Option<(Snapshot, Model)> = None;
    for pack in 0..layout::LAYERS_MAX as u8 {
        // In chunks of their own, because a chunk of many pieces is put together again.
        model.0.insert(("ram", u32::from(pack) * 16), pack.into());
        let base = parent.as_ref().map(|(snapshot, model)| (snapshot, model));
        let (snapshot, _) = write(directory.path(), options(pack + 1), base, &model, &[]);
        parent = Some((snapshot, model.clone()));
    }
    let (snapshot, _) = parent.unwrap();
    assert_holds(&snapshot, &model);
    let path = directory.path().join("one-more.pack");
    let storage = std::sync::Arc::new(HostStorage);
    let refused = Writer::create(storage, &path, options(99), images(), Some(&snapshot));
    assert!(matches!(refused.err(), Some(WriteError::TooManyLayers)));
    assert!(!path.exists());
}

#[test]
fn the_largest_image_there_can_be_costs_what_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = layout::IMAGE_BYTES_MAX;
    let image = Image { kind: ImageKind::Disk, name: name("big"), bytes };
    let (pack, path) = (directory.path().join("a.pack"), directory.path().join("manifest"));
    let storage = std::sync::Arc::new(HostStorage);
    let mut writer = Writer::create(storage, &pack, options(1), vec![image], None).unwrap();
    let last = BlockIndex(layout::block_count(bytes) - 1);
    let mut pages = PageSet::EMPTY;
    pages.insert(layout::PAGES_PER_BLOCK - 1);
    writer.put_block(&name("big"), last, &pages, &content(1)).unwrap();
    let mut told = description("big");
    told.memory_regions.clear();
    told.working_set.clear();
    let committed = writer.commit(&path, told).unwrap();
    assert!(committed.pack_bytes + committed.manifest_bytes < 10_000);
    let snapshot = Snapshot::open(&path, &PackSearch::new().file(&pack)).unwrap();
    let mut reader = snapshot.image(&name("big")).unwrap();
    assert_eq!(reader.pages(last).unwrap(), pages);
    let mut out = [0; layout::CHUNK_BYTES];
    reader.load_chunk(last.chunk(31), &mut out).unwrap();
    assert!(out[15 * PAGE_BYTES..] == content(1));
    assert!(reader.pages(BlockIndex(last.0 + 1)).is_err());
}

#[test]
fn a_chunk_that_changes_in_every_snapshot_stays_in_few_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = model((0..16).map(|page| ("ram", page, u64::from(page))));
    let (mut parent, _) = write(directory.path(), options(1), None, &model, &[]);
    for pack in 2..16 {
        let before = model.clone();
        model.0.insert(("ram", u32::from(pack)), 100 + u64::from(pack));
        let base = Some((&parent, &before));
        let (child, _) = write(directory.path(), options(pack), base, &model, &[]);
        let pieces = child.memory().unwrap().pieces(BlockIndex(0)).unwrap().len();
        assert!(pieces <= 5, "{pieces} pieces");
        assert_holds(&child, &model);
        parent = child;
    }
}

/// Numbers of pages, near each other so that chunks are shared.
fn page() -> impl Strategy<Value = (&'static str, u32)> {
    prop_oneof![
        6 => (0_u32..40).prop_map(|page| ("ram", page)),
        2 => (500_u32..530).prop_map(|page| ("ram", page)),
        1 => (1530_u32..1541).prop_map(|page| ("ram", page)),
        1 => (505_u32..513).prop_map(|page| ("rootfs", page)),
    ]
}

/// What happens to a page: it becomes zero, or gets one of a few contents, so that some repeat.
fn step() -> impl Strategy<Value = Vec<((&'static str, u32), Option<u64>)>> {
    prop::collection::vec((page(), prop::option::weighted(0.8, 0_u64..30)), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_chains_read_back(
        steps in prop::collection::vec((step(), prop::collection::vec(page(), 0..20)), 1..9),
        compression in prop::option::of(1_i32..4),
        digests in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut chain: Vec<(Snapshot, Model)> = Vec::new();
        let mut model = Model::default();
        for (number, (changes, also)) in steps.iter().enumerate() {
            for (key, seed) in changes {
                match seed {
                    Some(seed) => model.0.insert(*key, *seed),
                    None if key.0 == "rootfs" => model.0.insert(*key, ZEROES),
                    None => model.0.remove(key),
                };
            }
            // A page of a disk that is given is there.
            for key in also.iter().filter(|key| key.0 == "rootfs") {
                model.0.entry(*key).or_insert(ZEROES);
            }
            let compare = if digests { Compare::Digests } else { Compare::Pages };
            let options = Options { compression, compare, ..options(number as u8 + 1) };
            let parent = chain.last().map(|(snapshot, model)| (snapshot, model));
            let (snapshot, _) = write(directory.path(), options, parent, &model, also);
            chain.push((snapshot, model.clone()));
        }
        for (snapshot, model) in &chain {
            assert_holds(snapshot, model);
        }
    }
}
