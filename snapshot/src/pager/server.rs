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
    error::PagerError, recording::Recording, residency::Residency, space::Piece,
    statistics::Statistics, userfault::LazyMemory,
};
use crate::layout::{PAGE_BYTES, PageIndex};

/// Events that are read at once: more than there are threads that can wait, so that an event
/// behind their faults is always heard of.
const EVENTS_MAX: usize = 128;

/// What the pager's thread and its owner both see.
pub(super) struct Status {
    pub statistics: Statistics,
    pub residency: Residency,
    pub recording: Option<Recording>,
    pub is_stopping: AtomicBool,
    pub is_complete: AtomicBool,
    /// Readable when the thread is to end: an eventfd, or a socket whose other side is gone.
    pub stop: OwnedFd,
}

impl Status {
    pub fn new(blocks: u32, is_recording: bool, stop: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            statistics: Statistics::default(),
            residency: Residency::new(blocks),
            recording: is_recording.then(|| Recording::new(blocks)),
            is_stopping: AtomicBool::new(false),
            is_complete: AtomicBool::new(false),
            stop,
        })
    }

    /// Ends when [`stop`](Self::stop) is readable.
    pub fn wait_for_end(&self) {
        while !self.is_stopping.load(Ordering::Acquire) {
            let mut descriptors = [PollFd::new(&self.stop, PollFlags::IN)];
            // The only error is an interruption.
            if poll(&mut descriptors, None).is_ok() {
                self.is_stopping.store(true, Ordering::Release);
            }
        }
    }
}

/// Whether there was something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Worked,
    Idle,
}

/// How missing memory comes to be there.
pub(super) trait Policy: Send {
    fn memory(&self) -> &LazyMemory;

    /// What was registered at the start.
    fn pieces(&self) -> &[Piece];

    /// Somebody waits for this page: it is there when this returns, or he faults again.
    fn fault(&mut self, page: PageIndex) -> Result<(), PagerError>;

    /// Somebody gave this page back.
    fn removed(&mut self, page: PageIndex);

    /// A small step of what is done while nobody waits.
    fn load_ahead(&mut self) -> Result<Step, PagerError>;

    /// Whether no access needs the pager any more.
    fn is_exhausted(&self) -> bool;
}

/// Everything that serves faults. It lives on the pager's thread.
pub(super) struct Server {
    pub policy: Box<dyn Policy>,
    pub status: Arc<Status>,
}

impl Server {
    /// Serves until there is nothing left to load, or the owner wants an end.
    pub fn run(&mut self) -> Result<(), PagerError> {
        let mut events = EventBuffer::new(EVENTS_MAX);
        loop {
            if self.status.is_stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            let has_served = self.serve(&mut events)?;
            if self.policy.is_exhausted() {
                return self.complete();
            }
            if self.policy.load_ahead()? == Step::Idle && !has_served {
                self.wait()?;
            }
        }
    }

    /// Answers everything that was asked so far.
    fn serve(&mut self, buffer: &mut EventBuffer) -> Result<bool, PagerError> {
        let mut has_served = false;
        let events = match self.policy.memory().events(buffer) {
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
        let Some(page) = self.policy.memory().space().page_at(host) else {
            return Err(PagerError::Unexpected { event: format!("a fault at {host:#x}") });
        };
        self.status.statistics.faults.add(1);
        self.status.statistics.write_faults.add(is_write.into());
        if let Some(recording) = &self.status.recording {
            recording.note(page.chunk(), is_write);
        }
        self.policy.fault(page)
    }

    fn remove(&mut self, start: usize, end: usize) {
        for host in (start..end).step_by(PAGE_BYTES) {
            if let Some(page) = self.policy.memory().space().page_at(host) {
                self.policy.removed(page);
                self.status.statistics.removed_bytes.add(PAGE_BYTES as u64);
            }
        }
    }

    /// Nothing is left to load: from now on memory is the kernel's.
    fn complete(&mut self) -> Result<(), PagerError> {
        let memory = self.policy.memory();
        for piece in self.policy.pieces() {
            memory.unregister(*piece).map_err(|source| {
                memory.space().error("end the lazy loading of", *piece, source)
            })?;
        }
        self.status.is_complete.store(true, Ordering::Release);
        Ok(())
    }

    fn wait(&self) -> Result<(), PagerError> {
        let mut descriptors = [
            PollFd::new(self.policy.memory(), PollFlags::IN),
            PollFd::new(&self.status.stop, PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Ok(_) => {
                let [_, stop] = descriptors;
                if !stop.revents().is_empty() {
                    self.status.is_stopping.store(true, Ordering::Release);
                }
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(PagerError::Wait(error.into())),
        }
    }
}
