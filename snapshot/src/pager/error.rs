//! Why memory is not loaded.

use std::io;

use vm_memory::GuestAddress;

use super::{service::ServiceError, space::SpaceError, userfault::UserfaultError};
use crate::source::SourceError;

/// Why memory cannot be loaded from here on. Nothing was touched yet.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Guest RAM has no image of chunks.
    #[error("load guest memory from an image")]
    Space(#[from] SpaceError),
    /// The image is another machine's.
    #[error("the machine has {ram_bytes} bytes of RAM, and its image {image_bytes}")]
    Length {
        /// The machine's.
        ram_bytes: u64,
        /// The image's.
        image_bytes: u64,
    },
    /// A chunk would not be a number of pages.
    #[error("the host has pages of {page_bytes} bytes: more than the 64 KiB of a chunk")]
    HostPage {
        /// Bytes of a page.
        page_bytes: usize,
    },
    /// The host lets nobody serve its faults.
    #[error("serve page faults")]
    Userfault(#[from] UserfaultError),
    /// The kernel refuses to have faults served there.
    #[error("{attempt} the guest's memory at {:#x}", address.0)]
    Memory {
        /// What was attempted.
        attempt: &'static str,
        /// Where the memory begins.
        address: GuestAddress,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The host's pager does not serve it.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The host has no room for a thread or an event.
    #[error("start the pager's thread")]
    Thread(#[source] io::Error),
}

/// Why the machine cannot go on: memory that it needs is not there and never will be.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The content cannot be had, or is not what was saved.
    #[error("load the guest's memory at {:#x}", address.0)]
    Source {
        /// The page that was touched or, ahead of a touch, the first of the chunk.
        address: GuestAddress,
        /// The cause, which names snapshot and page.
        #[source]
        source: SourceError,
    },
    /// The kernel does not take the content.
    #[error("{attempt} the guest's memory at {:#x}", address.0)]
    Memory {
        /// What was attempted.
        attempt: &'static str,
        /// Where it begins.
        address: GuestAddress,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Faults cannot be heard of.
    #[error("read the guest's page faults")]
    Events(#[source] userfaultfd::Error),
    /// Faults cannot be waited for.
    #[error("wait for the guest's page faults")]
    Wait(#[source] io::Error),
    /// What the pager has cannot be loaded, and the machine does not bring the files.
    #[error("ask the machine for the files of its snapshot")]
    Files(#[source] ServiceError),
    /// The host's pager cannot go on with this machine.
    #[error("the host's pager gives up: {reason}")]
    Service {
        /// Why.
        reason: String,
    },
    /// The host's pager is not there any more.
    #[error("the host's pager serves this machine no more")]
    Link(#[source] ServiceError),
    /// The kernel tells of something that nobody asked for.
    #[error("the userfaultfd tells of {event}, which is no fault of guest memory")]
    Unexpected {
        /// What.
        event: String,
    },
}
