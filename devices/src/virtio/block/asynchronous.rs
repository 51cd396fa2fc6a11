//! The engine "Async": reads, writes and flushes are in flight in an io_uring.
//!
//! Each owns its chain and the addresses of its data until its completion comes, in any order,
//! on whatever thread looks for it. Everything else (identify, discard, write zeroes) is rare and
//! executed at once: a driver may not count on an order of requests that are in flight together
//! (section 5.2.6.2: a flush covers the writes that were completed before it was made available).

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, squeue, types};

use super::Cache;
use super::disk::Disk;
use super::drive::{self, Drive};
use super::request::{HEADER_BYTES, Request};
use super::ring::Ring;
use crate::GuestMemory;
use crate::virtio::{BrokenRing, Chain, DetachedIoVec, GuestIoVec, OutsideMemory, QueueIo, Source};

/// Serves requests through an io_uring.
#[derive(Debug)]
pub(super) struct Asynchronous {
    ring: Ring,
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    in_flight_max: usize,
    /// Keeps mapped what the kernel reads and writes for requests in flight.
    memory: Option<GuestMemory>,
    /// Chains were left on their rings because no slot was free.
    starved: bool,
    /// The kernel takes nothing any more, so that requests are executed one at a time.
    refused: bool,
    most_in_flight: usize,
}

/// A request that the kernel is at work on.
#[derive(Debug)]
struct InFlight {
    queue: usize,
    chain: Chain,
    request: Request,
    /// Where the data is; empty for a flush. The kernel may read it until the completion.
    data: DetachedIoVec,
    write_through: bool,
}

impl Asynchronous {
    /// `ring` has room for `in_flight_max` requests.
    pub(super) fn new(ring: Ring, in_flight_max: usize) -> Self {
        Self {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight_max,
            memory: None,
            starved: false,
            refused: false,
            most_in_flight: 0,
        }
    }

    pub(super) fn source(&self) -> Source {
        self.ring.source()
    }

    /// How many requests the kernel has been given and not completed.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Starts what the driver made available on `queue`, and completes what is done at once, as
    /// I/O that the host's page cache can answer is.
    pub(super) fn on_kick(
        &mut self,
        drive: &mut Drive,
        queue: usize,
        io: &mut QueueIo<'_>,
    ) -> Result<(), BrokenRing> {
        let before = self.in_flight();
        // Whatever happens, what has been queued must get to the kernel.
        let outcome = self.take(drive, queue, io);
        if self.in_flight() == before {
            return outcome;
        }
        self.most_in_flight = self.most_in_flight.max(self.in_flight());
        self.ring.mute();
        let submitted = self.submit(drive, io);
        let reaped = self.reap(drive, io);
        self.ring.unmute();
        outcome.and(submitted).and(reaped).and(self.reap(drive, io))
    }

    /// The kernel tells that something is done.
    pub(super) fn on_completions(
        &mut self,
        drive: &mut Drive,
        queue_count: usize,
        io: &mut QueueIo<'_>,
    ) -> Result<(), BrokenRing> {
        self.ring.clear_event();
        self.reap(drive, io)?;
        if std::mem::take(&mut self.starved) {
            (0..queue_count).try_for_each(|queue| self.on_kick(drive, queue, io))?;
        }
        Ok(())
    }

    /// Returns when nothing is in flight any more.
    pub(super) fn drain(
        &mut self,
        drive: &mut Drive,
        io: &mut QueueIo<'_>,
    ) -> Result<(), BrokenRing> {
        let mut outcome = self.reap(drive, io);
        while self.in_flight() > 0 {
            self.ring.wait();
            outcome = outcome.and(self.reap(drive, io));
        }
        tracing::debug!(
            drive = drive.name(),
            most_in_flight = self.most_in_flight,
            "the disk is drained"
        );
        outcome
    }

    /// As [`Self::drain`], and nobody hears of the results. The kernel cannot be made to let go
    /// of guest memory sooner.
    pub(super) fn abandon(&mut self) {
        loop {
            while let Some((slot, _)) = self.ring.next_completion() {
                self.release(slot);
            }
            if self.in_flight() == 0 {
                break;
            }
            self.ring.wait();
        }
        self.starved = false;
        self.ring.clear_event();
    }

    fn take(
        &mut self,
        drive: &mut Drive,
        queue: usize,
        io: &mut QueueIo<'_>,
    ) -> Result<(), BrokenRing> {
        loop {
            if self.in_flight() >= self.in_flight_max {
                self.starved = true;
                return Ok(());
            }
            let Some(chain) = io.pop(queue)? else { return Ok(()) };
            if let Some((chain, filled)) = self.start(drive, queue, chain, io) {
                io.complete(queue, chain, filled)?;
            }
        }
    }

    /// Puts the request of `chain` in flight, or executes it and gives the chain back with the
    /// number of bytes filled.
    fn start(
        &mut self,
        drive: &mut Drive,
        queue: usize,
        chain: Chain,
        io: &QueueIo<'_>,
    ) -> Option<(Chain, u32)> {
        if self.refused || chain.writable_bytes() == 0 {
            let filled = drive.serve(&chain, io);
            return Some((chain, filled));
        }
        let request = match drive.parse(&chain, io.memory()) {
            Ok(request) => request,
            Err(status) => {
                let filled = drive::answer(&chain, io.memory(), Err(status));
                return Some((chain, filled));
            }
        };
        match self.put_in_flight(drive, queue, chain, request, io) {
            Ok(()) => None,
            Err((chain, request)) => {
                let outcome = drive.execute(&request, &chain, io);
                let filled = drive::answer(&chain, io.memory(), outcome);
                Some((chain, filled))
            }
        }
    }

    /// Gives back what is not for the ring, or cannot be: executing it then finds the reason.
    fn put_in_flight(
        &mut self,
        drive: &Drive,
        queue: usize,
        chain: Chain,
        request: Request,
        io: &QueueIo<'_>,
    ) -> Result<(), (Chain, Request)> {
        let memory = self.memory.get_or_insert_with(|| io.memory().clone());
        let Ok(Some(data)) = data(drive, memory, &chain, &request) else {
            return Err((chain, request));
        };
        let write_through = drive.writes_through(io);
        let Some(image) = drive.disk.image() else { return Err((chain, request)) };
        let in_flight = InFlight { queue, chain, request, data, write_through };
        let entry = in_flight.entry(image);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len().saturating_sub(1)
        });
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(in_flight);
        }
        // SAFETY: `entry` refers to the drive's file, of which the kernel takes a reference of
        // its own when it is submitted, before the call that lent us the drive returns; to the
        // addresses of `data`, which its slot owns until the completion; and through these to
        // guest memory, made from `self.memory`, which is let go of after the last completion
        // (see `drop`).
        if unsafe { self.ring.push(slot, entry) } {
            return Ok(());
        }
        match self.release(slot) {
            Some(InFlight { chain, request, .. }) => Err((chain, request)),
            None => Ok(()), // it was put there just now
        }
    }

    /// Hands to the kernel what was started; executes it if the kernel refuses.
    fn submit(&mut self, drive: &mut Drive, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        let Err(error) = self.ring.submit() else { return Ok(()) };
        tracing::warn!(
            drive = drive.name(),
            %error,
            "io_uring takes no more requests; they are executed one at a time from now on"
        );
        self.refused = true;
        let mut outcome = Ok(());
        for slot in self.ring.take_unsubmitted() {
            outcome = outcome.and(self.conclude(slot, -libc::EAGAIN, drive, io));
        }
        outcome
    }

    /// Completes what is done. One ring that is broken keeps no other request in flight.
    fn reap(&mut self, drive: &mut Drive, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        let mut outcome = Ok(());
        while let Some((slot, result)) = self.ring.next_completion() {
            outcome = outcome.and(self.conclude(slot, result, drive, io));
        }
        outcome
    }

    fn conclude(
        &mut self,
        slot: usize,
        result: i32,
        drive: &mut Drive,
        io: &mut QueueIo<'_>,
    ) -> Result<(), BrokenRing> {
        // The kernel names what it was given, once.
        let Some(done) = self.release(slot) else { return Ok(()) };
        let outcome = done
            .finish(result, drive, io.memory())
            .map_err(|error| drive.failed(&done.request, &error));
        let filled = drive::answer(&done.chain, io.memory(), outcome);
        io.complete(done.queue, done.chain, filled)
    }

    fn release(&mut self, slot: usize) -> Option<InFlight> {
        let done = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(done)
    }
}

impl Drop for Asynchronous {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// The addresses of a request's data if it is one for the ring.
fn data(
    drive: &Drive,
    memory: &GuestMemory,
    chain: &Chain,
    request: &Request,
) -> Result<Option<DetachedIoVec>, OutsideMemory> {
    let Some(image) = drive.disk.image() else { return Ok(None) };
    let part = match request {
        Request::Read(extent) if extent.len > 0 => {
            GuestIoVec::new(memory, chain.writable(), 0, extent.len)?
        }
        // A file that has become shorter is an error, which executing it finds.
        Request::Write(extent) if extent.len > 0 && image.check_end(*extent).is_ok() => {
            GuestIoVec::new(memory, chain.readable(), HEADER_BYTES, extent.len)?
        }
        Request::Flush if drive.cache == Cache::Writeback => GuestIoVec::new(memory, &[], 0, 0)?,
        _ => return Ok(None),
    };
    Ok(Some(part.detach()))
}

impl InFlight {
    fn entry(&self, image: &Disk) -> squeue::Entry {
        let file = types::Fd(image.file().as_raw_fd());
        let (iovecs, count) = (self.data.as_ptr(), self.data.count());
        match &self.request {
            Request::Read(extent) => {
                opcode::Readv::new(file, iovecs, count).offset(extent.offset).build()
            }
            Request::Write(extent) => {
                let flags = if self.write_through { libc::RWF_DSYNC } else { 0 };
                let write = opcode::Writev::new(file, iovecs, count);
                write.offset(extent.offset).rw_flags(flags).build()
            }
            _ => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    /// What `result`, as the kernel gives it, leaves to be done is done now: the kernel may stop
    /// early, and may not want to wait. Returns how many bytes the driver gets.
    fn finish(&self, result: i32, drive: &mut Drive, memory: &GuestMemory) -> io::Result<u64> {
        let moved = match result {
            0.. => u64::from(result.unsigned_abs()),
            _ if [-libc::EAGAIN, -libc::EINTR].contains(&result) => 0,
            _ => return Err(io::Error::from_raw_os_error(result.wrapping_neg())),
        };
        match &self.request {
            Request::Read(extent) => {
                let rest = extent.after(moved);
                drive.disk.read(memory, self.chain.writable(), moved, rest).map(|()| extent.len)
            }
            Request::Write(extent) => {
                let rest = extent.after(moved);
                if rest.len == 0 {
                    return Ok(0);
                }
                let skip = HEADER_BYTES.saturating_add(moved);
                drive.disk.write(memory, self.chain.readable(), skip, rest)?;
                if self.write_through { drive.disk.flush() } else { Ok(()) }.map(|()| 0)
            }
            _ if result < 0 => drive.disk.flush().map(|()| 0),
            _ => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests;
