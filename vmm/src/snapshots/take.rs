//! What a snapshot needs from the machine itself, taken while it stands still.
//!
//! ```text
//!  machine paused:  state, and pages ─┬─ in place, to be read while it stays paused
//!                                     └─ copied into room that was made before; it goes on
//!  later:           Taken ─▶ Writer
//! ```
//! The pages are those that are the machine's own. All others are those of the snapshot that it
//! comes from, and are read from there: nothing is loaded into the machine for a snapshot of it.

use rotifer_devices::GuestMemory;
use rotifer_snapshot::layout::{BLOCK_BYTES, BlockIndex, PAGE_BYTES, block_count};
use rotifer_snapshot::{ImageReader, Name, PageSet, PageSource, Snapshot, Staging, Writer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::disks::{DiskError, DiskImage};
use super::own_pages::Pagemap;
use super::room::Room;
use super::{Origin, OriginError, RAM, SnapshotError};
use crate::arch::aarch64::layout::RAM_START;
use crate::machine_state::MachineState;
use crate::table::DiskOverlay;

/// A machine that stands still.
pub struct Still<'a> {
    /// Its RAM.
    pub memory: &'a GuestMemory,
    /// What it knew when it was saved, before its RAM is read.
    pub state: MachineState,
    /// Its disks, as far as they have overlays.
    pub overlays: &'a [DiskOverlay],
}

/// What a machine was at one moment.
pub struct Taken<'a> {
    /// The state of its parts.
    pub state: MachineState,
    /// How much RAM it has.
    pub ram_bytes: u64,
    /// What it has of its disks.
    pub(super) disks: Vec<DiskImage<'a>>,
    pages: Pages<'a>,
}

/// Where the machine's own pages are.
enum Pages<'a> {
    /// In RAM, which nobody changes meanwhile.
    InPlace(&'a GuestMemory),
    /// Beside it.
    Copied(Staging),
}

impl<'a> Taken<'a> {
    /// That of a machine that stands still until the snapshot is written. `origin` is what it comes
    /// from, or its last snapshot.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn in_place(still: Still<'a>, origin: Option<&Origin>) -> Result<Self, SnapshotError> {
        let Still { memory, state, overlays } = still;
        let disks = disks(overlays, origin)?;
        Ok(Self { state, ram_bytes: ram_bytes(memory), disks, pages: Pages::InPlace(memory) })
    }

    /// That of a machine that goes on when this returns.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn copied(
        still: Still<'_>,
        origin: Option<&Origin>,
        room: Room,
    ) -> Result<Self, SnapshotError> {
        let Still { memory, state, overlays } = still;
        let mut staging = room.into_staging();
        let name = Name::new(RAM)?;
        for_each_own_block(memory, |block, pages| {
            let bytes = pages.count() * PAGE_BYTES;
            let place = staging.add(&name, block, &pages);
            let place = place.map_err(|source| SnapshotError::Room { bytes, source })?;
            read(memory, block, &pages, place)
        })?;
        let disks = disks(overlays, origin)?.into_iter().map(DiskImage::copied);
        let disks = disks.collect::<Result<_, _>>()?;
        Ok(Self { state, ram_bytes: ram_bytes(memory), disks, pages: Pages::Copied(staging) })
    }

    /// How much was copied.
    pub fn copied_bytes(&self) -> usize {
        match &self.pages {
            Pages::InPlace(_) => 0,
            Pages::Copied(staging) => {
                staging.used_bytes() + self.disks.iter().map(DiskImage::data_bytes).sum::<usize>()
            }
        }
    }

    /// Gives `writer` every page that is the machine's own, and all else that `image` has.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn write(
        &self,
        writer: &mut Writer,
        image: Option<&Snapshot>,
    ) -> Result<(), SnapshotError> {
        for disk in &self.disks {
            disk.write_own(writer)?;
            image.map_or(Ok(()), |image| disk.write_inherited(writer, image))?;
        }
        let image = image.map(Snapshot::memory).transpose().map_err(OriginError::from)?;
        let mut ram = RamWriter {
            name: Name::new(RAM)?,
            writer,
            block_count: block_count(self.ram_bytes),
            next: 0,
            image,
            buffer: Vec::new(),
        };
        match &self.pages {
            Pages::Copied(staging) => {
                for (_, block, pages, content) in staging.blocks() {
                    ram.put(block, pages, content)?;
                }
            }
            Pages::InPlace(memory) => {
                let mut content = vec![0; BLOCK_BYTES];
                for_each_own_block(memory, |block, pages| {
                    let content = &mut content[..pages.count() * PAGE_BYTES];
                    read(memory, block, &pages, content)?;
                    ram.put(block, &pages, content)
                })?;
            }
        }
        ram.finish()
    }
}

fn disks<'a>(
    overlays: &'a [DiskOverlay],
    origin: Option<&Origin>,
) -> Result<Vec<DiskImage<'a>>, DiskError> {
    let origin = origin.map(|origin| &origin.snapshot);
    overlays.iter().map(|overlay| DiskImage::of(overlay, origin)).collect()
}

/// How much of RAM is the machine's own, by and large: it may be running.
pub fn own_bytes(memory: &GuestMemory) -> Result<u64, SnapshotError> {
    let mut pages = 0;
    for_each_own_block(memory, |_, own| {
        pages += own.count() as u64;
        Ok(())
    })?;
    Ok(pages * PAGE_BYTES as u64)
}

fn ram_bytes(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// The blocks of which pages are the machine's own, in order.
fn for_each_own_block(
    memory: &GuestMemory,
    mut visit: impl FnMut(BlockIndex, PageSet) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let mut pagemap = Pagemap::open().map_err(SnapshotError::Resident)?;
    let ram_bytes = ram_bytes(memory);
    for block in (0..block_count(ram_bytes)).map(BlockIndex) {
        let bytes = (ram_bytes - block.offset_bytes()).min(BLOCK_BYTES as u64) as usize;
        let address = memory.get_host_address(address(block))? as usize;
        let pages = pagemap.own(address, bytes).map_err(SnapshotError::Resident)?;
        if !pages.is_empty() {
            visit(block, pages)?;
        }
    }
    Ok(())
}

fn address(block: BlockIndex) -> GuestAddress {
    GuestAddress(RAM_START.0 + block.offset_bytes())
}

/// Reads pages of a block, one after the other.
fn read(
    memory: &GuestMemory,
    block: BlockIndex,
    pages: &PageSet,
    out: &mut [u8],
) -> Result<(), SnapshotError> {
    for (page, place) in pages.pages().zip(out.chunks_exact_mut(PAGE_BYTES)) {
        memory.read_slice(place, GuestAddress(address(block).0 + (page * PAGE_BYTES) as u64))?;
    }
    Ok(())
}

/// Gives a writer the blocks of RAM in their order: pages of the machine on top of those of the image.
struct RamWriter<'a> {
    name: Name,
    writer: &'a mut Writer,
    block_count: u32,
    /// All blocks before this one were given.
    next: u32,
    /// What is to be taken over; none if the writer does so by itself, or there is nothing.
    image: Option<ImageReader>,
    /// One block of it.
    buffer: Vec<u8>,
}

impl RamWriter<'_> {
    fn put(
        &mut self,
        block: BlockIndex,
        pages: &PageSet,
        content: &[u8],
    ) -> Result<(), SnapshotError> {
        self.take_over_until(block)?;
        self.next = block.0 + 1;
        if !self.image.as_ref().is_some_and(|image| image.has_data(block)) {
            return Ok(self.writer.put_block(&self.name, block, pages, content)?);
        }
        self.take_over(block, pages, content)
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        self.take_over_until(BlockIndex(self.block_count))
    }

    /// Of these blocks, the machine has no pages of its own.
    fn take_over_until(&mut self, end: BlockIndex) -> Result<(), SnapshotError> {
        for block in (self.next..end.0).map(BlockIndex) {
            if self.image.as_ref().is_some_and(|image| image.has_data(block)) {
                self.take_over(block, &PageSet::EMPTY, &[])?;
            }
        }
        Ok(())
    }

    fn take_over(
        &mut self,
        block: BlockIndex,
        own: &PageSet,
        content: &[u8],
    ) -> Result<(), SnapshotError> {
        let Some(image) = &mut self.image else { return Ok(()) };
        self.buffer.resize(BLOCK_BYTES, 0);
        let whole = self.buffer.as_mut_array().expect("the buffer has the bytes of a block");
        let pages = image.load_block(block, whole).map_err(SnapshotError::Source)?.union(own);
        for (page, content) in own.pages().zip(content.chunks_exact(PAGE_BYTES)) {
            whole[page * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(content);
        }
        // The writer wants them one after the other.
        for (place, page) in pages.pages().enumerate() {
            whole.copy_within(page * PAGE_BYTES..(page + 1) * PAGE_BYTES, place * PAGE_BYTES);
        }
        let content = &whole[..pages.count() * PAGE_BYTES];
        Ok(self.writer.put_block(&self.name, block, &pages, content)?)
    }
}

#[cfg(test)]
pub(super) mod tests;
