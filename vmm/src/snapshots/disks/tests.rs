use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rotifer_devices::virtio::block::{Block, Cache, Engine, Options};
use rotifer_devices::virtio::test_driver::{Buffer, TestDriver};
use rotifer_snapshot::{
    Architecture, Committed, Description, HostStorage, Options as WriterOptions, PackSearch,
};
use tempfile::TempDir;

use super::*;
use crate::config::report;

const DISK_BYTES: u64 = (4 << 20) + 512;
const SECTOR_BYTES: usize = 512;
const DEVICE: &str = "block-a000000";

/// A disk of a machine, as one life of the machine after the other has it.
struct Rig {
    directory: TempDir,
    driver: TestDriver,
    overlay: DiskOverlay,
    /// What the guest must find.
    expected: Vec<u8>,
    lives: u8,
}

fn options(directory: &Path, lives: u8) -> Options {
    Options {
        id: "data".into(),
        path: directory.join("base"),
        read_only: false,
        cache: Cache::Writeback,
        engine: Engine::Sync,
        queue_count: 1,
        overlay: Some(directory.join(format!("overlay-{lives}"))),
    }
}

fn driver(block: Block) -> (TestDriver, DiskOverlay) {
    let file = block.overlay_file().unwrap().unwrap();
    let overlay = DiskOverlay { drive: "data".into(), device: DEVICE.into(), file };
    (TestDriver::started(Box::new(block)), overlay)
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let expected: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512 % 250) as u8 + 1).collect();
        fs::write(directory.path().join("base"), &expected).unwrap();
        let (driver, overlay) = driver(Block::open(&options(directory.path(), 0)).unwrap());
        Self { directory, driver, overlay, expected, lives: 0 }
    }

    fn request(&mut self, kind: u32, sector: u64, data: Buffer) -> (u8, u64) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let mark = self.driver.allocate(0);
        let buffers = [Buffer::Read(header), data, Buffer::Write(1)];
        let (_, at) = self.driver.submit(0, &buffers);
        self.driver.kick(0);
        self.driver.answer(0).unwrap();
        let status = self.driver.bytes(at[2], 1)[0];
        self.driver.give_back_from(mark);
        (status, at[1])
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) {
        assert_eq!(self.request(1, sector, Buffer::Read(bytes.to_vec())).0, 0);
        let start = sector as usize * SECTOR_BYTES;
        self.expected[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// What ext4 does for fstrim.
    fn discard(&mut self, sector: u64, count: u32) {
        let range = [&sector.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
        assert_eq!(self.request(11, 0, Buffer::Read(range)).0, 0);
        let start = sector as usize * SECTOR_BYTES;
        self.expected[start..start + count as usize * SECTOR_BYTES].fill(0);
    }

    fn assert_holds(&mut self) {
        let sectors_at_once = 64;
        for sector in (0..DISK_BYTES / 512).step_by(sectors_at_once) {
            let start = sector as usize * SECTOR_BYTES;
            let end = (start + sectors_at_once * SECTOR_BYTES).min(self.expected.len());
            let (status, at) = self.request(0, sector, Buffer::Write((end - start) as u32));
            assert_eq!(status, 0, "sector {sector}");
            let found = self.driver.bytes(at, end - start);
            assert!(found == self.expected[start..end], "sector {sector}");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a snapshot of the disk alone, as `create` does: on top of `parent`, or with what
    /// `origin` has.
    fn save(
        &self,
        name: &str,
        origin: Option<&Snapshot>,
        is_diff: bool,
    ) -> Result<(Snapshot, Committed), DiskError> {
        self.driver.transport.drain();
        let image = DiskImage::of(&self.overlay, origin)?;
        let options = WriterOptions::new().unwrap();
        let pack = self.path(&options.pack.file_name());
        let (images, storage) = (vec![image.image()], Arc::new(HostStorage));
        let parent = origin.filter(|_| is_diff);
        let mut writer = Writer::create(storage, &pack, options, images, parent)?;
        image.write_own(&mut writer)?;
        if let (Some(origin), false) = (origin, is_diff) {
            image.write_inherited(&mut writer, origin)?;
        }
        let description = Description {
            architecture: Architecture::Aarch64,
            created_unix_ms: 0,
            label: String::new(),
            memory_regions: Vec::new(),
            cpu_features: Vec::new(),
            working_set: Vec::new(),
            machine: vec![image.section()],
        };
        let committed = writer.commit(&self.path(name), description)?;
        let search = PackSearch::new().directory(self.directory.path());
        Ok((Snapshot::open(&self.path(name), &search)?, committed))
    }

    /// The machine's next life begins with what the snapshot has.
    fn restore(mut self, snapshot: &Snapshot) -> Self {
        self.lives += 1;
        let block = self.restored(snapshot).unwrap();
        let (driver, overlay) = driver(block);
        overlay.file.begin().unwrap();
        Self { driver, overlay, ..self }
    }

    fn restored(&self, snapshot: &Snapshot) -> Result<Block, Box<dyn std::error::Error>> {
        let mut layers = layers(snapshot)?;
        let layer = layers.remove(DEVICE).ok_or("no such disk")?;
        let options = options(self.directory.path(), self.lives);
        Ok(Block::restored(File::open(&options.path)?, &options, layer)?)
    }
}

#[test]
fn a_disk_lives_on_in_diffs_and_in_a_snapshot_that_stands_alone() {
    let mut rig = Rig::new();
    rig.write(100, &[7; 20 * 512]);
    rig.write(DISK_BYTES / 512 - 1, &[8; 512]);
    rig.discard(1000, 6000);
    let (first, committed) = rig.save("first", None, false).unwrap();
    let pages = committed.manifest.images[0].blocks.iter();
    assert_eq!(pages.map(|block| u32::from(block.page_count)).sum::<u32>(), 3 + 1 + 750);
    // Once more in the same life: the overlay has all of the first one, and hardly more is written.
    rig.write(104, &[9; 512]);
    let (second, committed) = rig.save("second", Some(&first), true).unwrap();
    assert_eq!(committed.statistics.written_pages, 1);
    let mut rig = rig.restore(&second);
    rig.assert_holds();
    rig.write(2000, &[10; 3 * 512]);
    rig.discard(96, 8);
    let (third, committed) = rig.save("third", Some(&second), true).unwrap();
    // A page that had been discarded, and one page of zeroes.
    assert_eq!(committed.statistics.given_pages, 2);
    let mut rig = rig.restore(&third);
    rig.assert_holds();
    rig.write(3, &[11; 512]);
    let (alone, committed) = rig.save("alone", Some(&third), false).unwrap();
    assert_eq!(alone.manifest().layers.iter().count(), 1, "{committed:?}");
    rig.restore(&alone).assert_holds();
}

#[test]
fn another_base_is_refused_by_its_name_and_no_file_is_touched() {
    let mut rig = Rig::new();
    rig.write(100, &[7; 512]);
    let (snapshot, _) = rig.save("snapshot", None, false).unwrap();
    rig.lives += 1;
    let refusal = |change: &dyn Fn(&File)| {
        let base = File::options().read(true).write(true).open(rig.path("base")).unwrap();
        let saved = fs::read(rig.path("base")).unwrap();
        change(&base);
        let error = report(rig.restored(&snapshot).unwrap_err().as_ref());
        fs::write(rig.path("base"), saved).unwrap();
        assert!(!rig.path("overlay-1").exists(), "nothing was made");
        for part in ["drive \"data\"", "/base", &snapshot.id().to_string()] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        error
    };
    let error = refusal(&|base| base.write_all_at(&[0], 1024 + 48).unwrap());
    assert!(error.contains("its content is another"), "{error}");
    let error = refusal(&|base| base.set_len(DISK_BYTES + 512).unwrap());
    assert!(error.contains("had 4194816 bytes, and this one has 4195328"), "{error}");
    rig.restored(&snapshot).unwrap();
}

#[test]
fn a_base_that_changes_below_a_machine_is_told_before_anything_is_written() {
    let mut rig = Rig::new();
    rig.write(100, &[7; 512]);
    let (first, _) = rig.save("first", None, false).unwrap();
    let base = File::options().write(true).open(rig.path("base")).unwrap();
    base.write_all_at(&[0], 1024 + 48).unwrap();
    let files = || fs::read_dir(rig.directory.path()).unwrap().count();
    let before = files();
    let error = rig.save("second", Some(&first), true).err().unwrap();
    assert!(matches!(error, DiskError::BaseChanged { .. }), "{error}");
    assert_eq!(files(), before);
}

#[test]
fn an_image_and_what_is_said_of_its_base_belong_together() {
    let rig = Rig::new();
    let (snapshot, committed) = rig.save("snapshot", None, false).unwrap();
    let search = PackSearch::new().directory(rig.directory.path());
    let refusal = |change: &dyn Fn(&mut rotifer_snapshot::Manifest)| {
        let mut manifest = committed.manifest.clone();
        change(&mut manifest);
        let (bytes, _) = manifest.encode().unwrap();
        let snapshot = Snapshot::from_bytes("changed", &bytes, &search).unwrap();
        report(&layers(&snapshot).unwrap_err())
    };
    assert!(refusal(&|it| it.machine.clear()).contains("nothing of what lies below it"));
    assert!(refusal(&|it| it.images.clear()).contains("has no image of it"));
    assert!(refusal(&|it| it.machine[0].bytes.push(0)).contains("1 bytes too many"));
    assert_eq!(layers(&snapshot).unwrap().into_keys().collect::<Vec<_>>(), [DEVICE]);
}
