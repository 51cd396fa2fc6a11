use std::sync::Arc;

use rotifer_snapshot::{HostStorage, PackSearch, Snapshot};
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::machine_state::tests::state;
use crate::snapshots::create::{begin, describe, options};

const BLOCKS: usize = 3;

/// RAM of three blocks, of which these pages begin with these numbers.
pub fn memory(pages: &[(u64, u64)]) -> GuestMemory {
    let memory = GuestMemoryMmap::from_ranges(&[(RAM_START, BLOCKS * BLOCK_BYTES)]).unwrap();
    let start = memory.get_host_address(RAM_START).unwrap();
    // A huge page would be the machine's own as a whole.
    // SAFETY: the mapping lives, and the advice changes no content.
    unsafe {
        let advice = rustix::mm::Advice::LinuxNoHugepage;
        rustix::mm::madvise(start.cast(), BLOCKS * BLOCK_BYTES, advice).unwrap();
    }
    write(&memory, pages);
    memory
}

pub fn write(memory: &GuestMemory, pages: &[(u64, u64)]) {
    for (page, number) in pages {
        memory.write_obj(*number, page_address(*page)).unwrap();
    }
}

/// The pages of a snapshot's RAM that are not zero, with the numbers that they begin with.
pub fn pages(snapshot: &Snapshot) -> Vec<(u64, u64)> {
    let mut image = snapshot.memory().unwrap();
    let mut found = Vec::new();
    for block in (0..BLOCKS as u32).map(BlockIndex) {
        let mut content = Box::new([0; BLOCK_BYTES]);
        image.load_block(block, &mut content).unwrap();
        for (index, page) in content.as_chunks::<PAGE_BYTES>().0.iter().enumerate() {
            let number = u64::from_ne_bytes(page[..8].try_into().unwrap());
            let page = u64::from(block.first_page().0) + index as u64;
            found.extend((number != 0).then_some((page, number)));
        }
    }
    found
}

fn still(memory: &GuestMemory) -> Still<'_> {
    Still { memory, state: state(), overlays: &[] }
}

pub fn copied(memory: &GuestMemory) -> Taken<'static> {
    let room = Room::for_copies(memory, &[], 1).unwrap();
    Taken::copied(still(memory), None, room).unwrap()
}

fn page_address(page: u64) -> GuestAddress {
    GuestAddress(RAM_START.0 + page * PAGE_BYTES as u64)
}

/// What was taken, as a snapshot that stands alone, with what `image` has.
fn written(directory: &std::path::Path, taken: Taken<'_>, image: Option<&Snapshot>) -> Snapshot {
    let options = options(None).unwrap();
    let (pack, manifest) = (directory.join(options.pack.file_name()), directory.join("manifest"));
    let mut writer = begin(&taken, Arc::new(HostStorage), &pack, options, None, None).unwrap();
    taken.write(&mut writer, image).unwrap();
    writer.commit(&manifest, describe(taken).unwrap()).unwrap();
    Snapshot::open(&manifest, &PackSearch::new().directory(directory)).unwrap()
}

#[test]
fn a_copy_is_the_machine_of_that_moment_whatever_it_does_later() {
    let directory = tempfile::tempdir().unwrap();
    let before = [(1, 10), (600, 20), (1535, 30)];
    let memory = memory(&before);
    let taken = copied(&memory);
    write(&memory, &[(1, 11), (2, 12), (700, 13)]);
    assert_eq!(pages(&written(directory.path(), taken, None)), before);
    let now = [(1, 11), (2, 12), (600, 20), (700, 13), (1535, 30)];
    let in_place = Taken::in_place(still(&memory), None).unwrap();
    assert_eq!(pages(&written(directory.path(), in_place, None)), now);
}

#[test]
fn what_the_machine_has_not_loaded_comes_from_the_image() {
    let directory = tempfile::tempdir().unwrap();
    // Pages in blocks 0 and 2; the machine has some of its own in 0 and 1.
    let parent = copied(&memory(&[(3, 1), (4, 2), (5, 3), (1030, 4), (1535, 5)]));
    let parent = written(directory.path(), parent, None);
    let memory = memory(&[(4, 20), (7, 21), (600, 22)]);
    let zero = page_address(5);
    memory.write_obj(0_u64, zero).unwrap();
    let host_page_bytes = rustix::param::page_size();
    if host_page_bytes != PAGE_BYTES {
        // Pages beside those that were written are the machine's own as well, and zero.
        return;
    }
    for taken in [copied(&memory), Taken::in_place(still(&memory), None).unwrap()] {
        let merged = written(directory.path(), taken, Some(&parent));
        let expected = [(3, 1), (4, 20), (7, 21), (600, 22), (1030, 4), (1535, 5)];
        assert_eq!(pages(&merged), expected);
        assert!(memory.get_host_address(page_address(1030)).is_ok());
        assert_eq!(own_bytes(&memory).unwrap(), 4 * PAGE_BYTES as u64, "nothing was loaded for it");
    }
}
