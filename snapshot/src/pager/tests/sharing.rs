//! Clones of one image see it, and not each other.

use std::{fs::File, os::fd::AsFd, thread};

use rustix::mm::{MapFlags, ProtFlags};

use vm_memory::Bytes;

use super::*;
use crate::pager::{
    ChunkRun, ImageView, Mapping, Reach, SharedImage, SharedImageError, StartError,
};

fn image(blocks: u32) -> Arc<SharedImage> {
    Arc::new(SharedImage::create(&TestSource::new(blocks, none)).unwrap())
}

fn options(image: &Arc<SharedImage>, reach: Reach) -> Options {
    Options { mapping: Mapping::Shared(Arc::clone(image)), reach, ..Options::default() }
}

#[test]
fn a_block_is_loaded_once_for_all_clones() {
    let (image, first, second) = (image(4), memory(4), memory(4));
    let source = TestSource::new(4, none);
    let log = Arc::clone(&source.log);
    let Some(pager) = start(&first, source, options(&image, Reach::Chunk)) else { return };
    check(&first, PageIndex(512 + 9), none);
    check(&first, PageIndex(512 + 400), none);
    assert!(image.view().is_resident(BlockIndex(1)) && !image.view().is_resident(BlockIndex(0)));
    assert_eq!(pager.counts().faults, 1);
    // One that was there before the block came is not asked again.
    let source = TestSource::new(4, none);
    let other_log = Arc::clone(&source.log);
    let Some(other) = start(&second, source, options(&image, Reach::Chunk)) else { return };
    pages(4).skip(512).take(512).for_each(|page| check(&second, page, none));
    assert_eq!(other.counts().faults, 0);
    // What the second one loads, the first one finds.
    pages(4).for_each(|page| check(&second, page, none));
    pages(4).for_each(|page| check(&first, page, none));
    assert_eq!((log.lock().unwrap().len(), other_log.lock().unwrap().len()), (32, 96));
}

#[test]
fn clones_that_run_at_once_see_the_image_and_their_own_writes() {
    const BLOCKS: u32 = 12;
    let image = image(BLOCKS);
    let clones: Vec<_> = (0..4).map(|_| memory(BLOCKS)).collect();
    let start =
        |memory| start(memory, TestSource::new(BLOCKS, some), options(&image, Reach::Chunk));
    let Some(pagers) = clones.iter().map(start).collect::<Option<Vec<_>>>() else { return };
    thread::scope(|scope| {
        for (number, memory) in clones.iter().enumerate() {
            for part in 0..2 {
                scope.spawn(move || {
                    // In another order than the others.
                    for step in 0..BLOCKS * 256 {
                        let page = (step * 37 + number as u32 * 500) % (BLOCKS * 256) * 2 + part;
                        let page = PageIndex(page);
                        check(memory, page, some);
                        memory.write_obj(number as u64, address_of(page)).unwrap();
                    }
                });
            }
        }
    });
    for (number, memory) in clones.iter().enumerate() {
        for page in pages(BLOCKS) {
            let expected = if some(page) { 0 } else { word_of(page, 1) };
            let found = (read(memory, page, 0), read(memory, page, 1));
            assert_eq!(found, (number as u64, expected), "page {page} of clone {number}");
        }
    }
    for pager in &pagers {
        wait_until("all is there", || pager.is_complete());
    }
    // The image has none of what they wrote.
    let file = File::from(image.view().as_fd().try_clone_to_owned().unwrap());
    let mut word = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, 17 * 4096).unwrap();
    assert_eq!(u64::from_le_bytes(word), word_of(PageIndex(17), 0));
}

#[test]
fn a_complete_image_needs_no_pager() {
    let (image, first, second) = (image(8), memory(8), memory(8));
    let loading = options(&image, Reach::Everything);
    let Some(pager) = start(&first, TestSource::new(8, some), loading) else { return };
    wait_until("all is loaded", || pager.is_complete());
    drop(pager);
    pages(8).for_each(|page| check(&first, page, some));
    let source = TestSource::new(8, some);
    let log = Arc::clone(&source.log);
    let Some(pager) = start(&second, source, options(&image, Reach::Chunk)) else { return };
    wait_until("there is nothing to load", || pager.is_complete());
    drop(pager);
    pages(8).for_each(|page| check(&second, page, some));
    assert!(log.lock().unwrap().is_empty());
}

#[test]
fn the_working_set_is_loaded_by_blocks_and_zeroes_are_not() {
    let (image, memory) = (image(8), memory(8));
    let is_zero = |page: PageIndex| page.block().0 % 2 == 1;
    let run = |first, count| ChunkRun { first: ChunkIndex(first), count };
    let working_set = vec![run(4 * 32 + 7, 2), run(32, 1), run(2 * 32, 1)];
    let options = Options { working_set, ..options(&image, Reach::Chunk) };
    let Some(pager) = start(&memory, TestSource::new(8, is_zero), options) else { return };
    let bytes = 2 * BLOCK_BYTES as u64;
    wait_until("the working set is there", || pager.counts().prefetched_bytes == bytes);
    let resident: Vec<_> =
        (0..8).filter(|block| image.view().is_resident(BlockIndex(*block))).collect();
    assert_eq!(resident, [2, 4]);
    pages(8).for_each(|page| check(&memory, page, is_zero));
    assert!(!image.view().is_resident(BlockIndex(1)), "zeroes are no part of the image");
}

#[test]
fn the_kernel_reads_and_writes_shared_memory_that_is_not_loaded() {
    let userfault = match Userfault::open() {
        Ok(userfault) => userfault,
        Err(error) => return not_run(error),
    };
    let (image, memory) = (image(2), memory(2));
    let source = TestSource::new(2, none);
    let _pager = start_with(userfault, &memory, source, options(&image, Reach::Chunk));
    let mut file = tempfile::tempfile().unwrap();
    memory.write_volatile_to(address_of(PageIndex(511)), &mut file, 2 * PAGE_BYTES).unwrap();
    let mut bytes = vec![0; 2 * PAGE_BYTES];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(bytes[..8], word_of(PageIndex(511), 0).to_le_bytes());
    assert_eq!(bytes[PAGE_BYTES..][..8], word_of(PageIndex(512), 0).to_le_bytes());
}

#[test]
fn only_its_maker_can_write_an_image() {
    let (image, memory) = (image(2), memory(2));
    let source = TestSource::new(2, none);
    let Some(_pager) = start(&memory, source, options(&image, Reach::Chunk)) else { return };
    check(&memory, PageIndex(3), none);
    let descriptor = image.view().as_fd().try_clone_to_owned().unwrap();
    let opened = ImageView::open(descriptor, image.view().image_bytes()).unwrap();
    assert!(opened.is_resident(BlockIndex(0)) && !opened.is_resident(BlockIndex(1)));
    assert!(rustix::io::pwrite(&opened, &[1], 0).is_err());
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping anywhere, which nobody uses.
    let mapped = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, MapFlags::SHARED, &opened, 0)
    };
    assert_eq!(mapped, Err(rustix::io::Errno::PERM));
}

#[test]
fn an_image_is_sealed_when_its_last_block_has_come_and_zeroes_are_no_block() {
    let (image, first, second) = (image(3), memory(3), memory(3));
    let is_sealed = || {
        let seals = rustix::fs::fcntl_get_seals(image.view()).unwrap();
        seals.contains(rustix::fs::SealFlags::WRITE)
    };
    let source = TestSource::new(3, none);
    let Some(pager) = start(&first, source, options(&image, Reach::Chunk)) else { return };
    for block in [2, 0, 2].map(BlockIndex) {
        check(&first, block.first_page(), none);
        assert!(!is_sealed(), "a block is missing");
    }
    check(&first, BlockIndex(1).first_page(), none);
    wait_until("the image is sealed", is_sealed);
    wait_until("there is nothing to load", || pager.is_complete());
    // A machine that comes later needs nobody.
    let source = TestSource::new(3, none);
    let nobody = || panic!("no userfaultfd is needed");
    let pager =
        Pager::start(&second, Box::new(source), nobody, options(&image, Reach::Chunk), |_| {});
    assert!(pager.unwrap().is_complete());
    pages(3).for_each(|page| check(&second, page, none));
    second.write_obj(7_u64, address_of(PageIndex(1))).unwrap();
    check(&first, PageIndex(1), none);
}

#[test]
fn a_file_that_could_shrink_or_has_another_length_is_no_image() {
    let bytes = 2 * BLOCK_BYTES as u64;
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * (BLOCK_BYTES as u64 + 1)).unwrap();
    let error = ImageView::open(file.into(), bytes).unwrap_err();
    assert!(matches!(error, SharedImageError::Foreign { .. }), "{error}");
    let descriptor = image(3).view().as_fd().try_clone_to_owned().unwrap();
    assert!(ImageView::open(descriptor, bytes).is_err());
    for blocks in [0, u32::MAX] {
        let error = SharedImage::create(&TestSource::new(blocks, none)).unwrap_err();
        assert!(matches!(error, SharedImageError::Length { .. }), "{error}");
    }
    let Some(userfault) = userfault() else { return };
    let (image, source) = (image(3), Box::new(TestSource::new(2, none)));
    let options = options(&image, Reach::Chunk);
    let error = Pager::start(&memory(2), source, || Ok(userfault), options, |_| {}).unwrap_err();
    assert!(matches!(error, StartError::Length { .. }), "{error}");
}
