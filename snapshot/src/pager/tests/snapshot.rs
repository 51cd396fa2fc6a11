//! The way a machine really takes: a snapshot on disk, its reader, its working set, the pager.

use std::{path::Path, sync::mpsc};

use super::*;
use crate::{
    Architecture, Compare, Description, HostStorage, Image, ImageKind, MemoryRegion, PackId,
    PackSearch, PageRun, Snapshot, Writer,
    pager::{ChunkRun, PagerError, Reach},
};

pub(super) const BLOCKS: u32 = 4;
pub(super) const PACK: PackId = PackId([5; 16]);

/// Writes what [`TestSource`] says, with a working set.
pub(super) fn write(directory: &Path, working_set: Vec<PageRun>) -> Snapshot {
    let mut source = TestSource::new(BLOCKS, some);
    let bytes = source.image_bytes();
    let ram = Name::new("ram").unwrap();
    let image = Image { kind: ImageKind::Memory, name: ram.clone(), bytes };
    let options = crate::Options { pack: PACK, compression: None, compare: Compare::Pages };
    let pack = directory.join(PACK.file_name());
    let storage = Arc::new(HostStorage);
    let mut writer = Writer::create(storage, &pack, options, vec![image], None).unwrap();
    let mut buffer: Box<[u8; BLOCK_BYTES]> = vec![0; BLOCK_BYTES].try_into().unwrap();
    for block in (0..BLOCKS).map(BlockIndex) {
        let pages = source.load_block(block, &mut buffer).unwrap();
        let (all, _) = buffer.as_chunks::<PAGE_BYTES>();
        let content: Vec<u8> = pages.pages().flat_map(|page| all[page]).collect();
        writer.put_block(&ram, block, &pages, &content).unwrap();
    }
    let description = Description {
        architecture: Architecture::Aarch64,
        created_unix_ms: 0,
        label: "test".into(),
        memory_regions: vec![MemoryRegion { guest_address: RAM_START, bytes }],
        cpu_features: Vec::new(),
        working_set,
        machine: Vec::new(),
    };
    let path = directory.join("manifest");
    writer.commit(&path, description).unwrap();
    Snapshot::open(&path, &PackSearch::new().directory(directory)).unwrap()
}

fn working_set(snapshot: &Snapshot) -> Vec<ChunkRun> {
    snapshot.manifest().working_set.iter().map(ChunkRun::from).collect()
}

#[test]
fn a_recorded_run_is_the_working_set_of_the_next_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = write(directory.path(), Vec::new());
    let (first, second) = (memory(BLOCKS), memory(BLOCKS));
    let Some(userfault) = userfault() else { return };
    let recording = Options { is_recording: true, reach: Reach::Chunk, ..Options::default() };
    let fail = |error: PagerError| panic!("{error:?}");
    let source = Box::new(snapshot.memory().unwrap());
    let pager = Pager::start(&first, source, || Ok(userfault), recording, fail).unwrap();
    for page in [600, 616, 100, 3, 20].map(PageIndex) {
        check(&first, page, some);
    }
    let recorded = crate::pager::working_set(&pager.touches());
    let runs: Vec<_> = recorded.iter().map(|run| (run.first_page, run.page_count)).collect();
    // Pages 100 and 3 are in chunks that follow no other.
    assert_eq!(runs, [(592, 32), (96, 16), (0, 32)]);
    let other = tempfile::tempdir().unwrap();
    let snapshot = write(other.path(), recorded);
    let options =
        Options { working_set: working_set(&snapshot), reach: Reach::Chunk, ..Options::default() };
    let Some(userfault) = super::userfault() else { return };
    let source = Box::new(snapshot.memory().unwrap());
    let pager = Pager::start(&second, source, || Ok(userfault), options, fail).unwrap();
    wait_until("the working set is there", || {
        [37, 38, 6, 0, 1].iter().all(|chunk| pager.residency().is_loaded(ChunkIndex(*chunk)))
    });
    assert_eq!(pager.counts().faults, 0);
    pages(BLOCKS).for_each(|page| check(&second, page, some));
}

#[test]
fn a_byte_that_changed_on_disk_ends_the_machine_that_needs_it() {
    let directory = tempfile::tempdir().unwrap();
    let run = PageRun { first_page: 3 * 16, page_count: 1, written: false };
    let snapshot = write(directory.path(), vec![run]);
    let pack = directory.path().join(PACK.file_name());
    let mut bytes = std::fs::read(&pack).unwrap();
    let word = word_of(PageIndex(3 * 16 + 2), 0).to_le_bytes();
    let place = bytes.windows(8).position(|bytes| bytes == word).unwrap();
    bytes[place] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let Some(userfault) = userfault() else { return };
    let memory = memory(BLOCKS);
    let options =
        Options { working_set: working_set(&snapshot), reach: Reach::Chunk, ..Options::default() };
    let (failed, failure) = mpsc::channel();
    let fail = move |error| failed.send(error).unwrap();
    let source = Box::new(snapshot.memory().unwrap());
    let _pager = Pager::start(&memory, source, || Ok(userfault), options, fail).unwrap();
    let error = failure.recv_timeout(DEADLINE).unwrap();
    assert_eq!(error.to_string(), "load the guest's memory at 0x80030000");
    let PagerError::Source { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.snapshot, snapshot.id());
    assert!(matches!(*source.fault, Fault::Digest { .. }), "{source:?}");
}
