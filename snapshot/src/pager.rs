//! Lazy loading: a machine runs before its memory is there, and each page comes when it is touched
//! or a little before.
//!
//! ```text
//!  vCPU, device, KVM ──touches a missing page──▶ kernel ──event──▶ the pager's thread
//!          ▲                                                          │ its chunk, verified
//!          └──────woken──── kernel ◀──UFFDIO_COPY, UFFDIO_ZEROPAGE────┤
//!                                                                     └◀ PageSource
//! ```
//! Between faults the thread goes on with what is likely to be touched next ([`Plan`](plan::Plan)).
//! It takes no lock that a thread which waits for it could hold, and allocates nothing for a fault.
//!
//! A page that cannot be loaded never becomes a page of zeroes. The thread calls the hook that ends
//! the machine, and whoever waits for a page keeps waiting until then. If the owner gives the
//! pager up before all is loaded, memory becomes inaccessible instead of empty.

mod content;
mod eager;
mod error;
mod pieces;
mod plan;
mod raw;
mod recording;
mod residency;
mod server;
mod space;
mod statistics;
#[cfg(test)]
mod tests;
mod userfault;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vm_memory::{GuestMemoryMmap, bitmap::Bitmap};

use self::{
    content::{DataMap, Stage, chunk_count},
    plan::Plan,
    recording::Recording,
    server::{Server, Shared},
    space::{Piece, Space},
    statistics::Statistics,
    userfault::LazyMemory,
};
pub use self::{
    eager::{LoadError, load_all},
    error::{PagerError, StartError},
    plan::{ChunkRun, Reach},
    recording::{RECORDED_CHUNKS_MAX, Touch},
    residency::Residency,
    space::SpaceError,
    statistics::Counts,
    userfault::{Userfault, UserfaultError},
};
use crate::{
    layout::{BlockIndex, CHUNK_BYTES, CHUNKS_PER_BLOCK},
    source::PageSource,
};

/// How memory is loaded.
#[derive(Debug, Default)]
pub struct Options {
    /// What is loaded ahead of faults, in this order. What is not in the image is left out.
    pub working_set: Vec<ChunkRun>,
    /// What is loaded besides.
    pub reach: Reach,
    /// Remember what is touched, for [`Pager::touches`]. What is loaded ahead of its touch is not
    /// seen: record with no working set and [`Reach::Chunk`].
    pub is_recording: bool,
}

/// Serves the page faults of one machine's RAM, from its start until all is loaded or it is dropped.
pub struct Pager {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Server>>,
}

impl Pager {
    /// Takes over all of guest RAM, which has to be private anonymous memory, and loads it from
    /// `source` when it is touched. What it holds so far is forgotten.
    ///
    /// Call it before anything touches guest memory: before vCPUs, devices and the restore of the
    /// interrupt controller, though memory slots of KVM may exist. `on_failure` is called from the
    /// pager's thread if memory cannot be loaded, once. It has to end the process, or see to it that
    /// somebody does at once: those who wait for memory wait on.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start<B: Bitmap + Clone + Send + Sync + 'static>(
        memory: &GuestMemoryMmap<B>,
        source: Box<dyn PageSource>,
        userfault: Userfault,
        options: Options,
        on_failure: impl FnOnce(PagerError) + Send + 'static,
    ) -> Result<Self, StartError> {
        let space = Space::of(memory)?;
        check(&space, &*source)?;
        let blocks = space.block_count();
        let chunks = chunk_count(space.bytes());
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            statistics: Statistics::default(),
            residency: Residency::new(blocks),
            recording: options.is_recording.then(|| Recording::new(blocks)),
            is_stopping: AtomicBool::new(false),
            is_complete: AtomicBool::new(false),
            stop: stop.map_err(|error| StartError::Thread(error.into()))?,
        });
        let pieces = pieces::with_data(&space, |block| source.has_data(block));
        let server = Server {
            data: known_zeroes(&space, &pieces, &shared.residency),
            pieces,
            memory: LazyMemory::new(userfault, space),
            source,
            plan: Plan::new(options.working_set, options.reach, chunks),
            ahead: Stage::new(),
            fault: Stage::new(),
            shared: Arc::clone(&shared),
        };
        register(&server)?;
        let thread = thread::Builder::new()
            .name("pager".to_owned())
            .spawn(move || serve(server, on_failure))
            .map_err(StartError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What was done so far, in numbers.
    pub fn counts(&self) -> Counts {
        self.shared.statistics.counts()
    }

    /// What of the image is in memory.
    pub fn residency(&self) -> &Residency {
        &self.shared.residency
    }

    /// Whether all of the image is in memory. Then the pager has nothing to do any more.
    pub fn is_complete(&self) -> bool {
        self.shared.is_complete.load(Ordering::Acquire)
    }

    /// The chunks that were touched, in order of their first touch, if that is being recorded; at
    /// most [`RECORDED_CHUNKS_MAX`].
    pub fn touches(&self) -> Vec<Touch> {
        self.shared.recording.as_ref().map(Recording::touches).unwrap_or_default()
    }
}

/// Ends the thread. If not all is loaded, an access to any guest memory is an error from now on,
/// since it could be to a page that nobody would load any more.
impl Drop for Pager {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        // It fails only when it is full, and then it has been written.
        let _ = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes());
        let server = self.thread.take().map(JoinHandle::join);
        let Some(Ok(server)) = server else { return };
        if self.is_complete() {
            return;
        }
        for piece in &server.pieces {
            if server.memory.space().seal(*piece).is_err() {
                // The userfaultfd is about to close, and every missing page to read as zeroes.
                std::process::abort();
            }
        }
    }
}

impl std::fmt::Debug for Pager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

/// The thread. Its userfaultfd has to stay open as long as somebody may wait for a page.
fn serve(mut server: Server, on_failure: impl FnOnce(PagerError)) -> Server {
    let guard = AbortOnPanic;
    if let Err(error) = server.run() {
        on_failure(error);
        wait_for_end(&server.shared);
    }
    std::mem::forget(guard);
    server
}

fn wait_for_end(shared: &Shared) {
    while !shared.is_stopping.load(Ordering::Acquire) {
        // The only error is an interruption.
        let _ = poll(&mut [PollFd::new(&shared.stop, PollFlags::IN)], None);
    }
}

/// A panic would unwind and close the userfaultfd, and every missing page would read as zeroes.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

fn check(space: &Space, source: &dyn PageSource) -> Result<(), StartError> {
    let page_bytes = rustix::param::page_size();
    if page_bytes > CHUNK_BYTES {
        return Err(StartError::HostPage { page_bytes });
    }
    let (ram_bytes, image_bytes) = (space.bytes(), source.image_bytes());
    if ram_bytes != image_bytes {
        return Err(StartError::Length { ram_bytes, image_bytes });
    }
    Ok(())
}

/// What is in no piece is zero: the kernel's, and as good as loaded.
fn known_zeroes(space: &Space, pieces: &[Piece], residency: &Residency) -> DataMap {
    let mut data = DataMap::new(space.block_count());
    let mut pieces = pieces.iter().peekable();
    for block in (0..space.block_count()).map(BlockIndex) {
        while pieces.next_if(|piece| piece.end_bytes() <= block.offset_bytes()).is_some() {}
        if pieces.peek().is_none_or(|piece| piece.offset_bytes > block.offset_bytes()) {
            data.learn(block, 0);
            residency
                .set_loaded(ChunkRun { first: block.chunk(0), count: CHUNKS_PER_BLOCK as u32 });
        }
    }
    data
}

fn register(server: &Server) -> Result<(), StartError> {
    let error = |attempt, piece: &Piece, source: io::Error| {
        let address = server.memory.space().guest(piece.offset_bytes);
        StartError::Memory { attempt, address, source }
    };
    let space = server.memory.space();
    for piece in &space.pieces().collect::<Vec<_>>() {
        space.clear(*piece).map_err(|source| error("clear", piece, source))?;
    }
    for piece in &server.pieces {
        server.memory.register(*piece).map_err(|source| error("load lazily", piece, source))?;
    }
    Ok(())
}
