//! An io_uring, and the eventfd through which it tells of what is done.
//!
//! ```text
//!  push ─▶ submission queue ─ submit ─▶ kernel ─▶ completion queue ─▶ next_completion
//!                                          └─ eventfd ─▶ the io thread, or whoever waits
//! ```
//! Waiting is for the eventfd, never inside of io_uring: it works from any thread, and even after
//! the kernel has refused to take anything more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, squeue};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::Source;

/// How often the kernel is asked again when it has no memory for a request right now.
const SUBMIT_ATTEMPTS_MAX: u32 = 16;

/// Queues shared with the kernel.
pub(super) struct Ring {
    uring: IoUring,
    completed: EventFd,
    /// What is in the submission queue, in its order.
    unsubmitted: VecDeque<usize>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("unsubmitted", &self.unsubmitted).finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring for so many requests at a time. Its completion queue holds twice as many (so the
    /// kernel makes it), and cannot overflow.
    pub(super) fn new(in_flight_max: u32) -> io::Result<Self> {
        Self::with(IoUring::new(in_flight_max)?)
    }

    /// One that takes nothing.
    #[cfg(test)]
    pub(super) fn disabled() -> io::Result<Self> {
        Self::with(IoUring::builder().setup_r_disabled().build(8)?)
    }

    fn with(uring: IoUring) -> io::Result<Self> {
        let completed = EventFd::new(EFD_NONBLOCK)?;
        uring.submitter().register_eventfd(completed.as_raw_fd())?;
        Ok(Self { uring, completed, unsubmitted: VecDeque::new() })
    }

    /// What becomes readable when something is done.
    pub(super) fn source(&self) -> Source {
        Source { token: 0, fd: self.completed.as_raw_fd(), events: EventSet::IN }
    }

    /// Queues `entry`, whose completion will name `slot`. False if the queue is full.
    ///
    /// # Safety
    /// What `entry` refers to must stay valid until [`Self::next_completion`] has named `slot`,
    /// or [`Self::take_unsubmitted`] has.
    pub(super) unsafe fn push(&mut self, slot: usize, entry: squeue::Entry) -> bool {
        let entry = entry.user_data(slot as u64);
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.uring.submission().push(&entry) }.is_ok();
        if pushed {
            self.unsubmitted.push_back(slot);
        }
        pushed
    }

    /// Hands all that is queued to the kernel.
    ///
    /// # Errors
    /// The kernel will not take it. Nothing must be submitted to this ring ever after: what is
    /// in its queue would be done then.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let mut attempts: u32 = 0;
        while !self.unsubmitted.is_empty() {
            let error = match self.uring.submit() {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(count) => {
                    self.unsubmitted.drain(..count.min(self.unsubmitted.len()));
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let passes = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY));
            attempts = attempts.saturating_add(1);
            if !passes || attempts == SUBMIT_ATTEMPTS_MAX {
                return Err(error);
            }
        }
        Ok(())
    }

    /// What the kernel has not taken, in the order of its coming.
    pub(super) fn take_unsubmitted(&mut self) -> VecDeque<usize> {
        std::mem::take(&mut self.unsubmitted)
    }

    /// A slot whose request is done, and its result: bytes, or a negative error number.
    pub(super) fn next_completion(&mut self) -> Option<(usize, i32)> {
        let entry = self.uring.completion().next()?;
        Some((usize::try_from(entry.user_data()).ok()?, entry.result()))
    }

    /// Completions from now on are not told of. Whoever looks for them anyway saves the kernel
    /// and the io thread the trouble.
    pub(super) fn mute(&mut self) {
        self.uring.completion().disable_eventfd();
    }

    /// Ends [`Self::mute`]. What has come in between is found by looking once more.
    pub(super) fn unmute(&mut self) {
        self.uring.completion().enable_eventfd();
        // The kernel puts an entry into the queue before it looks whether to tell of it; so the
        // flag must be there before the queue is looked at, which release and acquire leave open.
        fence(Ordering::SeqCst);
    }

    /// Takes the event away. To be followed by a look at the completions, not preceded.
    pub(super) fn clear_event(&self) {
        let _ = self.completed.read(); // of no interest whether there was one
    }

    /// Returns when something was completed since the event was cleared, and clears it.
    pub(super) fn wait(&self) {
        let mut polled =
            libc::pollfd { fd: self.completed.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `polled` is one entry that lives across the call. Interrupted by a signal it
        // fails, and the caller finds nothing and waits again.
        let _ = unsafe { libc::poll(&raw mut polled, 1, -1) };
        self.clear_event();
    }
}
