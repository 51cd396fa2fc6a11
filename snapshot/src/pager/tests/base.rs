//! A machine that goes on after a suspend, on a host that has what it was launched from.

use std::{collections::BTreeMap, os::fd::AsFd, path::Path};

use super::{snapshot::write, *};
use crate::{
    Architecture, Compare, Description, HostStorage, Image, ImageKind, MemoryRegion, PackId,
    PackSearch, Snapshot, Writer,
    pager::{Base, ImageView, Mapping, PagerError, Reach, SharedImage},
};

use super::snapshot::BLOCKS;

/// The child's own pack.
const OWN: PackId = PackId([6; 16]);

/// What the child has written: pages, and the number that is in all of their words. Block 0 is as it was,
/// chunks 1 and 18 of block 1 and chunk 0 of block 2 are changed, and the zeroes of 3 are not all zeroes any more.
fn written() -> BTreeMap<u32, u64> {
    let (block, chunk) = (512, 16);
    [(block + chunk + 2, 70), (block + 300, 71), (2 * block + 9, 72), (3 * block + 5, 73)].into()
}

/// A snapshot on top of that of [`write`], and where its manifest is.
fn write_child(directory: &Path, parent: &Snapshot) -> Snapshot {
    let bytes = parent.memory().unwrap().image_bytes();
    let ram = Name::new("ram").unwrap();
    let image = Image { kind: ImageKind::Memory, name: ram.clone(), bytes };
    let options = crate::Options { pack: OWN, compression: None, compare: Compare::Pages };
    let pack = directory.join(OWN.file_name());
    let storage = Arc::new(HostStorage);
    let mut writer = Writer::create(storage, &pack, options, vec![image], Some(parent)).unwrap();
    for (page, number) in written() {
        let page = PageIndex(page);
        let mut pages = PageSet::EMPTY;
        pages.insert(page.in_block());
        let content: Vec<u8> = number.to_le_bytes().repeat(PAGE_BYTES / 8);
        writer.put_block(&ram, page.block(), &pages, &content).unwrap();
    }
    let description = Description {
        architecture: Architecture::Aarch64,
        created_unix_ms: 0,
        label: "child".into(),
        memory_regions: vec![MemoryRegion { guest_address: RAM_START, bytes }],
        cpu_features: Vec::new(),
        working_set: Vec::new(),
        machine: Vec::new(),
    };
    let path = directory.join("child");
    writer.commit(&path, description).unwrap();
    Snapshot::open(&path, &PackSearch::new().directory(directory)).unwrap()
}

/// A directory with both.
fn snapshots() -> (tempfile::TempDir, Snapshot, Snapshot) {
    let directory = tempfile::tempdir().unwrap();
    let parent = write(directory.path(), Vec::new());
    let child = write_child(directory.path(), &parent);
    (directory, parent, child)
}

fn check_child(memory: &Memory, page: PageIndex) {
    match written().get(&page.0) {
        Some(number) => {
            assert_eq!((read(memory, page, 0), read(memory, page, 511)), (*number, *number));
        }
        None => check(memory, page, some),
    }
}

/// The parent's image, of which these blocks are there.
fn image(parent: &Snapshot, blocks: &[u32]) -> SharedImage {
    let mut reader = parent.memory().unwrap();
    let image = SharedImage::create(&reader).unwrap();
    for block in blocks {
        image.load(BlockIndex(*block), &mut reader).unwrap();
    }
    image
}

fn view(image: &SharedImage) -> ImageView {
    let file = image.view().as_fd().try_clone_to_owned().unwrap();
    ImageView::open(file, image.view().image_bytes()).unwrap()
}

fn start_based(
    memory: &Memory,
    (parent, child): (&Snapshot, &Snapshot),
    image: &SharedImage,
    reach: Reach,
) -> Option<Pager> {
    let userfault = userfault()?;
    let base = Base::new(parent.memory().unwrap(), view(image));
    let source = base.below(child.memory().unwrap());
    let options = Options { mapping: Mapping::Copy, reach, ..Options::default() };
    let fail = |error: PagerError| panic!("{error:?}");
    Some(Pager::start(memory, source, || Ok(userfault), options, fail).unwrap())
}

/// Makes all content of a pack another one.
fn damage(pack: &Path) {
    let length = std::fs::metadata(pack).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(pack).unwrap();
    let noise = vec![0xa5; CHUNK_BYTES];
    for place in (CHUNK_BYTES as u64..length - CHUNK_BYTES as u64).step_by(CHUNK_BYTES) {
        std::os::unix::fs::FileExt::write_all_at(&file, &noise, place).unwrap();
    }
}

#[test]
fn it_sees_its_own_pages_and_those_of_the_base_and_writes_to_neither() {
    let (_directory, parent, child) = snapshots();
    let image = image(&parent, &[0, 1, 2]);
    let (first, second) = (memory(BLOCKS), memory(BLOCKS));
    let Some(pager) = start_based(&first, (&parent, &child), &image, Reach::Chunk) else { return };
    (0..512).map(PageIndex).for_each(|page| check_child(&first, page));
    assert_eq!(pager.counts().faults, 0, "block 0 is the base's, and nobody is asked for it");
    (512..1024).map(PageIndex).for_each(|page| check_child(&first, page));
    // Of block 1, two chunks are not; its first touch maps the others.
    assert_eq!(pager.counts().faults, 3);
    pages(BLOCKS).for_each(|page| check_child(&first, page));
    first.write_obj(9_u64, address_of(PageIndex(1))).unwrap();
    first.write_obj(9_u64, address_of(PageIndex(513))).unwrap();
    let Some(_other) = start_based(&second, (&parent, &child), &image, Reach::Chunk) else {
        return;
    };
    pages(BLOCKS).for_each(|page| check_child(&second, page));
}

#[test]
fn when_all_is_there_the_pager_is_not_needed_any_more() {
    let (_directory, parent, child) = snapshots();
    let image = image(&parent, &[0, 1]);
    let memory = memory(BLOCKS);
    let Some(pager) = start_based(&memory, (&parent, &child), &image, Reach::Everything) else {
        return;
    };
    wait_until("all is loaded", || pager.is_complete());
    drop(pager);
    pages(BLOCKS).for_each(|page| check_child(&memory, page));
}

#[test]
fn threads_that_touch_blocks_at_once_all_see_what_is_there_and_what_they_write() {
    let (_directory, parent, child) = snapshots();
    let image = image(&parent, &[0, 1, 2]);
    // The first touch of a block changes its mappings: again and again.
    for _ in 0..20 {
        let memory = memory(BLOCKS);
        let Some(_pager) = start_based(&memory, (&parent, &child), &image, Reach::Block) else {
            return;
        };
        std::thread::scope(|scope| {
            for part in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    for step in 0..BLOCKS * 128 {
                        // Each in an order of its own, and no page is two threads'.
                        let page = PageIndex(step * (37 + 2 * part) % (BLOCKS * 128) * 4 + part);
                        check_child(memory, page);
                        memory.write_obj(u64::from(part), address_of(page)).unwrap();
                    }
                });
            }
        });
        for page in pages(BLOCKS) {
            assert_eq!(read(&memory, page, 0), u64::from(page.0 % 4), "page {page}");
        }
    }
}

#[test]
fn what_the_base_has_is_not_read_from_the_packs() {
    let (directory, parent, child) = snapshots();
    let image = image(&parent, &[0, 1]);
    let memory = memory(BLOCKS);
    let Some(pager) = start_based(&memory, (&parent, &child), &image, Reach::Chunk) else { return };
    // The records are read before: they are in the same pack.
    let read_ahead = [512 + 16, 2 * 512].map(PageIndex);
    read_ahead.into_iter().for_each(|page| check_child(&memory, page));
    damage(&directory.path().join(crate::pager::tests::snapshot::PACK.file_name()));
    (0..2 * 512).map(PageIndex).for_each(|page| check_child(&memory, page));
    drop(pager);
}

#[test]
fn a_base_that_is_not_there_or_of_another_size_is_none() {
    let (_directory, parent, child) = snapshots();
    let memory = memory(BLOCKS);
    let Some(_pager) = start_based(&memory, (&parent, &child), &image(&parent, &[]), Reach::Chunk)
    else {
        return;
    };
    pages(BLOCKS).for_each(|page| check_child(&memory, page));
    let small = TestSource::new(BLOCKS - 1, some);
    let small = SharedImage::create(&small).unwrap();
    let base = Base::new(parent.memory().unwrap(), view(&small));
    assert!(base.below(child.memory().unwrap()).base().is_none());
}

#[test]
fn only_chunks_of_the_same_digests_are_shared() {
    let (_directory, parent, child) = snapshots();
    let image = image(&parent, &[0, 1, 2]);
    let base = Base::new(parent.memory().unwrap(), view(&image));
    let mut source = base.below(child.memory().unwrap());
    let same: Vec<_> = (0..BLOCKS).map(|block| source.base_chunks(BlockIndex(block))).collect();
    assert_eq!(same, [u32::MAX, !(1 << 1 | 1 << 18), !1, 0]);
}
