//! What is loaded before it is touched, in which order, and what is known of touches.

use std::{
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::mpsc,
    thread,
};

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::pager::{ChunkRun, Reach};

fn run(first: u32, count: u32) -> ChunkRun {
    ChunkRun { first: ChunkIndex(first), count }
}

/// Resident kilobytes of the mapping that begins with the second block of guest memory.
fn resident_kib(memory: &Memory) -> u64 {
    let start = memory.get_host_address(address_of(PageIndex(512))).unwrap() as usize;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let begin = maps.find(&format!("{start:x}-")).unwrap();
    let line = maps[begin..].lines().find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_working_set_is_loaded_in_its_order_and_nothing_else() {
    let memory = memory(4);
    let source = TestSource::new(4, none);
    let log = Arc::clone(&source.log);
    let working_set = vec![run(40, 3), run(3, 2), run(41, 4), run(127, 99), run(9999, 1)];
    let options = Options { working_set, reach: Reach::Chunk, ..Options::default() };
    let Some(pager) = start(&memory, source, options) else { return };
    let expected = [40, 41, 42, 3, 4, 43, 44, 127];
    let bytes = (expected.len() * CHUNK_BYTES) as u64;
    wait_until("the working set is loaded", || pager.counts().prefetched_bytes == bytes);
    assert_eq!(*log.lock().unwrap(), expected);
    for chunk in expected.map(ChunkIndex) {
        check(&memory, PageIndex(chunk.first_page().0 + 5), none);
        assert!(pager.residency().is_loaded(chunk));
    }
    assert_eq!(pager.counts().faults, 0);
    assert!(!pager.residency().is_loaded(ChunkIndex(45)));
}

#[test]
fn a_fault_does_not_wait_for_the_working_set() {
    let memory = memory(4);
    let mut source = TestSource::new(4, none);
    let (open, gate) = mpsc::channel();
    source.gate = Some(gate);
    let log = Arc::clone(&source.log);
    let working_set = vec![run(0, 32)];
    let options = Options { working_set, reach: Reach::Chunk, ..Options::default() };
    let Some(userfault) = userfault() else { return };
    let descriptor = userfault.as_fd().as_raw_fd();
    let _pager = start_with(userfault, &memory, source, options);
    wait_until("the first chunk is being loaded", || log.lock().unwrap().len() == 1);
    thread::scope(|scope| {
        let reader = scope.spawn(|| check(&memory, PageIndex(100 * 16), none));
        wait_until("the fault is there", || pending_faults(descriptor) == 1);
        open.send(()).unwrap(); // the chunk ahead
        open.send(()).unwrap(); // the fault
        reader.join().unwrap();
    });
    assert_eq!(log.lock().unwrap()[..2], [0, 100]);
    drop(open);
}

/// How many wait for a page of this userfaultfd without the pager's knowing.
fn pending_faults(descriptor: RawFd) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("pending:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn the_rest_of_a_block_follows_a_fault() {
    let memory = memory(4);
    let Some(pager) = start(&memory, TestSource::new(4, none), Options::default()) else { return };
    check(&memory, PageIndex(512 + 77), none);
    wait_until("the block is there", || pager.residency().loaded_chunks(BlockIndex(1)) == u32::MAX);
    assert_eq!(pager.residency().loaded_chunks(BlockIndex(2)), 0);
}

#[test]
fn zeroes_take_no_memory_and_few_calls() {
    let memory = memory(8);
    // Every block but the first has one page that is not zero.
    let source = TestSource::new(8, |page| !page.0.is_multiple_of(512) || page.0 == 0);
    let log = Arc::clone(&source.log);
    let working_set = vec![run(1, 7 * 32 - 1)];
    let options = Options { working_set, reach: Reach::Chunk, ..Options::default() };
    let Some(pager) = start(&memory, source, options) else { return };
    wait_until("all is mapped", || {
        let counts = pager.counts();
        counts.copied_bytes + counts.zeroed_bytes == 6 * BLOCK_BYTES as u64
    });
    (1..7 * 512).map(PageIndex).for_each(|page| {
        assert_eq!(read(&memory, page, 1) == 0, !page.0.is_multiple_of(512));
    });
    let host_page_kib = rustix::param::page_size() as u64 >> 10;
    assert_eq!((pager.counts().faults, resident_kib(&memory)), (0, 6 * host_page_kib));
    assert_eq!(log.lock().unwrap().len(), 6, "zeroes are not read from anywhere");
}

#[test]
fn blocks_of_zeroes_are_the_kernels() {
    let memory = memory(64);
    let is_zero = |page: PageIndex| !page.block().0.is_multiple_of(16);
    let options = Options { reach: Reach::Chunk, ..Options::default() };
    let Some(pager) = start(&memory, TestSource::new(64, is_zero), options) else { return };
    for page in pages(64).filter(|page| is_zero(*page)) {
        assert_eq!(read(&memory, page, 1), 0);
        memory.write_obj(page.0, address_of(page)).unwrap();
    }
    assert_eq!(pager.counts().faults, 0);
    pages(64).filter(|page| !is_zero(*page)).for_each(|page| check(&memory, page, is_zero));
    wait_until("all is loaded", || pager.is_complete());
}

#[test]
fn zero_pages_between_others_are_not_copied() {
    let memory = memory(2);
    let is_zero = |page: PageIndex| page.0 / 64 % 2 == 1;
    let options = Options { reach: Reach::Everything, ..Options::default() };
    let Some(pager) = start(&memory, TestSource::new(2, is_zero), options) else { return };
    wait_until("all is loaded", || pager.is_complete());
    pages(2).for_each(|page| check(&memory, page, is_zero));
    assert_eq!(pager.counts().copied_bytes, BLOCK_BYTES as u64);
}

#[test]
fn a_complete_memory_outlives_its_pager() {
    let memory = memory(6);
    let options = Options { reach: Reach::Everything, ..Options::default() };
    let Some(pager) = start(&memory, TestSource::new(6, some), options) else { return };
    check(&memory, PageIndex(2 * 512), some);
    wait_until("all is loaded", || pager.is_complete());
    drop(pager);
    pages(6).for_each(|page| check(&memory, page, some));
}

#[test]
fn touches_are_recorded_in_order_with_what_they_were() {
    let memory = memory(4);
    let options = Options { reach: Reach::Chunk, is_recording: true, ..Options::default() };
    let Some(pager) = start(&memory, TestSource::new(4, some), options) else { return };
    for (page, is_write) in [(70 * 16, false), (2 * 16, true), (70 * 16 + 3, false), (5 * 16, true)]
    {
        let page = PageIndex(page);
        if is_write {
            memory.write_obj(1_u64, address_of(page)).unwrap();
        } else {
            check(&memory, page, some);
        }
    }
    let touches = pager.touches();
    let found: Vec<_> = touches.iter().map(|touch| (touch.chunk.0, touch.is_write)).collect();
    assert_eq!(found, [(70, false), (2, true), (5, true)]);
    assert_eq!(pager.counts().write_faults, 2);
}
