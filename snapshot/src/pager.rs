//! Lazy loading: a machine runs before its memory is there, and each page comes when it is touched
//! or a little before.
//!
//! ```text
//!  vCPU, device, KVM ──touches a missing page──▶ kernel ──event──▶ the pager's thread
//!          ▲                                                          │ its chunk, verified
//!          └──────woken──── kernel ◀──UFFDIO_COPY, UFFDIO_ZEROPAGE────┤
//!                                                                     └◀ PageSource
//! ```
//! Between faults the thread goes on with what is likely to be touched next.
//! It takes no lock that a thread which waits for it could hold, and allocates nothing for a fault.
//!
//! A page that cannot be loaded never becomes a page of zeroes. The thread calls the hook that ends
//! the machine, and whoever waits for a page keeps waiting until then. If the owner gives the
//! pager up before all is loaded, memory becomes inaccessible instead of empty.

mod base;
mod content;
mod copying;
mod eager;
mod error;
mod local;
mod pieces;
mod plan;
mod policy;
mod raw;
mod recording;
mod residency;
mod server;
pub mod service;
mod shared_image;
mod sharing;
mod space;
mod statistics;
#[cfg(test)]
mod tests;
mod userfault;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
};

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{GuestMemoryMmap, bitmap::Bitmap};

pub use self::{
    base::Base,
    eager::{LoadError, load_all},
    error::{PagerError, StartError},
    plan::{ChunkRun, Reach},
    policy::Policy,
    recording::{RECORDED_CHUNKS_MAX, Touch, working_set},
    residency::Residency,
    shared_image::{ImageView, SharedImage, SharedImageError},
    space::SpaceError,
    statistics::Counts,
    userfault::{Userfault, UserfaultError},
};
use self::{
    content::chunk_count,
    copying::Copying,
    local::LocalMemory,
    plan::Plan,
    server::{Server, Status},
    sharing::Sharing,
    space::{Piece, Space},
    userfault::LazyMemory,
};
use crate::{
    layout::{BlockIndex, CHUNK_BYTES, PageIndex},
    manifest::PageRun,
    source::PageSource,
};

/// Where memory is loaded to.
#[derive(Debug, Default)]
pub enum Mapping {
    /// Into memory of this machine alone, save for what is in the source's [base](PageSource::base).
    #[default]
    Copy,
    /// Into an image that clones share until they write: a block at a time, and once per host. Memory
    /// that the guest gives back is the image's again, not zero.
    Shared(Arc<SharedImage>),
    /// The same, with an image that the host's pager process keeps: it serves the faults, too.
    Service(service::Image),
}

/// How memory is loaded.
#[derive(Debug, Default)]
pub struct Options {
    /// Where to.
    pub mapping: Mapping,
    /// What is loaded ahead of faults while the machine runs, in this order. What is not in the image is left out.
    pub working_set: Vec<ChunkRun>,
    /// Blocks of which the machine is known to write much. With [`Mapping::Service`] it gets all of such
    /// a block for itself at the first touch, in huge pages where the host has them: that costs an eighth
    /// of the kernel's copies, page by page. Otherwise of no effect: memory is its own anyway.
    pub written: Vec<BlockIndex>,
    /// Pages that the machine is known to write, of blocks that it shares otherwise. It gets its copies
    /// before anything runs: each would cost the guest three faults later, one to read it, one to have
    /// it copied, and one because its mapping has changed meanwhile. Otherwise of no effect.
    pub copied_ahead: Vec<PageRun>,
    /// What is loaded besides.
    pub reach: Reach,
    /// Remember what is touched, for [`Pager::touches`]. What is loaded ahead of its touch is not
    /// seen: record with no working set and [`Reach::Chunk`].
    pub is_recording: bool,
}

/// Serves the page faults of one machine's RAM, from its start until all is loaded or it is dropped.
pub struct Pager {
    status: Arc<Status>,
    local: LocalMemory,
    /// What was registered at the start.
    pieces: Vec<Piece>,
    /// None if there was nothing to load from the start.
    thread: Option<JoinHandle<Held>>,
}

/// What keeps missing pages from being zeroes, unless memory is complete.
type Held = Option<Box<dyn Send>>;

impl Pager {
    /// Takes over all of guest RAM, which has to be private anonymous memory, and loads it from
    /// `source` when it is touched. What it holds so far is forgotten. `userfault` is asked for if anything
    /// is to be loaded at all.
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
        userfault: impl FnOnce() -> Result<Userfault, UserfaultError>,
        options: Options,
        on_failure: impl FnOnce(PagerError) + Send + 'static,
    ) -> Result<Self, StartError> {
        let local = LocalMemory::of(memory)?;
        let space = local.space();
        check(space, &*source)?;
        let Options { mapping, working_set, written, copied_ahead, reach, is_recording } = options;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = stop.map_err(|error| StartError::Thread(error.into()))?;
        let status = Status::new(space.block_count(), is_recording, stop);
        let data = pieces::with_data(space, |block| source.has_data(block));
        clear(&local)?;
        let pieces = match &mapping {
            Mapping::Copy => map_base(&local, data, &*source)?,
            Mapping::Shared(image) => map(&local, &data, image.view(), &[])?,
            Mapping::Service(image) => map(&local, &data, image.view(), &written)?,
        };
        mark_others(space, &pieces, &status.residency);
        if !matches!(mapping, Mapping::Copy) {
            copy_ahead(&local, &copied_ahead, |block| {
                status.residency.loaded_chunks(block) != 0 && source.has_data(block)
            });
        }
        if pieces.is_empty() {
            status.is_complete.store(true, Ordering::Release);
            return Ok(Self { status, local, pieces, thread: None });
        }
        let memory = LazyMemory::new(userfault()?, space.clone());
        register(&local, &memory, &pieces, !matches!(mapping, Mapping::Copy))?;
        let (common, registered) = (Arc::clone(&status), pieces.clone());
        let plan = |list| Plan::new(list, reach, chunk_count(space.bytes()));
        let work: Box<dyn FnOnce() -> Held + Send> = match mapping {
            Mapping::Copy => {
                let plan = plan(working_set);
                let local = local.clone();
                let policy = Copying::new(local, memory, registered, source, plan, common);
                let server = Server { policy: Box::new(policy), status: Arc::clone(&status) };
                Box::new(move || held(serve(server, on_failure)))
            }
            Mapping::Shared(image) => {
                let plan = plan(working_set);
                let policy = Sharing::new(memory, registered, source, image, plan, common);
                let server = Server { policy: Box::new(policy), status: Arc::clone(&status) };
                Box::new(move || held(serve(server, on_failure)))
            }
            Mapping::Service(image) => {
                let wishes = service::Wishes { working_set, written, reach };
                let link = image.serve(memory, local.clone(), &registered, wishes)?;
                Box::new(move || held(link.watch(&common, on_failure)))
            }
        };
        let guarded = move || {
            let guard = AbortOnPanic;
            let held = work();
            std::mem::forget(guard);
            held
        };
        let thread = thread::Builder::new().name("pager".to_owned()).spawn(guarded);
        let thread = thread.map_err(StartError::Thread)?;
        Ok(Self { status, local, pieces, thread: Some(thread) })
    }

    /// What was done so far in this process, in numbers.
    pub fn counts(&self) -> Counts {
        self.status.statistics.counts()
    }

    /// What of the image is in memory.
    pub fn residency(&self) -> &Residency {
        &self.status.residency
    }

    /// Whether all of the image is in memory. Then the pager has nothing to do any more.
    pub fn is_complete(&self) -> bool {
        self.status.is_complete.load(Ordering::Acquire)
    }

    /// Whether touches are being recorded.
    pub fn is_recording(&self) -> bool {
        self.status.recording.is_some()
    }

    /// The chunks that were touched, in order of their first touch, if that is being recorded; at
    /// most [`RECORDED_CHUNKS_MAX`].
    pub fn touches(&self) -> Vec<Touch> {
        self.status.recording.as_ref().map_or_else(Vec::new, |it| it.touches())
    }
}

/// Ends the thread. If not all is loaded, an access to any guest memory is an error from now on,
/// since it could be to a page that nobody would load any more.
impl Drop for Pager {
    fn drop(&mut self) {
        self.status.is_stopping.store(true, Ordering::Release);
        // It fails only when it is full, and then it has been written.
        let _ = rustix::io::write(&self.status.stop, &1_u64.to_ne_bytes());
        let held = self.thread.take().map(JoinHandle::join);
        let Some(Ok(Some(_held))) = held else { return };
        for piece in &self.pieces {
            if self.local.seal(*piece).is_err() {
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

/// The thread. Its userfaultfd has to stay open as long as somebody may wait for a page, and has to be
/// closed as soon as nobody may: who gives memory back would wait for us to hear of it. So it is
/// handed on if memory is not complete.
fn serve(mut server: Server, on_failure: impl FnOnce(PagerError)) -> Option<Server> {
    if let Err(error) = server.run() {
        on_failure(error);
        server.status.wait_for_end();
    }
    (!server.status.is_complete.load(Ordering::Acquire)).then_some(server)
}

fn held(value: Option<impl Send + 'static>) -> Held {
    value.map(|value| Box::new(value) as _)
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

/// Has these pieces loaded lazily.
fn register(
    local: &LocalMemory,
    memory: &LazyMemory,
    pieces: &[Piece],
    are_of_file: bool,
) -> Result<(), StartError> {
    pieces.iter().try_for_each(|piece| {
        let registered =
            if are_of_file { memory.register_file(*piece) } else { memory.register(*piece) };
        registered.map_err(|source| refused(local, LAZY, *piece, source))
    })
}

/// The shared image in these pieces. Those blocks of it that nobody has loaded yet, or that are not to
/// be shared, have to be loaded lazily: they are returned. The rest stays private, zeroes too: a read
/// would fill a hole of the image.
fn map(
    local: &LocalMemory,
    mapped: &[Piece],
    image: &ImageView,
    written: &[BlockIndex],
) -> Result<Vec<Piece>, StartError> {
    let space = local.space();
    let (ram_bytes, image_bytes) = (space.bytes(), image.image_bytes());
    if ram_bytes != image_bytes {
        return Err(StartError::Length { ram_bytes, image_bytes });
    }
    let written: BTreeSet<_> = written.iter().copied().collect();
    let is_missing = |block| !image.is_resident(block) || written.contains(&block);
    for piece in mapped {
        local.map(*piece, image).map_err(|source| refused(local, SHARE, *piece, source))?;
    }
    Ok(pieces::within(space, mapped, is_missing))
}

/// The source's base in these pieces, as far as blocks are the same. The others have to be loaded: they are
/// returned.
fn map_base(
    local: &LocalMemory,
    data: Vec<Piece>,
    source: &dyn PageSource,
) -> Result<Vec<Piece>, StartError> {
    let Some(image) = source.base() else { return Ok(data) };
    let space = local.space();
    // Asked once: a block may come to be there meanwhile.
    let blocks = (0..space.block_count()).map(BlockIndex);
    let shared: BTreeSet<_> = blocks.filter(|block| source.is_in_base(*block)).collect();
    for piece in pieces::within(space, &data, |block| shared.contains(&block)) {
        local.map(piece, image).map_err(|source| refused(local, SHARE, piece, source))?;
    }
    Ok(pieces::within(space, &data, |block| !shared.contains(&block)))
}

/// Gives the machine its own copies of these pages where they are there to be copied: nobody serves
/// faults yet.
fn copy_ahead(local: &LocalMemory, runs: &[PageRun], is_there: impl Fn(BlockIndex) -> bool) {
    for run in runs {
        let first = PageIndex(run.first_page);
        if is_there(first.block()) {
            // A host before Linux 5.14 refuses, and works without.
            let _it_may_refuse = local.populate(Piece::of_pages(first, run.page_count));
        }
    }
}

const LAZY: &str = "load lazily";
const SHARE: &str = "map the shared image in";

fn refused(
    local: &LocalMemory,
    attempt: &'static str,
    piece: Piece,
    source: io::Error,
) -> StartError {
    StartError::Memory { attempt, address: local.space().guest(piece.offset_bytes), source }
}

fn clear(local: &LocalMemory) -> Result<(), StartError> {
    for piece in local.space().pieces() {
        local.clear(piece).map_err(|source| refused(local, "clear", piece, source))?;
    }
    Ok(())
}

/// What is in no piece needs no pager: it is as good as loaded.
fn mark_others(space: &Space, pieces: &[Piece], residency: &Residency) {
    pieces::others(space, pieces).for_each(|block| residency.set_block_loaded(block));
}
