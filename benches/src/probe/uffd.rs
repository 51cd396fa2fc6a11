//! What Firecracker's backend `Uffd` wants its user to have: a process that fills the guest's memory
//! from the snapshot's memory file, a page at a fault.
//!
//! ```text
//!  VMM ──▶ connects; a JSON array of its mappings, and a userfaultfd (SCM_RIGHTS)
//!      ──▶ a fault ──▶ UFFDIO_COPY of the file's page; UFFDIO_ZEROPAGE if the guest gave it back
//! ```
//! The file is mapped and not populated, which costs nothing before the first fault.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;
use userfaultfd::{Error, Event, EventBuffer, Uffd};

/// Events that are read at once.
const EVENTS_MAX: usize = 64;
/// More than the description of any machine has.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Serves one machine, in a thread that ends when this is dropped.
pub struct Handler {
    stop: OwnedFd,
    thread: Option<JoinHandle<Result<()>>>,
}

/// A mapping of the machine's RAM, in Firecracker's words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Region {
    base_host_virt_addr: u64,
    size: u64,
    /// In the memory file.
    offset: u64,
    /// In bytes. Older versions have the other name only, and bytes in it, too.
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

impl Handler {
    /// Listens at a socket for a machine whose memory is in this file.
    ///
    /// # Errors
    /// The host refuses.
    pub fn listen(socket: &Path, memory: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).context("cannot listen for the VMM")?;
        let memory = MemoryFile::map(memory)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("cannot make an eventfd")?;
        let stopped = stop.try_clone().context("cannot duplicate an eventfd")?;
        let serve = move || serve(&listener, &memory, &stopped);
        let thread = thread::Builder::new().name("uffd".to_owned()).spawn(serve);
        Ok(Self { stop, thread: Some(thread.context("cannot start a thread")?) })
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // It fails only when it is full, and then it has been written.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("the handler of page faults: {error:#}"),
            Some(Err(_)) => eprintln!("the handler of page faults has panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

fn serve(listener: &UnixListener, memory: &MemoryFile, stop: &OwnedFd) -> Result<()> {
    if !is_ready(listener, stop)? {
        return Ok(());
    }
    let (stream, _) = listener.accept().context("cannot accept the VMM")?;
    let (regions, descriptor) = receive(&stream)?;
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
    // SAFETY: the descriptor is open, and its only owner gives it away. If it is no userfaultfd, the
    // kernel refuses what is asked of it.
    let uffd = unsafe { Uffd::from_raw_fd(descriptor.into_raw_fd()) };
    let mut machine = Machine { regions, uffd, memory, removed: BTreeSet::new() };
    let mut events = EventBuffer::new(EVENTS_MAX);
    // Faults that cannot be served before another event is read.
    let mut waiting = Vec::new();
    while !waiting.is_empty() || is_ready(&machine.uffd, stop)? {
        let mut faults = std::mem::take(&mut waiting);
        for event in machine.uffd.read_events(&mut events).context("cannot read faults")? {
            match event.context("cannot read a fault")? {
                Event::Pagefault { addr, .. } => faults.push(addr as u64),
                Event::Remove { start, end } => {
                    let (start, end) = (start as u64, end as u64);
                    machine.removed.extend((start..end).step_by(rustix::param::page_size()));
                }
                event => bail!("an event that nobody asked for: {event:?}"),
            }
        }
        for address in faults {
            if !machine.fill(address)? {
                waiting.push(address);
            }
        }
    }
    Ok(())
}

/// Waits for something to read there; false when it is time to stop.
fn is_ready(event: &impl AsFd, stop: &OwnedFd) -> Result<bool> {
    let mut polled = [PollFd::new(event, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    loop {
        match poll(&mut polled, None) {
            Err(Errno::INTR) => {}
            result => {
                result.context("cannot wait for faults")?;
                return Ok(polled[1].revents().is_empty());
            }
        }
    }
}

/// The description of a machine, and its userfaultfd.
fn receive(stream: &impl AsFd) -> Result<(Vec<Region>, OwnedFd)> {
    let (mut text, mut descriptor) = (Vec::new(), None);
    while text.len() < MESSAGE_BYTES_MAX {
        let mut piece = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut places = [IoSliceMut::new(&mut piece)];
        let received = recvmsg(stream, &mut places, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let count = received.context("cannot hear from the VMM")?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptor = rights.last().or(descriptor);
            }
        }
        text.extend_from_slice(&piece[..count]);
        if let Ok(regions) = serde_json::from_slice(&text) {
            return Ok((regions, descriptor.context("no userfaultfd came with the regions")?));
        }
        if count == 0 {
            break;
        }
    }
    bail!("no description of memory: {}", String::from_utf8_lossy(&text))
}

/// The machine that is served.
struct Machine<'a> {
    regions: Vec<Region>,
    uffd: Uffd,
    memory: &'a MemoryFile,
    /// Pages that the guest gave back, by address.
    removed: BTreeSet<u64>,
}

impl Machine<'_> {
    /// Serves a fault; false if another event has to be read before.
    fn fill(&mut self, address: u64) -> Result<bool> {
        let region = self.regions.iter().find(|region| {
            address.checked_sub(region.base_host_virt_addr).is_some_and(|it| it < region.size)
        });
        let region = region.with_context(|| format!("a fault at {address:#x}, in no region"))?;
        let page_bytes = region.page_size.or(region.page_size_kib).unwrap_or(4096).max(1);
        let inside = address - region.base_host_virt_addr;
        let inside = inside - inside % page_bytes;
        let start = region.base_host_virt_addr + inside;
        let place: *mut c_void = std::ptr::with_exposed_provenance_mut(start as usize);
        let len = page_bytes as usize;
        let filled = if self.removed.contains(&start) {
            // SAFETY: the kernel fills only missing pages of the VMM's registered ranges.
            unsafe { self.uffd.zeropage(place, len, true) }
        } else {
            let source = self.memory.at(region.offset + inside, len)?;
            // SAFETY: the source is mapped for so many bytes; as above.
            unsafe { self.uffd.copy(source, place, len, true) }
        };
        match filled {
            Ok(_) => Ok(true),
            Err(Error::CopyFailed(errno) | Error::ZeropageFailed(errno)) => {
                match Errno::from_raw_os_error(errno as i32) {
                    // Another thread's fault brought it.
                    Errno::EXIST => {
                        self.uffd.wake(place, len).context("cannot wake the VMM")?;
                        Ok(true)
                    }
                    Errno::AGAIN => Ok(false),
                    // The VMM has ended.
                    Errno::SRCH => Ok(true),
                    errno => Err(errno).with_context(|| format!("cannot fill {start:#x}")),
                }
            }
            Err(Error::PartiallyCopied(_)) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot fill {start:#x}")),
        }
    }
}

/// The snapshot's memory, mapped to read.
struct MemoryFile {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: a mapping that is only read belongs to no thread.
unsafe impl Send for MemoryFile {}
// SAFETY: as above.
unsafe impl Sync for MemoryFile {}

impl MemoryFile {
    fn map(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let bytes = file.metadata().context("cannot look at the memory file")?.len() as usize;
        let (protection, flags) = (ProtFlags::READ, MapFlags::PRIVATE);
        // SAFETY: a new mapping, anywhere.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, flags, &file, 0) };
        Ok(Self { start: start.context("cannot map the memory file")?, bytes })
    }

    fn at(&self, offset: u64, len: usize) -> Result<*const c_void> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.bytes as u64) {
            bail!("the memory file has {} bytes, and {offset} to {end:?} are wanted", self.bytes);
        }
        Ok(self.start.wrapping_byte_add(offset as usize))
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this alone.
        let _it_cannot_be_refused = unsafe { rustix::mm::munmap(self.start, self.bytes) };
    }
}

#[cfg(test)]
mod tests;
