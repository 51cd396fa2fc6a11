//! Messages with descriptors, whole or not at all.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::ServiceError;

/// Bytes of a message: RAM of which every other block is missing fits, with a working set.
const MESSAGE_BYTES_MAX: usize = 160 << 10;
/// Descriptors of a message: a manifest and all its packs.
pub(super) const DESCRIPTORS_MAX: usize = 80;
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// One side of a connection (`SOCK_SEQPACKET`).
#[derive(Debug)]
pub(super) struct Peer(OwnedFd);

impl Peer {
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The longest that a receive may take from now on.
    pub fn set_patience(&self, longest: Option<Duration>) -> Result<(), ServiceError> {
        set_socket_timeout(&self.0, Timeout::Recv, longest).map_err(talk("wait for"))
    }

    pub fn send(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ServiceError> {
        let bytes = postcard::to_stdvec(message)
            .map_err(|error| ServiceError::Protocol { reason: error.to_string() })?;
        if bytes.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
            let reason = format!(
                "a message of {} bytes and {} descriptors is too long",
                bytes.len(),
                descriptors.len()
            );
            return Err(ServiceError::Protocol { reason });
        }
        let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ServiceError::Gone),
                sent => return sent.map(|_bytes| ()).map_err(talk("send to")),
            }
        }
    }

    /// The next message, and the descriptors that came with it.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), ServiceError> {
        // Most are short; room for the longest would cost more than a look.
        let mut buffer = vec![0; self.next_bytes()?.min(MESSAGE_BYTES_MAX)];
        let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut places = [IoSliceMut::new(&mut buffer)];
            match recvmsg(&self.0, &mut places, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(ServiceError::Gone),
                received => break received.map_err(talk("hear from"))?,
            }
        };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 && descriptors.is_empty() {
            return Err(ServiceError::Gone);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(ServiceError::Protocol { reason: "its message is too long".into() });
        }
        let message = postcard::from_bytes(buffer.get(..received.bytes).unwrap_or_default());
        let message =
            message.map_err(|error| ServiceError::Protocol { reason: error.to_string() })?;
        Ok((message, descriptors))
    }

    /// Waits for the next message, and says how long it is.
    fn next_bytes(&self) -> Result<usize, ServiceError> {
        loop {
            match recv(&self.0, &mut [0_u8; 0], RecvFlags::PEEK | RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(ServiceError::Gone),
                peeked => return peeked.map(|(_, bytes)| bytes).map_err(talk("hear from")),
            }
        }
    }

    /// A second handle of the same connection.
    pub fn try_clone(&self) -> Result<OwnedFd, ServiceError> {
        let cloned = self.0.try_clone();
        cloned.map_err(|source| ServiceError::Talk { attempt: "keep", source })
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn talk(attempt: &'static str) -> impl Fn(Errno) -> ServiceError {
    move |error| ServiceError::Talk { attempt, source: error.into() }
}
