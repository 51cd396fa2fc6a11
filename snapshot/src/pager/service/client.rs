//! The machine's side.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::atomic::Ordering,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use super::{
    Answer, Request, ServiceError, VERSION, WORKING_SET_RUNS_MAX, WRITTEN_BLOCKS_MAX, Wishes,
    wire::Peer,
};
use crate::{
    layout::BlockIndex,
    pager::{
        base::Base, error::PagerError, local::LocalMemory, server::Status, shared_image::ImageView,
        space::Piece, userfault::LazyMemory,
    },
    snapshot::{OpenError, Snapshot},
};

/// A connection to the host's pager.
#[derive(Debug)]
pub struct Service(Peer);

/// An image that the host's pager keeps.
#[derive(Debug)]
pub struct Image {
    peer: Peer,
    snapshot: Snapshot,
    view: ImageView,
}

/// What holds a machine's memory and its pager together.
pub(in crate::pager) struct Link {
    peer: Peer,
    snapshot: Snapshot,
    view: ImageView,
    /// As long as it is open, whoever touches a missing page waits.
    memory: LazyMemory,
    local: LocalMemory,
}

impl Service {
    /// Connects to the pager that listens there.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn connect(path: &Path) -> Result<Self, ServiceError> {
        let failed = |error: rustix::io::Errno| ServiceError::Socket {
            attempt: "connect to",
            path: path.into(),
            source: error.into(),
        };
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        connect(&socket, &address).map_err(failed)?;
        Ok(Self(Peer::new(socket)))
    }

    /// Gets the image of this snapshot's RAM. Its files are handed over if the pager wants them.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn open(self, snapshot: &Snapshot) -> Result<Image, ServiceError> {
        let Self(peer) = self;
        peer.send(&Request::Open { version: VERSION, snapshot: snapshot.id().0.0 }, &[])?;
        let mut answer = peer.receive()?;
        if let (Answer::Bring, _) = answer {
            bring(&peer, snapshot)?;
            answer = peer.receive()?;
        }
        match answer {
            (Answer::Opened { image_bytes }, mut files) => {
                let file = files.pop().ok_or_else(|| unexpected("no image"))?;
                let view = ImageView::open(file, image_bytes)?;
                Ok(Image { peer, snapshot: snapshot.clone(), view })
            }
            (Answer::Refused { reason }, _) => Err(ServiceError::Refused { reason }),
            (answer, _) => Err(unexpected(&format!("{answer:?}"))),
        }
    }
}

/// Hands the files of a snapshot over.
fn bring(peer: &Peer, snapshot: &Snapshot) -> Result<(), ServiceError> {
    let manifest = snapshot.file().ok_or(ServiceError::NoFile)?;
    let mut descriptors = vec![manifest.as_fd()];
    for pack in snapshot.packs() {
        descriptors.push(pack.content.descriptor().ok_or(ServiceError::NoFile)?);
    }
    peer.send(&Request::Files, &descriptors)
}

fn unexpected(what: &str) -> ServiceError {
    ServiceError::Protocol { reason: format!("it answers with {what}") }
}

impl Image {
    /// The image, for a machine of a snapshot that is based on this one. The pager does not serve it.
    ///
    /// # Errors
    /// The snapshot has no image of RAM.
    pub fn into_base(self) -> Result<Base, OpenError> {
        Ok(Base::new(self.snapshot.memory()?, self.view))
    }

    pub(in crate::pager) fn view(&self) -> &ImageView {
        &self.view
    }

    /// Has the pager serve this memory, of which `pieces` were registered.
    pub(in crate::pager) fn serve(
        self,
        memory: LazyMemory,
        local: LocalMemory,
        pieces: &[Piece],
        wishes: Wishes,
    ) -> Result<Link, ServiceError> {
        let Wishes { working_set, written, reach } = wishes;
        let working_set = working_set.iter().take(WORKING_SET_RUNS_MAX);
        let written = written.iter().take(WRITTEN_BLOCKS_MAX);
        let request = Request::Serve {
            regions: memory.space().regions(),
            pieces: pieces.iter().map(|piece| (piece.offset_bytes, piece.len_bytes)).collect(),
            working_set: working_set.map(|run| (run.first.0, run.count)).collect(),
            written: written.map(|block| block.0).collect(),
            reach,
        };
        let userfault: BorrowedFd<'_> = memory.as_fd();
        self.peer.send(&request, &[userfault])?;
        let Self { peer, snapshot, view } = self;
        Ok(Link { peer, snapshot, view, memory, local })
    }
}

impl Link {
    /// Waits until the pager is not needed any more, or is gone, or the machine ends; in the last two
    /// cases the link comes back, and has to be kept until nobody can touch memory.
    pub fn watch(self, status: &Status, on_failure: impl FnOnce(PagerError)) -> Option<Self> {
        match self.end(status) {
            Ok(()) if status.is_complete.load(Ordering::Acquire) => return None,
            Ok(()) => {}
            Err(error) => {
                on_failure(error);
                status.wait_for_end();
            }
        }
        Some(self)
    }

    fn end(&self, status: &Status) -> Result<(), PagerError> {
        loop {
            if status.is_stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            let mut descriptors =
                [PollFd::new(&self.peer, PollFlags::IN), PollFd::new(&status.stop, PollFlags::IN)];
            match poll(&mut descriptors, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(PagerError::Wait(error.into())),
            }
            let [peer, _] = descriptors;
            if peer.revents().is_empty() {
                continue;
            }
            match self.peer.receive() {
                Ok((Answer::Complete, _)) => {
                    status.is_complete.store(true, Ordering::Release);
                    return Ok(());
                }
                Ok((Answer::Claim { block }, _)) => self.claim(BlockIndex(block))?,
                Ok((Answer::Bring, _)) => {
                    bring(&self.peer, &self.snapshot).map_err(PagerError::Link)?;
                }
                Ok((Answer::Failed { reason }, _)) => {
                    return Err(PagerError::Service { reason });
                }
                Ok((answer, _)) => {
                    return Err(PagerError::Link(unexpected(&format!("{answer:?}"))));
                }
                Err(error) => return Err(PagerError::Link(error)),
            }
        }
    }

    /// Puts a copy of a block of the image in its place, which until now nobody could touch.
    fn claim(&self, block: BlockIndex) -> Result<(), PagerError> {
        let space = self.memory.space();
        let piece = space.in_one_region(Piece::of_block(block));
        let error = |source| space.error("copy the shared content of", piece, source);
        let content = self.view.block(block);
        let content = content.and_then(|block| block.subslice(0, piece.len_bytes as usize));
        let content = content.map_err(|cause| error(io::Error::other(cause)))?;
        self.local.replace(piece, content).map_err(error)?;
        self.memory.wake(piece).map_err(error)
    }
}
