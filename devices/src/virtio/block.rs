//! virtio-block, section 5.2: a raw disk image for the guest.
//!
//! Requests are executed one after another on the io thread, with one system call each between
//! the file and guest memory ("Sync" in Firecracker's terms): a ring full of them may be waiting.

mod disk;
mod request;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use rotifer_snapshot::{LoadError, Stateful, Tag};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};

use self::disk::Disk;
use self::request::{HEADER_BYTES, Limits, Request, Status};
use super::{BrokenRing, Chain, Kind, MAX_CHAIN_SEGMENTS, QueueIo, Source, VirtioDevice};

/// The unit in which drivers count a disk, whatever its block size (section 5.2.6).
pub const SECTOR_BYTES: u64 = 512;
/// Requests that the ring can hold.
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
/// Size of the configuration space, up to the fields of WRITE_ZEROES.
const CONFIG_BYTES: usize = 60;
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
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the fields are in the texts
pub enum BlockError {
    /// Missing, or not allowed.
    #[error("open disk image {} for {purpose}", path.display())]
    Open { path: PathBuf, purpose: &'static str, source: io::Error },
    /// A read-only file for a drive that is not.
    #[error(
        "disk image {} is read-only, but drive {id:?} is not (set is_read_only, or make the file \
         writable)",
        path.display()
    )]
    NotWritable { path: PathBuf, id: String },
    /// A directory, FIFO, socket or terminal.
    #[error("disk image {} is {what}; it must be a file or a block device", path.display())]
    NotADisk { path: PathBuf, what: &'static str },
    /// Empty, or nearly so.
    #[error(
        "disk image {} has {size_bytes} bytes, less than one sector of 512", path.display()
    )]
    TooSmall { path: PathBuf, size_bytes: u64 },
    /// Somebody holds the lock: another virtual machine, or another drive of this one.
    #[error("disk image {} is being {by} by another drive or process", path.display())]
    InUse { path: PathBuf, by: &'static str },
    /// The host fails.
    #[error("{attempt} disk image {}", path.display())]
    Inspect { path: PathBuf, attempt: &'static str, source: io::Error },
}

/// A virtio-block device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    read_only: bool,
    cache: Cache,
    id: [u8; ID_BYTES],
}

impl Block {
    /// Opens and locks the image.
    ///
    /// # Errors
    /// [`BlockError`] names the image and what is wrong with it.
    pub fn open(options: &Options) -> Result<Self, BlockError> {
        Disk::open(options).map(|disk| Self::new(disk, options))
    }

    /// Takes and locks an image that is open already, for writing unless it is read-only.
    /// `options.path` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_file(file: File, options: &Options) -> Result<Self, BlockError> {
        Disk::with_file(file, options).map(|disk| Self::new(disk, options))
    }

    fn new(disk: Disk, options: &Options) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(options.id.bytes()) {
            *to = from;
        }
        Self { disk, read_only: options.read_only, cache: options.cache, id }
    }

    /// Does what `chain` asks for and writes its status. The number of bytes of its writable
    /// part that are filled, counted from its beginning, comes back.
    fn serve(&mut self, chain: &Chain, io: &QueueIo<'_>) -> u32 {
        let Some(status_offset) = chain.writable_bytes().checked_sub(1) else {
            return 0; // no place for an answer
        };
        let limits =
            Limits { capacity_sectors: self.disk.capacity_sectors(), read_only: self.read_only };
        let outcome = Request::parse(chain, io.memory(), limits)
            .and_then(|request| self.execute(&request, chain, io));
        let (status, filled) = match outcome {
            Ok(filled) => (Status::Ok, filled),
            Err(status) => (status, 0),
        };
        let told = chain.write_at(io.memory(), status_offset, &[status as u8]).is_ok();
        let filled =
            if told && filled == status_offset { filled.saturating_add(1) } else { filled };
        u32::try_from(filled).unwrap_or(u32::MAX)
    }

    /// Returns how many bytes of data the driver gets.
    fn execute(
        &mut self,
        request: &Request,
        chain: &Chain,
        io: &QueueIo<'_>,
    ) -> Result<u64, Status> {
        let memory = io.memory();
        let (name, sector, outcome) = match request {
            Request::Read(extent) => (
                "read",
                extent.offset / SECTOR_BYTES,
                self.disk.read(memory, chain.writable(), *extent).map(|()| extent.len),
            ),
            Request::Write(extent) => (
                "write",
                extent.offset / SECTOR_BYTES,
                self.disk
                    .write(memory, chain.readable(), HEADER_BYTES, *extent)
                    .and_then(|()| self.write_through(io))
                    .map(|()| 0),
            ),
            Request::Flush => ("flush", 0, self.flush().map(|()| 0)),
            Request::Identify => return self.identify(chain, io),
            Request::Discard(ranges) => (
                "discard",
                0,
                ranges.iter().try_for_each(|range| self.disk.discard(range.extent)).map(|()| 0),
            ),
            Request::WriteZeroes(ranges) => (
                "write zeroes",
                0,
                ranges
                    .iter()
                    .try_for_each(|range| self.disk.write_zeroes(range.extent, range.unmap))
                    .and_then(|()| self.write_through(io))
                    .map(|()| 0),
            ),
        };
        outcome.map_err(|error| {
            self.disk.report(name, sector, &error);
            Status::IoError
        })
    }

    /// The fields of `struct virtio_blk_config` (section 5.2.4) that our features speak of.
    fn config(&self) -> [u8; CONFIG_BYTES] {
        let capacity = self.disk.capacity_sectors();
        let fields = [
            (0, capacity as u32),
            (4, (capacity >> 32) as u32),
            (12, MAX_SEGMENTS),
            (36, MAX_DISCARD_SECTORS),
            (40, MAX_DISCARD_RANGES as u32),
            (44, DISCARD_ALIGNMENT_SECTORS),
            (48, MAX_WRITE_ZEROES_SECTORS),
            (52, MAX_WRITE_ZEROES_RANGES as u32),
            (56, 1), // write_zeroes_may_unmap
        ];
        let mut config = [0; CONFIG_BYTES];
        for (at, value) in fields {
            for (to, from) in config.iter_mut().skip(at).zip(value.to_le_bytes()) {
                *to = from;
            }
        }
        config
    }

    fn identify(&self, chain: &Chain, io: &QueueIo<'_>) -> Result<u64, Status> {
        let room = usize::try_from(chain.writable_bytes().saturating_sub(1)).unwrap_or(ID_BYTES);
        let id = self.id.get(..room).unwrap_or(&self.id);
        let written = chain.write_at(io.memory(), 0, id).map_err(|_| Status::IoError)?;
        Ok(written as u64)
    }

    fn flush(&self) -> io::Result<()> {
        match self.cache {
            Cache::Unsafe => Ok(()),
            Cache::Writeback => self.disk.flush(),
        }
    }

    /// To a driver that was offered FLUSH and does not know it, a completed write is a stable
    /// one (section 5.2.6.2).
    fn write_through(&self, io: &QueueIo<'_>) -> io::Result<()> {
        if io.has_feature(VIRTIO_BLK_F_FLUSH) { Ok(()) } else { self.flush() }
    }
}

/// What the guest knows of its disk besides its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    capacity_sectors: u64,
    read_only: bool,
    id: [u8; ID_BYTES],
}

impl Stateful for Block {
    const TAG: Tag = Tag { kind: *b"VBLK", version: 1 };
    type State = State;

    fn save(&self) -> State {
        State {
            capacity_sectors: self.disk.capacity_sectors(),
            read_only: self.read_only,
            id: self.id,
        }
    }

    /// The guest goes on with the disk it knows, so the one of the configuration must be of the
    /// same size; a serial number that was read once stays.
    fn load(&mut self, state: State) -> Result<(), LoadError> {
        let invalid =
            |field, value, reason| LoadError::Invalid { tag: Self::TAG, field, value, reason };
        if state.capacity_sectors != self.disk.capacity_sectors() {
            let reason = "the disk image of the configuration has another size";
            return Err(invalid("capacity_sectors", state.capacity_sectors, reason));
        }
        if state.read_only != self.read_only {
            let reason = "the drive of the configuration has another is_read_only";
            return Err(invalid("read_only", state.read_only.into(), reason));
        }
        self.id = state.id;
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let write_commands = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        let access = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { write_commands };
        let flush = match self.cache {
            Cache::Unsafe => 0,
            Cache::Writeback => 1 << VIRTIO_BLK_F_FLUSH,
        };
        1 << VIRTIO_BLK_F_SEG_MAX | access | flush
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else { return };
        for (to, from) in data.iter_mut().zip(self.config().iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Nothing in it is writable without CONFIG_WCE.
    }

    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        while let Some(chain) = io.pop(queue)? {
            let filled = self.serve(&chain, io);
            io.complete(queue, chain, filled)?;
        }
        Ok(())
    }

    fn on_source(&mut self, _token: u32, _io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        Ok(()) // there are none
    }

    fn drain(&mut self, _io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        Ok(()) // a request is in flight only within `on_kick`
    }

    fn reset(&mut self) {
        // No register of ours remembers anything.
    }
}
