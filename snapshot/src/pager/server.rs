//! The pager's thread: faults first, then what is likely to be touched next.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::event::{PollFd, PollFlags, poll};
use userfaultfd::{Event, EventBuffer, ReadWrite};

use super::{
    content::{DataMap, Stage, chunk_count, piece},
    error::PagerError,
    plan::{ChunkRun, Next, Plan},
    recording::Recording,
    residency::Residency,
    space::Piece,
    statistics::Statistics,
    userfault::{Filled, LazyMemory},
};
use crate::{
    layout::{CHUNKS_PER_BLOCK, ChunkIndex, PAGE_BYTES, PageIndex},
    source::{PageSource, SourceError},
};

/// Events that are read at once: more than there are threads that can wait, so that an event
/// behind their faults is always heard of.
pub(super) const EVENTS_MAX: usize = 128;

/// Zero chunks that are mapped by one call: 64 MiB, so that a fault waits for a millisecond at most.
const ZEROED_CHUNKS_MAX: u32 = 1024;

/// What the pager's thread and its owner both see.
pub(super) struct Shared {
    pub statistics: Statistics,
    pub residency: Residency,
    pub recording: Option<Recording>,
    pub is_stopping: AtomicBool,
    pub is_complete: AtomicBool,
    /// Written to end the thread.
    pub stop: OwnedFd,
}

/// Whether there was something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Worked,
    Idle,
}

/// Everything that serves faults. It lives on the pager's thread.
pub(super) struct Server {
    pub memory: LazyMemory,
    /// What is registered.
    pub pieces: Vec<Piece>,
    pub source: Box<dyn PageSource>,
    pub data: DataMap,
    pub plan: Plan,
    /// For what is loaded ahead of faults.
    pub ahead: Stage,
    /// For a fault, which does not wait for that.
    pub fault: Stage,
    pub shared: Arc<Shared>,
}

impl Server {
    /// Serves until there is nothing left to load, or the owner wants an end.
    pub fn run(&mut self) -> Result<(), PagerError> {
        let mut events = EventBuffer::new(EVENTS_MAX);
        loop {
            if self.shared.is_stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            let has_served = self.serve(&mut events)?;
            if self.data.is_exhausted() {
                return self.complete();
            }
            if self.load_ahead()? == Step::Idle && !has_served {
                self.wait()?;
            }
        }
    }

    /// Answers everything that was asked so far.
    fn serve(&mut self, buffer: &mut EventBuffer) -> Result<bool, PagerError> {
        let mut has_served = false;
        let events = match self.memory.events(buffer) {
            Ok(events) => events,
            Err(error) => return Err(PagerError::Events(error)),
        };
        for event in events {
            has_served = true;
            match event.map_err(PagerError::Events)? {
                Event::Pagefault { addr, rw, .. } => {
                    self.serve_fault(addr as usize, rw == ReadWrite::Write)?;
                }
                Event::Remove { start, end } => self.remove(start as usize, end as usize),
                event => return Err(PagerError::Unexpected { event: format!("{event:?}") }),
            }
        }
        Ok(has_served)
    }

    fn serve_fault(&mut self, host: usize, is_write: bool) -> Result<(), PagerError> {
        let Some(page) = self.memory.space().page_at(host) else {
            return Err(PagerError::Unexpected { event: format!("a fault at {host:#x}") });
        };
        let chunk = page.chunk();
        self.shared.statistics.faults.add(1);
        self.shared.statistics.write_faults.add(is_write.into());
        if let Some(recording) = &self.shared.recording {
            recording.note(chunk, is_write);
        }
        let filled = if self.shared.residency.is_loaded(chunk) {
            self.serve_loaded(page)?
        } else {
            self.plan.touched(chunk);
            self.serve_missing(page)?
        };
        // Memory is being given back, and whoever does it waits to be heard: let the thread fault
        // again instead of waiting for it.
        if filled == Filled::NotNow {
            self.wake(page)?;
        }
        Ok(())
    }

    /// The chunk is there: it came while the fault was on its way, or its page was given back.
    fn serve_loaded(&mut self, page: PageIndex) -> Result<Filled, PagerError> {
        if !self.shared.residency.is_removed(page) {
            return self.wake(page).map(|()| Filled::All);
        }
        let page = self.memory.host_page_of(page);
        self.zero(page)
    }

    fn serve_missing(&mut self, page: PageIndex) -> Result<Filled, PagerError> {
        let chunk = page.chunk();
        if self.ahead.contains(chunk) {
            return self.install_ahead();
        }
        if !self.has_data(chunk, page)? {
            let behind = CHUNKS_PER_BLOCK.saturating_sub(chunk.in_block()) as u32;
            return self.zero_chunks(ChunkRun { first: chunk, count: behind });
        }
        self.fault.clear();
        let loaded = self.fault.load(chunk, &mut *self.source);
        loaded.map_err(|source| self.source_error(page, source))?;
        install(&self.memory, &self.shared, &mut self.data, &self.fault)
    }

    /// The guest gave memory back: whatever the image says, it is zero from now on.
    fn remove(&mut self, start: usize, end: usize) {
        let pages = (start..end).step_by(PAGE_BYTES);
        let removed = pages.filter_map(|host| self.memory.space().page_at(host));
        let mut count = 0_u64;
        for page in removed {
            self.shared.residency.set_removed(page);
            count = count.saturating_add(PAGE_BYTES as u64);
        }
        self.shared.statistics.removed_bytes.add(count);
    }

    /// Loads one more chunk of the plan, or puts what was loaded into memory.
    fn load_ahead(&mut self) -> Result<Step, PagerError> {
        while let Some(Next { run, is_expected }) = self.plan.next() {
            let chunk = run.first;
            if self.shared.residency.is_loaded(chunk) || self.ahead.contains(chunk) {
                self.plan.pass(1);
                continue;
            }
            if self.has_data(chunk, chunk.first_page())? {
                if !self.ahead.accepts(chunk) {
                    break;
                }
                self.load_one_ahead(chunk)?;
                self.plan.pass(1);
                return Ok(Step::Worked);
            }
            if !is_expected {
                self.plan.pass(1);
                continue;
            }
            return self.zero_chunks(run).map(worked);
        }
        if self.ahead.run().is_none() {
            return Ok(Step::Idle);
        }
        self.install_ahead().map(worked)
    }

    fn load_one_ahead(&mut self, chunk: ChunkIndex) -> Result<(), PagerError> {
        let loaded = self.ahead.load(chunk, &mut *self.source);
        loaded.map_err(|source| self.source_error(chunk.first_page(), source))
    }

    fn install_ahead(&mut self) -> Result<Filled, PagerError> {
        let filled = install(&self.memory, &self.shared, &mut self.data, &self.ahead)?;
        if filled == Filled::All {
            self.shared.statistics.prefetched_bytes.add(self.ahead.data_bytes());
            self.ahead.clear();
        }
        Ok(filled)
    }

    fn has_data(&mut self, chunk: ChunkIndex, page: PageIndex) -> Result<bool, PagerError> {
        let has_data = self.data.has_data(chunk, &mut *self.source);
        has_data.map_err(|source| self.source_error(page, source))
    }

    fn source_error(&self, page: PageIndex, source: SourceError) -> PagerError {
        PagerError::Source { address: self.memory.space().guest(page.offset_bytes()), source }
    }

    /// Maps the zero chunks that the run begins with.
    fn zero_chunks(&mut self, run: ChunkRun) -> Result<Filled, PagerError> {
        let run = ChunkRun { first: run.first, count: run.count.min(ZEROED_CHUNKS_MAX) };
        let zeroes = self.data.zeroes(run, &self.shared.residency, &mut *self.source);
        let count = zeroes.map_err(|source| self.source_error(run.first.first_page(), source))?;
        let zeroes = ChunkRun { first: run.first, count };
        let piece = self.memory.space().in_one_region(piece(zeroes));
        let filled = self.zero(piece)?;
        if filled == Filled::All {
            let count = zeroes.count.min(chunk_count(piece.len_bytes));
            self.shared.residency.set_loaded(ChunkRun { first: run.first, count });
        }
        Ok(filled)
    }

    fn zero(&self, piece: Piece) -> Result<Filled, PagerError> {
        let filled = self.memory.zero(piece);
        if let Ok(Filled::All) = filled {
            self.shared.statistics.zeroed_bytes.add(piece.len_bytes);
        }
        filled.map_err(|source| memory_error(&self.memory, "map zeroes in", piece, source))
    }

    fn wake(&self, page: PageIndex) -> Result<(), PagerError> {
        let piece = self.memory.host_page_of(page);
        let woken = self.memory.wake(piece);
        woken.map_err(|source| memory_error(&self.memory, "wake who waits for", piece, source))
    }

    /// Nothing is left to load: from now on the kernel fills with zeroes what is missing.
    fn complete(&mut self) -> Result<(), PagerError> {
        for piece in &self.pieces {
            self.memory.unregister(*piece).map_err(|source| {
                memory_error(&self.memory, "end the lazy loading of", *piece, source)
            })?;
        }
        self.shared.is_complete.store(true, Ordering::Release);
        Ok(())
    }

    fn wait(&self) -> Result<(), PagerError> {
        let mut descriptors = [
            PollFd::new(&self.memory, PollFlags::IN),
            PollFd::new(&self.shared.stop, PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(PagerError::Wait(error.into())),
        }
    }
}

/// Who gives memory back has to run before we can go on.
fn worked(filled: Filled) -> Step {
    if filled == Filled::NotNow {
        std::thread::yield_now();
    }
    Step::Worked
}

/// Puts what is staged into memory and remembers it.
fn install(
    memory: &LazyMemory,
    shared: &Shared,
    data: &mut DataMap,
    stage: &Stage,
) -> Result<Filled, PagerError> {
    let Some(run) = stage.run() else { return Ok(Filled::All) };
    let filled = stage
        .install(memory, &shared.residency)
        .map_err(|source| memory_error(memory, "fill", piece(run), source))?;
    if filled == Filled::All {
        let zero_bytes = piece(run).len_bytes.saturating_sub(stage.data_bytes());
        shared.statistics.copied_bytes.add(stage.data_bytes());
        shared.statistics.zeroed_bytes.add(zero_bytes);
        shared.residency.set_loaded(run);
        data.loaded(run);
    }
    Ok(filled)
}

fn memory_error(
    memory: &LazyMemory,
    attempt: &'static str,
    piece: Piece,
    source: std::io::Error,
) -> PagerError {
    PagerError::Memory { attempt, address: memory.space().guest(piece.offset_bytes), source }
}
