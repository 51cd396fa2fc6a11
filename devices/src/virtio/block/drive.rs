//! What the requests of a driver mean for a disk, whichever engine serves them.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::medium::Medium;
use super::request::{HEADER_BYTES, Limits, Request, Status};
use super::{
    Cache, DISCARD_ALIGNMENT_SECTORS, ID_BYTES, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS,
    MAX_SEGMENTS, MAX_WRITE_ZEROES_RANGES, MAX_WRITE_ZEROES_SECTORS, Options, SECTOR_BYTES,
};
use crate::GuestMemory;
use crate::virtio::{Chain, QueueIo};

/// Size of the configuration space, up to the fields of WRITE_ZEROES.
const CONFIG_BYTES: usize = 60;

/// A disk as its driver sees it.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) disk: Medium,
    pub(super) read_only: bool,
    pub(super) cache: Cache,
    pub(super) id: [u8; ID_BYTES],
}

impl Drive {
    pub(super) fn new(disk: Medium, options: &Options) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(options.id.bytes()) {
            *to = from;
        }
        Self { disk, read_only: options.read_only, cache: options.cache, id }
    }

    /// What messages call it.
    pub(super) fn name(&self) -> String {
        let len = self.id.iter().position(|byte| *byte == 0).unwrap_or(ID_BYTES);
        String::from_utf8_lossy(self.id.get(..len).unwrap_or_default()).into_owned()
    }

    /// Does what `chain` asks for and writes its status. The number of bytes of its writable
    /// part that are filled, counted from its beginning, comes back.
    pub(super) fn serve(&mut self, chain: &Chain, io: &QueueIo<'_>) -> u32 {
        if chain.writable_bytes() == 0 {
            return 0; // no place for an answer
        }
        let outcome =
            self.parse(chain, io.memory()).and_then(|request| self.execute(&request, chain, io));
        answer(chain, io.memory(), outcome)
    }

    /// Reads and checks the request in `chain`.
    pub(super) fn parse(&self, chain: &Chain, memory: &GuestMemory) -> Result<Request, Status> {
        let limits =
            Limits { capacity_sectors: self.disk.capacity_sectors(), read_only: self.read_only };
        Request::parse(chain, memory, limits)
    }

    /// Returns how many bytes of data the driver gets.
    pub(super) fn execute(
        &mut self,
        request: &Request,
        chain: &Chain,
        io: &QueueIo<'_>,
    ) -> Result<u64, Status> {
        let memory = io.memory();
        let outcome = match request {
            Request::Read(extent) => {
                self.disk.read(memory, chain.writable(), 0, *extent).map(|()| extent.len)
            }
            Request::Write(extent) => self
                .disk
                .write(memory, chain.readable(), HEADER_BYTES, *extent)
                .and_then(|()| self.write_through(io))
                .map(|()| 0),
            Request::Flush => self.flush().map(|()| 0),
            Request::Identify => return self.identify(chain, io),
            Request::Discard(ranges) => {
                ranges.iter().try_for_each(|range| self.disk.discard(range.extent)).map(|()| 0)
            }
            Request::WriteZeroes(ranges) => ranges
                .iter()
                .try_for_each(|range| self.disk.write_zeroes(range.extent, range.unmap))
                .and_then(|()| self.write_through(io))
                .map(|()| 0),
        };
        outcome.map_err(|error| self.failed(request, &error))
    }

    /// What the driver is told when the host fails.
    pub(super) fn failed(&mut self, request: &Request, error: &io::Error) -> Status {
        let (name, sector) = match request {
            Request::Read(extent) => ("read", extent.offset / SECTOR_BYTES),
            Request::Write(extent) => ("write", extent.offset / SECTOR_BYTES),
            Request::Flush => ("flush", 0),
            Request::Identify => ("identify", 0),
            Request::Discard(_) => ("discard", 0),
            Request::WriteZeroes(_) => ("write zeroes", 0),
        };
        self.disk.report(name, sector, error);
        Status::IoError
    }

    fn identify(&self, chain: &Chain, io: &QueueIo<'_>) -> Result<u64, Status> {
        let room = usize::try_from(chain.writable_bytes().saturating_sub(1)).unwrap_or(ID_BYTES);
        let id = self.id.get(..room).unwrap_or(&self.id);
        let written = chain.write_at(io.memory(), 0, id).map_err(|_| Status::IoError)?;
        Ok(written as u64)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.cache {
            Cache::Unsafe => Ok(()),
            Cache::Writeback => self.disk.flush(),
        }
    }

    /// To a driver that was offered FLUSH and does not know it, a completed write is a stable
    /// one (section 5.2.6.2).
    pub(super) fn writes_through(&self, io: &QueueIo<'_>) -> bool {
        self.cache == Cache::Writeback && !io.has_feature(VIRTIO_BLK_F_FLUSH)
    }

    fn write_through(&mut self, io: &QueueIo<'_>) -> io::Result<()> {
        if self.writes_through(io) { self.disk.flush() } else { Ok(()) }
    }

    /// The feature bits, apart from that of the queues.
    pub(super) fn features(&self) -> u64 {
        let write_commands = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        let access = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { write_commands };
        let flush = match self.cache {
            Cache::Unsafe => 0,
            Cache::Writeback => 1 << VIRTIO_BLK_F_FLUSH,
        };
        1 << VIRTIO_BLK_F_SEG_MAX | access | flush
    }

    /// The fields of `struct virtio_blk_config` (section 5.2.4) that our features speak of.
    pub(super) fn config(&self, queue_count: u16) -> [u8; CONFIG_BYTES] {
        let capacity = self.disk.capacity_sectors();
        let fields = [
            (0, capacity as u32),
            (4, (capacity >> 32) as u32),
            (12, MAX_SEGMENTS),
            // Two bytes, with `writeback` and a reserved one before them.
            (32, u32::from(queue_count) << 16),
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
}

/// Writes the status of a request, which stands last in its writable part. `outcome` is how many
/// bytes the driver gets; how many of the writable part are filled comes back.
pub(super) fn answer(chain: &Chain, memory: &GuestMemory, outcome: Result<u64, Status>) -> u32 {
    let Some(status_offset) = chain.writable_bytes().checked_sub(1) else {
        return 0;
    };
    let (status, filled) = match outcome {
        Ok(filled) => (Status::Ok, filled),
        Err(status) => (status, 0),
    };
    let told = chain.write_at(memory, status_offset, &[status as u8]).is_ok();
    let filled = if told && filled == status_offset { filled.saturating_add(1) } else { filled };
    u32::try_from(filled).unwrap_or(u32::MAX)
}
