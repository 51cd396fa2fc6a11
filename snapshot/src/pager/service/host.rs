//! The pager's side: one thread for each machine, one image for each snapshot.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    fs::Mode,
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
        socket_with,
    },
};

use super::{
    Answer, Request, Service, ServiceError, VERSION, WORKING_SET_RUNS_MAX, WRITTEN_BLOCKS_MAX,
    Wishes, wire::Peer,
};
use crate::{
    id::{Digest, SnapshotId},
    image_reader::ImageReader,
    layout::{BLOCK_BYTES, BLOCKS_MAX, BlockIndex, ChunkIndex},
    pack::PackSearch,
    pager::{
        content::chunk_count,
        mark_others,
        plan::{ChunkRun, Plan},
        server::{Server, Status},
        shared_image::SharedImage,
        sharing::{Claims, Sharing, Spare},
        space::{Piece, Region, Space},
        userfault::{LazyMemory, Userfault},
    },
    report::report,
    snapshot::{Snapshot, read_manifest},
};

/// Machines that are served at once.
const MACHINES_MAX: usize = 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// A machine that says nothing for so long before it is served is forgotten.
const PATIENCE: Duration = Duration::from_secs(60);
/// Images that are kept though no machine uses them: each holds the files of its snapshot open.
const UNUSED_IMAGES_MAX: usize = 32;

/// What is kept of images that no machine uses, for those to come.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// At most so many bytes that are loaded; the oldest images go first.
    pub bytes: u64,
}

/// The pager of a host.
#[derive(Debug)]
pub struct Host {
    listener: OwnedFd,
    images: Arc<Images>,
    machines: Arc<AtomicUsize>,
}

impl Host {
    /// Listens at this path, for its own user. A socket that a dead pager left is replaced.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn listen(path: &Path, keep: Keep) -> Result<Self, ServiceError> {
        let failed = |error: Errno| ServiceError::Socket {
            attempt: "listen at",
            path: path.into(),
            source: error.into(),
        };
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = socket_with(family, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
        // The file gets the mode that the socket has by then.
        rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        match bind(&listener, &address) {
            Err(Errno::ADDRINUSE) => {
                if Service::connect(path).is_ok() {
                    return Err(ServiceError::Busy { path: path.into() });
                }
                rustix::fs::unlink(path).map_err(failed)?;
                bind(&listener, &address).map_err(failed)?;
            }
            bound => bound.map_err(failed)?,
        }
        listen(&listener, BACKLOG).map_err(failed)?;
        let images = Arc::new(Images { kept: Mutex::default(), keep });
        Ok(Self { listener, images, machines: Arc::default() })
    }

    /// Serves machines for as long as it can. `on_trouble` is told what is wrong with one of them,
    /// from any thread.
    ///
    /// # Errors
    /// No machine can be accepted any more.
    pub fn run(
        &self,
        on_trouble: impl Fn(&ServiceError) + Send + Sync + 'static,
    ) -> Result<(), ServiceError> {
        let on_trouble = Arc::new(on_trouble);
        loop {
            let peer = match accept_with(&self.listener, SocketFlags::CLOEXEC) {
                Ok(socket) => Peer::new(socket),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(error) => {
                    let source = error.into();
                    return Err(ServiceError::Talk { attempt: "accept", source });
                }
            };
            if self.machines.fetch_add(1, Ordering::AcqRel) >= MACHINES_MAX {
                self.machines.fetch_sub(1, Ordering::AcqRel);
                let reason = format!("it serves {MACHINES_MAX} machines already");
                let _they_may_be_gone = peer.send(&Answer::Refused { reason }, &[]);
                continue;
            }
            let (images, machines) = (Arc::clone(&self.images), Arc::clone(&self.machines));
            let on_trouble = Arc::clone(&on_trouble);
            let serve = move || {
                if let Err(error) = serve(&images, &peer) {
                    let reason = report(&error);
                    let _they_may_be_gone = peer.send(&Answer::Refused { reason }, &[]);
                    on_trouble(&error);
                }
                drop(peer);
                machines.fetch_sub(1, Ordering::AcqRel);
                images.trim();
            };
            let thread = thread::Builder::new().name("machine".to_owned()).spawn(serve);
            if let Err(source) = thread {
                self.machines.fetch_sub(1, Ordering::AcqRel);
                return Err(ServiceError::Thread(source));
            }
        }
    }
}

/// Serves one machine until it needs nothing more, or is gone.
fn serve(images: &Arc<Images>, peer: &Peer) -> Result<(), ServiceError> {
    peer.set_patience(Some(PATIENCE))?;
    let Request::Open { version, snapshot } = peer.receive().map_err(other_version)?.0 else {
        return Err(wrong("Open comes first"));
    };
    if version != VERSION {
        return Err(wrong(&format!("it speaks version {version} instead of {VERSION}")));
    }
    let wanted = SnapshotId(Digest(snapshot));
    let shared = match images.find(wanted) {
        Some(shared) => shared,
        None => images.add(ask_for_files(peer, wanted)?)?,
    };
    let Shared { image, snapshot } = shared;
    let view = image.view();
    let opened = Answer::Opened { image_bytes: view.image_bytes() };
    peer.send(&opened, &[std::os::fd::AsFd::as_fd(view)])?;

    let (request, descriptors) = match peer.receive() {
        Err(ServiceError::Gone) => return Ok(()),
        received => received?,
    };
    let source = snapshot.memory()?;
    let Request::Serve { regions, pieces, working_set, written, reach } = request else {
        return Err(wrong("Serve comes next"));
    };
    let [userfault] = <[OwnedFd; 1]>::try_from(descriptors)
        .map_err(|_| wrong("one descriptor comes with Serve"))?;
    let userfault = Userfault::from_machine(userfault)
        .map_err(|source| ServiceError::Talk { attempt: "use the userfaultfd of", source })?;
    peer.set_patience(None)?;
    let machine = Machine::new(&regions, &pieces, image)?;
    let chunks = |(first, count)| ChunkRun { first: ChunkIndex(first), count };
    let working_set = working_set.into_iter().take(WORKING_SET_RUNS_MAX).map(chunks).collect();
    let written = written.into_iter().take(WRITTEN_BLOCKS_MAX).map(BlockIndex).collect();
    let spare = spare(Arc::clone(images), Peer::new(peer.try_clone()?), wanted);
    machine.serve(peer, source, spare, userfault, Wishes { working_set, written, reach })
}

fn wrong(reason: &str) -> ServiceError {
    ServiceError::Protocol { reason: reason.into() }
}

/// Whoever speaks another version may begin with what is no message in this one.
fn other_version(error: ServiceError) -> ServiceError {
    match error {
        ServiceError::Protocol { reason } => {
            wrong(&format!("it does not begin as version {VERSION} does: {reason}"))
        }
        error => error,
    }
}

/// For when the files that the pager has are not in order: whoever brought them may have meant harm.
/// Those of the machine itself take their place.
fn spare(images: Arc<Images>, peer: Peer, wanted: SnapshotId) -> Spare {
    Box::new(move || {
        peer.set_patience(Some(PATIENCE))?;
        let snapshot = ask_for_files(&peer, wanted)?;
        peer.set_patience(None)?;
        let source = Box::new(snapshot.memory()?);
        images.replace(snapshot);
        Ok(source)
    })
}

/// Has a machine bring the files of its snapshot.
fn ask_for_files(peer: &Peer, expected: SnapshotId) -> Result<Snapshot, ServiceError> {
    peer.send(&Answer::Bring, &[])?;
    let (request, descriptors) = peer.receive()?;
    let Request::Files = request else { return Err(wrong("Files were asked for")) };
    let snapshot = open(descriptors)?;
    let found = snapshot.id();
    if found != expected {
        return Err(ServiceError::OtherSnapshot { expected, found });
    }
    Ok(snapshot)
}

/// The snapshot of these files: its manifest, and packs.
fn open(descriptors: Vec<OwnedFd>) -> Result<Snapshot, ServiceError> {
    let mut files = descriptors.into_iter().map(File::from);
    let manifest = files.next().ok_or_else(|| wrong("a manifest comes with Files"))?;
    check_file(&manifest, "manifest")?;
    let bytes = read_manifest(&manifest).map_err(talk("read the manifest of"))?;
    let mut packs = PackSearch::new();
    for (number, file) in files.enumerate() {
        let label = format!("pack {number} of a machine");
        check_file(&file, &label)?;
        packs = packs.content(&label, Arc::new(file));
    }
    Ok(Snapshot::from_bytes("that a machine handed over", &bytes, &packs)?)
}

/// Whoever reads a pipe, or a file that a process serves, waits for as long as somebody else likes.
fn check_file(file: &File, what: &str) -> Result<(), ServiceError> {
    /// `FUSE_SUPER_MAGIC` of Linux.
    const FUSE: u64 = 0x6573_5546;
    if !file.metadata().map_err(talk("use the files of"))?.is_file() {
        return Err(wrong("a snapshot is made of files"));
    }
    let system = rustix::fs::fstatfs(file);
    let system = system.map_err(|error| talk("use the files of")(error.into()))?;
    if system.f_type as u64 == FUSE {
        return Err(ServiceError::Fuse { what: what.into() });
    }
    Ok(())
}

fn talk(attempt: &'static str) -> impl Fn(io::Error) -> ServiceError {
    move |source| ServiceError::Talk { attempt, source }
}

/// A machine as it describes itself.
struct Machine {
    space: Space,
    pieces: Vec<Piece>,
    image: Arc<SharedImage>,
}

impl Machine {
    fn new(
        regions: &[Region],
        pieces: &[(u64, u64)],
        image: Arc<SharedImage>,
    ) -> Result<Self, ServiceError> {
        let space = Space::of_regions(regions)?;
        if space.bytes() != image.view().image_bytes() {
            return Err(wrong("its RAM and the image differ in length"));
        }
        let pieces: Vec<Piece> = pieces
            .iter()
            .map(|(offset_bytes, len_bytes)| Piece {
                offset_bytes: *offset_bytes,
                len_bytes: *len_bytes,
            })
            .collect();
        let are_pieces = pieces.len() <= BLOCKS_MAX
            && pieces.iter().all(|piece| {
                piece.offset_bytes.is_multiple_of(BLOCK_BYTES as u64)
                    && space.host(*piece).is_some()
            })
            && pieces.is_sorted_by(|one, two| one.end_bytes() <= two.offset_bytes);
        if !are_pieces {
            return Err(wrong("what it registered is not in its RAM"));
        }
        Ok(Self { space, pieces, image })
    }

    fn serve(
        self,
        peer: &Peer,
        source: ImageReader,
        spare: Spare,
        userfault: Userfault,
        Wishes { working_set, written, reach }: Wishes,
    ) -> Result<(), ServiceError> {
        let Self { space, pieces, image } = self;
        let plan = Plan::new(working_set, reach, chunk_count(space.bytes()));
        let status = Status::new(space.block_count(), false, peer.try_clone()?);
        mark_others(&space, &pieces, &status.residency);
        let memory = LazyMemory::new(userfault, space);
        let source = Box::new(source);
        let common = Arc::clone(&status);
        let teller = Peer::new(peer.try_clone()?);
        let tell = move |block: BlockIndex| {
            teller.send(&Answer::Claim { block: block.0 }, &[]).map_err(io::Error::other)
        };
        let claims = Claims { blocks: written.into_iter().collect(), tell: Some(Box::new(tell)) };
        let policy = Sharing::new(memory, pieces, source, image, plan, common);
        let policy = Box::new(policy.with_claims(claims).with_spare(spare));
        let mut server = Server { policy, status: Arc::clone(&status) };
        match server.run() {
            Ok(()) if status.is_complete.load(Ordering::Acquire) => {
                match peer.send(&Answer::Complete, &[]) {
                    Err(ServiceError::Gone) => Ok(()),
                    sent => sent,
                }
            }
            // The machine is gone, or says something that nobody asked.
            Ok(()) => Ok(()),
            Err(error) => {
                let reason = report(&error);
                match peer.send(&Answer::Failed { reason: reason.clone() }, &[]) {
                    // A machine that ended in the middle is no trouble.
                    Err(ServiceError::Gone) => Ok(()),
                    Err(error) => Err(error),
                    Ok(()) => {
                        // It has a userfaultfd of its own, and ends.
                        status.wait_for_end();
                        Err(ServiceError::Ended { reason })
                    }
                }
            }
        }
    }
}

/// The images, by snapshot.
#[derive(Debug)]
struct Images {
    kept: Mutex<Kept>,
    keep: Keep,
}

#[derive(Debug, Default)]
struct Kept {
    images: BTreeMap<SnapshotId, Entry>,
    /// Counts what was asked for.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    shared: Shared,
    last_use: u64,
}

/// An image, and where what is missing of it comes from.
#[derive(Debug, Clone)]
struct Shared {
    image: Arc<SharedImage>,
    snapshot: Snapshot,
}

impl Kept {
    fn find(&mut self, id: SnapshotId) -> Option<Shared> {
        let entry = self.images.get_mut(&id)?;
        self.uses = self.uses.saturating_add(1);
        entry.last_use = self.uses;
        Some(entry.shared.clone())
    }
}

impl Images {
    fn find(&self, id: SnapshotId) -> Option<Shared> {
        self.lock().find(id)
    }

    /// The image of this snapshot, which somebody else may have brought meanwhile.
    fn add(&self, snapshot: Snapshot) -> Result<Shared, ServiceError> {
        let mut kept = self.lock();
        if let Some(shared) = kept.find(snapshot.id()) {
            return Ok(shared);
        }
        let image = Arc::new(SharedImage::create(&snapshot.memory()?)?);
        let (id, shared) = (snapshot.id(), Shared { image, snapshot });
        kept.uses = kept.uses.saturating_add(1);
        let entry = Entry { shared: shared.clone(), last_use: kept.uses };
        kept.images.insert(id, entry);
        Ok(shared)
    }

    /// From now on what is missing comes from these files.
    fn replace(&self, snapshot: Snapshot) {
        if let Some(entry) = self.lock().images.get_mut(&snapshot.id()) {
            entry.shared.snapshot = snapshot;
        }
    }

    /// Forgets images that no machine uses until what is kept of them is little enough.
    fn trim(&self) {
        let mut kept = self.lock();
        let is_unused = |entry: &Entry| Arc::strong_count(&entry.shared.image) == 1;
        let mut unused: Vec<_> = kept
            .images
            .iter()
            .filter(|(_, entry)| is_unused(entry))
            .map(|(id, entry)| (entry.last_use, *id, entry.shared.image.loaded_bytes()))
            .collect();
        unused.sort_unstable_by_key(|(last_use, ..)| *last_use);
        let mut bytes: u64 = unused.iter().map(|(_, _, bytes)| bytes).sum();
        let mut count = unused.len();
        for (_, id, loaded) in unused {
            if bytes <= self.keep.bytes && count <= UNUSED_IMAGES_MAX {
                return;
            }
            bytes = bytes.saturating_sub(loaded);
            count = count.saturating_sub(1);
            kept.images.remove(&id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
