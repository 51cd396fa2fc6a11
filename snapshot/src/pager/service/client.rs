//! The machine's side.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::atomic::Ordering,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use super::{Answer, Request, ServiceError, VERSION, WORKING_SET_RUNS_MAX, wire::Peer};
use crate::{
    id::{Digest, SnapshotId},
    layout::BlockIndex,
    pager::{
        error::PagerError,
        plan::{ChunkRun, Reach},
        server::Status,
        shared_image::ImageView,
        space::Piece,
        userfault::LazyMemory,
    },
    snapshot::Snapshot,
};

/// A connection to the host's pager.
#[derive(Debug)]
pub struct Service(Peer);

/// An image that the host's pager keeps.
#[derive(Debug)]
pub struct Image {
    peer: Peer,
    view: ImageView,
}

/// What holds a machine's memory and its pager together.
pub(in crate::pager) struct Link {
    peer: Peer,
    /// As long as it is open, whoever touches a missing page waits.
    _memory: LazyMemory,
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

    /// Gets the image of this snapshot's RAM, of which these blocks are there. `manifest` is its
    /// file.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn open(
        self,
        snapshot: &Snapshot,
        manifest: &File,
        ahead: &[BlockIndex],
    ) -> Result<Image, ServiceError> {
        let mut descriptors = vec![manifest.as_fd()];
        for pack in snapshot.packs() {
            descriptors.push(pack.content.descriptor().ok_or(ServiceError::NoFile)?);
        }
        let ahead = ahead.iter().map(|block| block.0).collect();
        let Self(peer) = self;
        peer.send(&Request::Open { version: VERSION, ahead }, &descriptors)?;
        match peer.receive()? {
            (Answer::Opened { snapshot: found, image_bytes }, mut files) => {
                let (found, expected) = (SnapshotId(Digest(found)), snapshot.id());
                if found != expected {
                    return Err(ServiceError::Replaced { expected, found });
                }
                let file = files.pop().ok_or_else(|| unexpected("no image"))?;
                Ok(Image { peer, view: ImageView::open(file, image_bytes)? })
            }
            (Answer::Refused { reason }, _) => Err(ServiceError::Refused { reason }),
            (answer, _) => Err(unexpected(&format!("{answer:?}"))),
        }
    }
}

fn unexpected(what: &str) -> ServiceError {
    ServiceError::Protocol { reason: format!("it answers with {what}") }
}

impl Image {
    pub(in crate::pager) fn view(&self) -> &ImageView {
        &self.view
    }

    /// Has the pager serve this memory, of which `pieces` were registered.
    pub(in crate::pager) fn serve(
        self,
        memory: LazyMemory,
        pieces: &[Piece],
        working_set: Vec<ChunkRun>,
        reach: Reach,
    ) -> Result<Link, ServiceError> {
        let working_set = working_set.iter().take(WORKING_SET_RUNS_MAX);
        let request = Request::Serve {
            regions: memory.space().regions(),
            pieces: pieces.iter().map(|piece| (piece.offset_bytes, piece.len_bytes)).collect(),
            working_set: working_set.map(|run| (run.first.0, run.count)).collect(),
            reach,
        };
        let userfault: BorrowedFd<'_> = memory.as_fd();
        self.peer.send(&request, &[userfault])?;
        Ok(Link { peer: self.peer, _memory: memory })
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
}
