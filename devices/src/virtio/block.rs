//! virtio-block, section 5.2: a raw disk image for the guest.
//!
//! ```text
//!                    ┌ Drive: what a request means ─ Disk: the image ┐
//!  on_kick ─ parse ──┤                                               ├─ status ─ complete
//!                    └ Asynchronous: slots in flight ─ Ring (io_uring)┘
//!                                    ▲ eventfd ─ on_source
//! ```
//! The engine "Sync" (Firecracker's word) executes a request on the io thread, one after another,
//! with one system call each between the file and guest memory. With "Async" the host has as
//! many at work as the rings hold, and they end in any order.

mod asynchronous;
mod disk;
mod drive;
mod error;
mod medium;
pub mod overlay;
mod request;
mod ring;
mod state;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_MQ, VIRTIO_BLK_ID_BYTES};

use self::asynchronous::Asynchronous;
use self::disk::Disk;
use self::drive::Drive;
pub use self::error::BlockError;
use self::medium::Medium;
use self::overlay::{Layer, OverlayError, OverlayFile};
use self::ring::Ring;
pub use self::state::State;
use super::{BrokenRing, Kind, MAX_CHAIN_SEGMENTS, QueueIo, Source, VirtioDevice};

/// The unit in which drivers count a disk, whatever its block size (section 5.2.6).
pub const SECTOR_BYTES: u64 = 512;
/// The most request queues that a disk has.
pub const MAX_QUEUES: u16 = 16;
/// Requests that the ring of a queue can hold.
const QUEUE_SIZE: u16 = 256;
/// Pieces of data in a request; with its header and status it is a chain.
const MAX_SEGMENTS: u32 = MAX_CHAIN_SEGMENTS as u32 - 2;
/// What one DISCARD may ask for. Bounds the time for which the io thread is busy with it.
const MAX_DISCARD_RANGES: usize = 8;
const MAX_DISCARD_SECTORS: u32 = (256 << 20) / SECTOR_BYTES as u32;
/// The same for WRITE_ZEROES, which may have to be written out.
const MAX_WRITE_ZEROES_RANGES: usize = 1;
const MAX_WRITE_ZEROES_SECTORS: u32 = (16 << 20) / SECTOR_BYTES as u32;
/// Holes smaller than a block of the host's file system free nothing.
const DISCARD_ALIGNMENT_SECTORS: u32 = 4096 / SECTOR_BYTES as u32;
/// Size of the answer to GET_ID.
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Whether the guest's FLUSH reaches the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// FLUSH is not offered; one that comes nevertheless succeeds without doing anything. A
    /// power failure of the host may corrupt the guest's file systems.
    #[default]
    Unsafe,
    /// FLUSH is offered and returns after `fdatasync`.
    Writeback,
}

/// How the host does the I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// One request at a time, with ordinary system calls.
    #[default]
    Sync,
    /// Through io_uring, all that the guest has made available at once.
    Async,
}

impl Engine {
    /// Whether the host has what the engine needs.
    ///
    /// # Errors
    /// As the host refuses io_uring: its kernel is too old or its administrator against it.
    pub fn probe(self) -> io::Result<()> {
        match self {
            Self::Sync => Ok(()),
            Self::Async => Ring::new(1).map(drop),
        }
    }
}

/// A disk as its user describes it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The drive's name. The guest reads its first 20 bytes as the disk's serial number.
    pub id: String,
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What FLUSH does.
    pub cache: Cache,
    /// How the host does the I/O.
    pub engine: Engine,
    /// How many request queues the guest may use, best one for each of its CPUs: from 1 to
    /// [`MAX_QUEUES`], and less or more is taken as these.
    pub queue_count: u16,
    /// The file that takes the writes, while the image at `path` is only read; it is made if it
    /// is missing. Only with [`Engine::Sync`].
    pub overlay: Option<PathBuf>,
}

impl Options {
    /// Whether the image itself is not written.
    fn image_read_only(&self) -> bool {
        self.read_only || self.overlay.is_some()
    }
}

/// What serves the requests.
#[derive(Debug)]
enum Server {
    /// The calling thread.
    Synchronous,
    Asynchronous(Box<Asynchronous>),
}

/// A virtio-block device.
#[derive(Debug)]
pub struct Block {
    /// Dropped first: it waits for what it still has in flight on the drive.
    server: Server,
    drive: Drive,
    queue_sizes: Vec<u16>,
}

impl Block {
    /// Opens and locks the image.
    ///
    /// # Errors
    /// [`BlockError`] names the image and what is wrong with it.
    pub fn open(options: &Options) -> Result<Self, BlockError> {
        Self::new(Disk::open(options)?, options, None)
    }

    /// Takes and locks an image that is open already, for writing unless it is read-only.
    /// `options.path` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_file(file: File, options: &Options) -> Result<Self, BlockError> {
        Self::new(Disk::with_file(file, options)?, options, None)
    }

    /// The disk of a machine that is being restored: `layer` lies between the image, which must be
    /// the one that it was taken over, and an overlay of nothing, which takes the place of what is
    /// at `options.overlay` as soon as [`OverlayFile::begin`] is called.
    ///
    /// # Errors
    /// As [`Self::open`]; no file was changed then.
    pub fn restored(file: File, options: &Options, layer: Layer) -> Result<Self, BlockError> {
        Self::new(Disk::with_file(file, options)?, options, Some(layer))
    }

    /// The file of its overlay, if it has one.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn overlay_file(&self) -> Result<Option<OverlayFile>, OverlayError> {
        self.drive.disk.overlay_file()
    }

    fn new(disk: Disk, options: &Options, layer: Option<Layer>) -> Result<Self, BlockError> {
        let queue_count = options.queue_count.clamp(1, MAX_QUEUES);
        let server = match options.engine {
            Engine::Sync => Server::Synchronous,
            Engine::Async if options.overlay.is_some() => {
                return Err(BlockError::AsyncOverlay { id: options.id.clone() });
            }
            Engine::Async => {
                let in_flight_max = u32::from(queue_count).saturating_mul(QUEUE_SIZE.into());
                let ring = Ring::new(in_flight_max)
                    .map_err(|source| BlockError::NoIoUring { id: options.id.clone(), source })?;
                Server::Asynchronous(Box::new(Asynchronous::new(ring, in_flight_max as usize)))
            }
        };
        let queue_sizes = vec![QUEUE_SIZE; queue_count.into()];
        let medium = Medium::new(disk, options, layer)?;
        Ok(Self { server, drive: Drive::new(medium, options), queue_sizes })
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let queues = if self.queue_sizes.len() > 1 { 1 << VIRTIO_BLK_F_MQ } else { 0 };
        self.drive.features() | queues
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else { return };
        let queue_count = self.queue_sizes.len() as u16;
        for (to, from) in data.iter_mut().zip(self.drive.config(queue_count).iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing in it is writable without CONFIG_WCE.
    }

    fn sources(&self) -> Vec<Source> {
        match &self.server {
            Server::Synchronous => Vec::new(),
            Server::Asynchronous(server) => vec![server.source()],
        }
    }

    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        match &mut self.server {
            Server::Synchronous => {
                while let Some(chain) = io.pop(queue)? {
                    let filled = self.drive.serve(&chain, io);
                    io.complete(queue, chain, filled)?;
                }
                Ok(())
            }
            Server::Asynchronous(server) => server.on_kick(&mut self.drive, queue, io),
        }
    }

    fn on_source(&mut self, _token: u32, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        match &mut self.server {
            Server::Synchronous => Ok(()), // has none
            Server::Asynchronous(server) => {
                server.on_completions(&mut self.drive, self.queue_sizes.len(), io)
            }
        }
    }

    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        match &mut self.server {
            Server::Synchronous => Ok(()), // a request is in flight only within `on_kick`
            Server::Asynchronous(server) => server.drain(&mut self.drive, io),
        }?;
        if let Err(error) = self.drive.disk.settle() {
            self.drive.disk.report("settle", 0, &error);
        }
        Ok(())
    }

    fn reset(&mut self) {
        // No register of ours remembers anything.
        if let Server::Asynchronous(server) = &mut self.server {
            server.abandon();
        }
    }
}
