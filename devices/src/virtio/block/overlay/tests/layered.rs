//! An overlay above the disk of a snapshot.

use std::fs;
use std::sync::Arc;

use rotifer_snapshot::{
    Architecture, Description, DiskBase, HostStorage, Image, ImageKind, Name, Options, PackSearch,
    Snapshot, Writer, report,
};
use tempfile::TempDir;

use super::*;

/// Reaches into a third block of a snapshot.
const LARGE_SECTORS: u64 = 2 * 4096 + 100;

/// Snapshots of one disk, each on top of the one before.
struct Chain {
    image: File,
    directory: TempDir,
    last: Option<Snapshot>,
    sectors: u64,
}

impl Chain {
    fn new(sectors: u64) -> Self {
        let (image, directory) = (base_image(sectors), tempfile::tempdir().unwrap());
        Self { image, directory, last: None, sectors }
    }

    fn name() -> Name {
        Name::new("disk").unwrap()
    }

    /// Writes what the overlay has.
    fn save(&mut self, rig: &mut Rig) {
        rig.overlay.settle().unwrap();
        let file = rig.overlay.file().unwrap();
        let frozen = file.freeze().unwrap();
        let options = Options::new().unwrap();
        let pack = self.directory.path().join(options.pack.file_name());
        let bytes = self.sectors * SECTOR_BYTES;
        let image = Image { kind: ImageKind::Disk, name: Self::name(), bytes };
        let (storage, parent) = (Arc::new(HostStorage), self.last.as_ref());
        let mut writer = Writer::create(storage, &pack, options, vec![image], parent).unwrap();
        for (block, Pages { data, zero }) in frozen.blocks() {
            let mut content = vec![0; data.count() * BLOCK_BYTES as usize];
            frozen.read(block, &data, &mut content).unwrap();
            writer.put_block(&Self::name(), block, &data, &content).unwrap();
            writer.put_zero(&Self::name(), block, &zero).unwrap();
        }
        let path = self.directory.path().join("snapshot");
        writer.commit(&path, description()).unwrap();
        let search = PackSearch::new().directory(self.directory.path());
        self.last = Some(Snapshot::open(&path, &search).unwrap());
    }

    fn layer(&self) -> Layer {
        let snapshot = self.last.as_ref().unwrap();
        let source = Box::new(snapshot.image(&Self::name()).unwrap());
        let base = DiskBase::of(&self.image, self.sectors * SECTOR_BYTES).unwrap();
        Layer { snapshot: snapshot.id(), base, source }
    }

    fn above(&self, path: &Path) -> Result<Overlay, OverlayError> {
        Overlay::above(self.layer(), base(&self.image), path, Cache::Writeback)
    }

    /// A disk of a restored machine.
    fn restore(&self) -> Rig {
        let overlay = self.above(NamedTempFile::new().unwrap().path()).unwrap();
        overlay.file().unwrap().begin().unwrap();
        Rig::of(overlay)
    }
}

fn description() -> Description {
    Description {
        architecture: Architecture::Aarch64,
        created_unix_ms: 0,
        label: String::new(),
        memory_regions: Vec::new(),
        cpu_features: Vec::new(),
        working_set: Vec::new(),
        machine: Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_goes_on_above_its_snapshot_as_often_as_it_is_saved(
        lives in prop::collection::vec(deals(), 2..5),
    ) {
        let mut chain = Chain::new(SECTORS);
        let mut model = fresh_model();
        let mut rig = Rig::new(&chain.image, &tempfile::tempfile().unwrap(), Cache::Writeback);
        for deals in &lives {
            for one in deals {
                deal(&mut rig, &mut model, one);
                prop_assert_eq!(rig.read_all(SECTORS), now(&model));
            }
            chain.save(&mut rig);
            rig = chain.restore();
            prop_assert_eq!(rig.read_all(SECTORS), now(&model));
        }
        let base = Rig::new(&chain.image, &tempfile::tempfile().unwrap(), Cache::Unsafe);
        prop_assert_eq!({ base }.read_all(SECTORS), now(&fresh_model()));
    }
}

#[test]
fn pages_of_snapshot_and_base_are_told_apart_across_chunks_and_blocks() {
    let mut chain = Chain::new(LARGE_SECTORS);
    let mut expected: Vec<u8> = (0..LARGE_SECTORS).map(base_byte).collect();
    let mut rig = Rig::new(&chain.image, &tempfile::tempfile().unwrap(), Cache::Writeback);
    // The ends of chunks (128 sectors) and blocks (4096), a hole of zeroes, and the end of the disk.
    let writes = [(120, 16, 1), (1000, 8, 2), (4090, 10, 3), (LARGE_SECTORS - 3, 3, 4)];
    for (first, count, byte) in writes {
        rig.write(Range { first, count }, byte);
        expected[first as usize..(first + count) as usize].fill(byte);
    }
    rig.overlay.write_zeroes(Range { first: 200, count: 900 }.extent()).unwrap();
    expected[200..1100].fill(0);
    chain.save(&mut rig);
    let mut rig = chain.restore();
    for (first, count) in [(0, 1500), (1001, 30), (4000, 1000), (8000, LARGE_SECTORS - 8000)] {
        let bytes = rig.read(Range { first, count });
        for (sector, bytes) in (first as usize..).zip(bytes.chunks(SECTOR_BYTES as usize)) {
            assert_eq!(uniform(bytes), Some(expected[sector]), "sector {sector}");
        }
    }
}

#[test]
fn damage_of_a_snapshot_is_an_error_that_names_it_and_never_what_the_base_has() {
    let mut chain = Chain::new(SECTORS);
    let mut rig = Rig::new(&chain.image, &tempfile::tempfile().unwrap(), Cache::Writeback);
    rig.write(Range { first: 8, count: 8 }, 5);
    chain.save(&mut rig);
    let pack = fs::read_dir(chain.directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let pack = { pack }.find(|path| path.extension().is_some_and(|it| it == "pack")).unwrap();
    let file = File::options().write(true).open(&pack).unwrap();
    file.write_all_at(&[6], 4096 + 100).unwrap();
    let mut rig = chain.restore();
    let page = Range { first: 8, count: 1 };
    let segments = Rig::segments(page.extent().len);
    for _ in 0..2 {
        let error = rig.overlay.read(&rig.memory, &segments, 0, page.extent()).unwrap_err();
        let (text, snapshot) = (report(&error), chain.last.as_ref().unwrap().id().to_string());
        let pack = pack.file_stem().unwrap().to_str().unwrap();
        for part in [&snapshot, pack, "load page 1 of image disk", "digest"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    rig.overlay.write(&rig.memory, &segments, 0, page.extent()).unwrap_err();
    assert_eq!(uniform(&rig.read(Range { first: 0, count: 1 })), Some(base_byte(0)));
    rig.write(Range { first: 8, count: 8 }, 7);
    assert_eq!(uniform(&rig.read(page)), Some(7), "what is written anew is there");
}

/// An overlay with a page of data, in a file with a name.
fn old_overlay(chain: &mut Chain) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let mut rig = Rig::new(&chain.image, file.as_file(), Cache::Writeback);
    rig.write(Range { first: 8, count: 8 }, 5);
    rig.overlay.flush().unwrap();
    chain.save(&mut rig);
    file
}

#[test]
fn the_old_overlay_is_there_until_the_new_one_begins() {
    let mut chain = Chain::new(SECTORS);
    let old = old_overlay(&mut chain);
    let before = fs::read(old.path()).unwrap();
    let overlay = chain.above(old.path()).unwrap();
    let error = chain.above(old.path()).unwrap_err();
    assert!(matches!(error, OverlayError::InUse { .. }), "a living machine has it: {error}");
    let file = overlay.file().unwrap();
    drop(overlay);
    assert!(fs::read(old.path()).unwrap() == before, "nothing was refused, and nothing begun");
    file.begin().unwrap();
    drop(file);
    // Without the snapshot it is of no use, and says so.
    let damage = refusal(&chain.image, old.as_file());
    assert_eq!(damage, Damage::OverSnapshot { snapshot: chain.layer().snapshot });
    assert!(chain.above(old.path()).is_ok());
}

#[test]
fn whatever_a_power_cut_leaves_of_a_new_overlay_is_restored_over() {
    let mut chain = Chain::new(SECTORS);
    let old = old_overlay(&mut chain);
    let before = fs::read(old.path()).unwrap();
    let file = chain.above(old.path()).unwrap().file().unwrap();
    file.begin().unwrap();
    let deeds = file.backing.record.lock().unwrap().clone();
    drop(file);
    assert_eq!(deeds.len(), 3, "{deeds:?}");
    // Nothing of it is synced, so that any part of it may be there; but lengths are in order.
    for (done, header) in [(0, false), (1, false), (2, false), (2, true)] {
        fs::write(old.path(), &before).unwrap();
        for deed in &deeds[..done] {
            let Deed::Length(bytes) = deed else { panic!("{deed:?}") };
            old.as_file().set_len(*bytes).unwrap();
        }
        if let (true, Deed::Write(at, bytes)) = (header, &deeds[2]) {
            old.as_file().write_all_at(bytes, *at).unwrap();
        }
        let mut rig = Rig::of(chain.above(old.path()).unwrap());
        rig.overlay.file().unwrap().begin().unwrap();
        let mut expected = now(&fresh_model());
        expected[8..16].fill(5);
        assert_eq!(rig.read_all(SECTORS), expected);
    }
}

#[test]
fn what_is_no_overlay_of_the_disk_is_not_given_up_for_one() {
    let mut chain = Chain::new(SECTORS);
    drop(old_overlay(&mut chain));
    let keep = |content: &[u8]| {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        let error = report(&chain.above(file.path()).unwrap_err());
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
        assert!(fs::read(file.path()).unwrap() == content);
        error
    };
    assert!(keep(b"a letter").contains("not an overlay"));
    assert!(keep(&[0; 5000]).contains("not an overlay"), "zeroes of another length");
    let mut photograph = vec![0; Places::of(SECTORS * SECTOR_BYTES).file_bytes as usize];
    photograph[4000] = 1;
    assert!(keep(&photograph).contains("not an overlay"));
    let larger = tempfile::NamedTempFile::new().unwrap();
    drop(Rig::new(&base_image(SECTORS + 1), larger.as_file(), Cache::Unsafe));
    assert!(keep(&fs::read(larger.path()).unwrap()).contains("belongs to a disk of"));
}

#[test]
fn a_fresh_overlay_of_the_largest_disk_takes_no_space_and_remembers_what_is_written() {
    use std::os::unix::fs::MetadataExt;
    let disk_bytes = 32_u64 << 30;
    let header = Header { disk_bytes, below: chain_id() };
    let places = Places::of(disk_bytes);
    let backing = Backing::new(tempfile::tempfile().unwrap());
    let mut table = Table::blank(places.block_count);
    let file = OverlayFile {
        path: "overlay".into(),
        base: tempfile::tempfile().unwrap(),
        backing: Backing::new(backing.file().try_clone().unwrap()),
        header,
        is_behind: table.is_behind(),
    };
    file.begin().unwrap();
    assert!(backing.file().metadata().unwrap().blocks() <= 64);
    let last = places.block_count - 1;
    table.set(last, BlockState::Zero);
    assert!(matches!(file.freeze(), Err(OverlayError::Behind { .. })));
    write_table(&backing, &mut table).unwrap();
    let blocks = file.freeze().unwrap().blocks();
    let pages = blocks.get(&rotifer_snapshot::BlockIndex(16383)).unwrap();
    assert_eq!((blocks.len(), pages.zero.pages().collect::<Vec<_>>()), (1, vec![511]));
}

fn chain_id() -> Option<rotifer_snapshot::SnapshotId> {
    Some(rotifer_snapshot::SnapshotId(rotifer_snapshot::Digest([7; 32])))
}
