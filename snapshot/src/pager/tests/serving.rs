//! Faults are answered with the right bytes, whoever faults and however many at once.

use std::{os::fd::AsFd, sync::Barrier, thread};

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::{super::load_all, *};
use crate::pager::{Reach, StartError};

/// A small generator with a fixed seed: the same order in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32 % bound
    }
}

fn options(reach: Reach) -> Options {
    Options { reach, ..Options::default() }
}

#[test]
fn threads_that_touch_pages_at_random_see_the_image() {
    const BLOCKS: u32 = 24;
    for reach in [Reach::Chunk, Reach::Block, Reach::Everything] {
        let memory = memory(BLOCKS);
        let Some(pager) = start(&memory, TestSource::new(BLOCKS, some), options(reach)) else {
            return;
        };
        thread::scope(|scope| {
            for number in 0..6 {
                let memory = &memory;
                scope.spawn(move || {
                    let mut random = Random(0x9e37_79b9 + number);
                    for _ in 0..4000 {
                        check(memory, PageIndex(random.below(BLOCKS * 512)), some);
                    }
                });
            }
        });
        pages(BLOCKS).for_each(|page| check(&memory, page, some));
        let data = pages(BLOCKS).filter(|page| !some(*page)).count() as u64 * PAGE_BYTES as u64;
        wait_until("all is counted", || pager.counts().copied_bytes >= data);
        assert_eq!(pager.counts().copied_bytes, data, "each page is copied once: {reach:?}");
    }
}

#[test]
fn threads_that_race_for_one_page_all_get_it() {
    const THREADS: usize = 8;
    let memory = memory(8);
    let Some(pager) = start(&memory, TestSource::new(8, none), options(Reach::Chunk)) else {
        return;
    };
    let barrier = Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (memory, barrier) = (&memory, &barrier);
            scope.spawn(move || {
                for chunk in 0..256 {
                    barrier.wait();
                    // The same page, and its neighbours in the chunk.
                    check(memory, PageIndex(chunk * 16 + (chunk % 2) * number as u32), none);
                }
            });
        }
    });
    wait_until("all is loaded", || pager.is_complete());
    assert_eq!(pager.counts().copied_bytes, 8 * BLOCK_BYTES as u64);
}

#[test]
fn the_kernel_reads_and_writes_memory_that_is_not_loaded() {
    let userfault = match Userfault::open() {
        Ok(userfault) => userfault,
        Err(error) => return not_run(error),
    };
    let memory = memory(2);
    let source = Box::new(TestSource::new(2, none));
    let fail = |error| panic!("{error:?}");
    let _pager =
        Pager::start(&memory, source, || Ok(userfault), options(Reach::Chunk), fail).unwrap();
    // write(2) of two pages that are not there, into a file.
    let mut file = tempfile::tempfile().unwrap();
    let slice = memory.get_slice(address_of(PageIndex(15)), 2 * PAGE_BYTES).unwrap();
    memory.write_volatile_to(address_of(PageIndex(15)), &mut file, slice.len()).unwrap();
    let mut bytes = vec![0; 2 * PAGE_BYTES];
    assert_eq!(rustix::io::pread(file.as_fd(), &mut bytes, 0).unwrap(), bytes.len());
    assert_eq!(bytes[..8], word_of(PageIndex(15), 0).to_le_bytes());
    assert_eq!(bytes[PAGE_BYTES..][..8], word_of(PageIndex(16), 0).to_le_bytes());
    // read(2) into the middle of a page that is not there: the rest of it is the image's.
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
    let middle = GuestAddress(address_of(PageIndex(600)).0 + 800);
    memory.read_volatile_from(middle, &mut file, 16).unwrap();
    assert_eq!(read(&memory, PageIndex(600), 99), word_of(PageIndex(600), 99));
    assert_eq!(read(&memory, PageIndex(600), 100), word_of(PageIndex(15), 0));
    assert_eq!(read(&memory, PageIndex(600), 102), word_of(PageIndex(600), 102));
}

#[test]
fn a_jail_gets_its_userfaultfd_from_a_device_that_was_opened_before() {
    let device = match std::fs::File::options().read(true).write(true).open("/dev/userfaultfd") {
        Ok(device) => device,
        Err(error) => return not_run(error),
    };
    let userfault = Userfault::from_device(device.as_fd()).unwrap();
    let memory = memory(1);
    let source = Box::new(TestSource::new(1, some));
    let fail = |error| panic!("{error:?}");
    let _pager =
        Pager::start(&memory, source, || Ok(userfault), options(Reach::Chunk), fail).unwrap();
    pages(1).for_each(|page| check(&memory, page, some));
    let file = tempfile::tempfile().unwrap();
    let error = Userfault::from_device(file.as_fd()).unwrap_err();
    assert!(error.to_string().contains("handed in"), "{error}");
}

#[test]
fn memory_that_is_given_back_is_zero_whether_it_was_loaded_or_not() {
    let memory = memory(2);
    let Some(pager) = start(&memory, TestSource::new(2, none), options(Reach::Chunk)) else {
        return;
    };
    check(&memory, PageIndex(0), none);
    let unit = (rustix::param::page_size() / PAGE_BYTES) as u32;
    // Of a chunk that is loaded, of one that is not, and of both ends of a chunk.
    for first in [0, 32, 64 - unit] {
        let host = memory.get_host_address(address_of(PageIndex(first))).unwrap();
        let len_bytes = rustix::param::page_size();
        // SAFETY: the range is guest memory, which has no references.
        unsafe {
            rustix::mm::madvise(host.cast(), len_bytes, rustix::mm::Advice::LinuxDontNeed).unwrap();
        }
    }
    for page in (0..96).map(PageIndex) {
        let is_removed = [0, 32, 64 - unit].iter().any(|first| page.0 / unit == first / unit);
        let expected = if is_removed { 0 } else { word_of(page, 3) };
        assert_eq!(read(&memory, page, 3), expected, "page {page}");
        assert_eq!(pager.residency().is_removed(page), is_removed);
    }
    assert_eq!(pager.counts().removed_bytes, 3 * rustix::param::page_size() as u64);
}

#[test]
fn memory_is_given_back_while_others_fault() {
    let memory = memory(16);
    let Some(_pager) = start(&memory, TestSource::new(16, none), options(Reach::Block)) else {
        return;
    };
    thread::scope(|scope| {
        for number in 0..3 {
            let memory = &memory;
            scope.spawn(move || {
                let mut random = Random(7 + number);
                for _ in 0..3000 {
                    // The lower half is only read.
                    check(memory, PageIndex(random.below(8 * 512)), none);
                    // The upper half is given back meanwhile.
                    let page = PageIndex(8 * 512 + random.below(8 * 512));
                    let word = read(memory, page, 9);
                    assert!(word == 0 || word == word_of(page, 9), "page {page}: {word:#x}");
                }
            });
        }
        let mut random = Random(99);
        for _ in 0..2000 {
            let chunk = ChunkIndex(8 * 32 + random.below(8 * 32));
            let host = memory.get_host_address(address_of(chunk.first_page())).unwrap();
            // SAFETY: the range is guest memory, which has no references.
            unsafe {
                let advice = rustix::mm::Advice::LinuxDontNeed;
                rustix::mm::madvise(host.cast(), CHUNK_BYTES, advice).unwrap();
            }
        }
    });
}

#[test]
fn who_gives_memory_back_does_not_wait_for_a_pager_that_is_done() {
    for _ in 0..20 {
        let memory = memory(1);
        let source = TestSource::new(1, |page| page.0 > 3);
        let Some(pager) = start(&memory, source, options(Reach::Everything)) else { return };
        let host = memory.get_host_address(GuestAddress(RAM_START)).unwrap();
        // About as long as loading takes, so that some of it is the last moment.
        for _ in 0..200 {
            // SAFETY: the range is guest memory, which has no references.
            unsafe {
                let advice = rustix::mm::Advice::LinuxDontNeed;
                rustix::mm::madvise(host.cast(), CHUNK_BYTES, advice).unwrap();
            }
        }
        wait_until("all is loaded", || pager.is_complete());
    }
}

#[test]
fn memory_in_several_regions_is_one_image() {
    let ranges = [(RAM_START, 2 * BLOCK_BYTES), (RAM_START << 2, BLOCK_BYTES)];
    let ranges = ranges.map(|(start, len)| (GuestAddress(start), len));
    let memory = Memory::from_ranges(&ranges).unwrap();
    let Some(_pager) = start(&memory, TestSource::new(3, some), options(Reach::Everything)) else {
        return;
    };
    pages(2).for_each(|page| check(&memory, page, some));
    let word: u64 = memory.read_obj(GuestAddress((RAM_START << 2) + 17 * 4096)).unwrap();
    let page = PageIndex(2 * 512 + 17);
    assert_eq!(word, if some(page) { 0 } else { word_of(page, 0) });
}

#[test]
fn what_was_touched_too_early_is_forgotten() {
    let memory = memory(1);
    memory.write_obj(0xdead_u64, address_of(PageIndex(20))).unwrap();
    let Some(_pager) = start(&memory, TestSource::new(1, none), options(Reach::Chunk)) else {
        return;
    };
    pages(1).for_each(|page| check(&memory, page, none));
}

#[test]
fn an_image_of_another_length_is_refused() {
    let Some(userfault) = userfault() else { return };
    let (memory, source) = (memory(2), Box::new(TestSource::new(3, none)));
    let error =
        Pager::start(&memory, source, || Ok(userfault), Options::default(), |_| {}).unwrap_err();
    let lengths = (2 * BLOCK_BYTES as u64, 3 * BLOCK_BYTES as u64);
    assert!(
        matches!(error, StartError::Length { ram_bytes, image_bytes } if (ram_bytes, image_bytes) == lengths)
    );
}

#[test]
fn eager_loading_fills_memory_and_leaves_zeroes_to_the_kernel() {
    let memory = memory(8);
    memory.write_obj(0xdead_u64, address_of(PageIndex(3 * 512))).unwrap();
    load_all(&memory, &mut TestSource::new(8, some)).unwrap();
    pages(8).for_each(|page| check(&memory, page, some));
    let mut broken = TestSource::new(8, some);
    broken.broken = Some(ChunkIndex(67));
    let error = load_all(&memory, &mut broken).unwrap_err();
    assert_eq!(error.to_string(), "load the guest's memory at 0x80400000");
    assert_eq!(memory.iter().map(|region| region.len()).sum::<u64>(), 8 * BLOCK_BYTES as u64);
}
