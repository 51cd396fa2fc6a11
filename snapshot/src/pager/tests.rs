//! The pager in this process: its threads are the guest.
#![allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]

mod ahead;
mod base;
mod failure;
mod service;
mod serving;
mod sharing;
mod snapshot;

use std::{
    io::Write,
    sync::{Arc, Mutex, mpsc::Receiver},
    time::{Duration, Instant},
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Options, Pager, Userfault};
use crate::{
    Digest, Fault, Name, PageSource, Place, SnapshotId, SourceError,
    layout::{
        BLOCK_BYTES, BlockIndex, CHUNK_BYTES, CHUNKS_PER_BLOCK, ChunkIndex, PAGE_BYTES, PageIndex,
    },
    page_set::PageSet,
};

/// Where the guest's RAM begins in these tests.
const RAM_START: u64 = 0x8000_0000;
/// Long enough for a machine that is busy with other things.
const DEADLINE: Duration = Duration::from_secs(60);

type Memory = GuestMemoryMmap<()>;

/// An image whose pages say which they are; some are zero.
struct TestSource {
    blocks: u32,
    is_zero: fn(PageIndex) -> bool,
    /// The chunks that were loaded, in order.
    log: Arc<Mutex<Vec<u32>>>,
    /// A chunk that cannot be loaded.
    broken: Option<ChunkIndex>,
    /// Each load waits for a message, as long as there is a sender.
    gate: Option<Receiver<()>>,
}

impl TestSource {
    fn new(blocks: u32, is_zero: fn(PageIndex) -> bool) -> Self {
        Self { blocks, is_zero, log: Arc::default(), broken: None, gate: None }
    }

    fn pages_of(&self, chunk: ChunkIndex) -> u16 {
        let first = chunk.first_page().0;
        (0..16).filter(|page| !(self.is_zero)(PageIndex(first + page))).map(|page| 1 << page).sum()
    }
}

impl PageSource for TestSource {
    fn image_bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }

    fn has_data(&self, block: BlockIndex) -> bool {
        (0..CHUNKS_PER_BLOCK).any(|chunk| self.pages_of(block.chunk(chunk)) != 0)
    }

    fn pages(&mut self, block: BlockIndex) -> Result<PageSet, SourceError> {
        let mut pages = PageSet::EMPTY;
        (0..CHUNKS_PER_BLOCK)
            .for_each(|chunk| pages.insert_chunk(chunk, self.pages_of(block.chunk(chunk))));
        Ok(pages)
    }

    fn load_chunk(
        &mut self,
        chunk: ChunkIndex,
        out: &mut [u8; CHUNK_BYTES],
    ) -> Result<u16, SourceError> {
        self.log.lock().unwrap().push(chunk.0);
        if let Some(gate) = &self.gate {
            let _the_sender_is_gone = gate.recv();
        }
        if self.broken == Some(chunk) {
            return Err(SourceError {
                snapshot: SnapshotId(Digest([0xab; 32])),
                image: Name::new("ram").unwrap(),
                page: chunk.first_page(),
                place: Place { layer: 0, pack: None, offset: 0, bytes: 0 },
                fault: Box::new(Fault::OutOfImage),
            });
        }
        let pages = self.pages_of(chunk);
        for (number, place) in out.chunks_exact_mut(PAGE_BYTES).enumerate() {
            let page = PageIndex(chunk.first_page().0 + number as u32);
            if pages >> number & 1 == 0 {
                place.fill(0);
                continue;
            }
            for (word, place) in place.chunks_exact_mut(8).enumerate() {
                place.copy_from_slice(&word_of(page, word).to_le_bytes());
            }
        }
        Ok(pages)
    }

    fn load_block(
        &mut self,
        block: BlockIndex,
        out: &mut [u8; BLOCK_BYTES],
    ) -> Result<PageSet, SourceError> {
        for (number, place) in out.as_chunks_mut().0.iter_mut().enumerate() {
            self.load_chunk(block.chunk(number), place)?;
        }
        self.pages(block)
    }
}

/// What is in a page that is not zero.
fn word_of(page: PageIndex, word: usize) -> u64 {
    (u64::from(page.0) + 1) << 32 | word as u64
}

/// No zeroes.
fn none(_page: PageIndex) -> bool {
    false
}

/// Zero pages alone, zero chunks and zero blocks.
fn some(page: PageIndex) -> bool {
    page.0.is_multiple_of(7) || page.chunk().0.is_multiple_of(5) || page.block().0 % 4 == 3
}

fn address_of(page: PageIndex) -> GuestAddress {
    GuestAddress(RAM_START + page.offset_bytes())
}

fn memory(blocks: u32) -> Memory {
    let ranges = [(GuestAddress(RAM_START), blocks as usize * BLOCK_BYTES)];
    Memory::from_ranges(&ranges).unwrap()
}

fn pages(blocks: u32) -> impl Iterator<Item = PageIndex> {
    (0..BlockIndex(blocks).first_page().0).map(PageIndex)
}

/// Reads a word of a page, as the guest does.
fn read(memory: &Memory, page: PageIndex, word: usize) -> u64 {
    memory.read_obj(GuestAddress(address_of(page).0 + word as u64 * 8)).unwrap()
}

/// Fails if the page is not what the image says, at its beginning, somewhere inside and at its end.
fn check(memory: &Memory, page: PageIndex, is_zero: fn(PageIndex) -> bool) {
    for word in [0, page.0 as usize % 512, 511] {
        let expected = if is_zero(page) { 0 } else { word_of(page, word) };
        assert_eq!(read(memory, page, word), expected, "word {word} of page {page}");
    }
}

/// The best userfaultfd that this user may have. None, and a line that says so, if it is none:
/// containers forbid them to their programs.
fn userfault() -> Option<Userfault> {
    let found = Userfault::open().or_else(|error| Userfault::user_only().map_err(|_| error));
    found.map_err(not_run).ok()
}

/// A test that cannot run must not look like one that did.
fn not_run(error: impl std::error::Error) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let _nobody_listens = writeln!(std::io::stderr(), "NOT RUN: {name}: {error} ({cause})");
}

/// A pager of which no failure is expected.
fn start(memory: &Memory, source: TestSource, options: Options) -> Option<Pager> {
    Some(start_with(userfault()?, memory, source, options))
}

fn start_with(
    userfault: Userfault,
    memory: &Memory,
    source: TestSource,
    options: Options,
) -> Pager {
    let fail = |error| {
        let _nobody_listens = writeln!(std::io::stderr(), "the pager failed: {error:?}");
        std::process::abort();
    };
    Pager::start(memory, Box::new(source), || Ok(userfault), options, fail).unwrap()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::yield_now();
    }
}
