//! What lies below an overlay: the base, or the disk of a snapshot and the base below that.
//!
//! ```text
//!  overlay            what this machine wrote
//!  layer, if any      what the machine had written when it was saved: pages of the snapshot's image
//!  base               everything else
//! ```
//! Pages of a layer are loaded when they are read, and verified before a byte of them is seen. One
//! that cannot be had is an I/O error for the guest, as a bad sector is, and never zeroes or what the
//! base has.

use std::fmt;
use std::io;

use rotifer_snapshot::layout::{CHUNK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK, PAGES_PER_CHUNK};
use rotifer_snapshot::{ChunkIndex, DiskBase, PageIndex, PageSet, PageSource, SnapshotId};

use super::super::disk::{Disk, Extent, scatter};
use super::{BLOCK_BYTES, Block};
use crate::GuestMemory;
use crate::virtio::Segment;

/// What a snapshot has of a disk.
pub struct Layer {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What it was taken over.
    pub base: DiskBase,
    /// Its pages.
    pub source: Box<dyn PageSource>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").field("snapshot", &self.snapshot).finish_non_exhaustive()
    }
}

/// What lies below an overlay.
#[derive(Debug)]
pub(super) struct Below {
    base: Disk,
    loader: Option<Loader>,
}

impl Below {
    pub(super) fn base(base: Disk) -> Self {
        Self { base, loader: None }
    }

    pub(super) fn layer(base: Disk, source: Box<dyn PageSource>) -> Self {
        let content = Box::new([0; CHUNK_BYTES]);
        Self { base, loader: Some(Loader { source, loaded: None, content }) }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.base
    }

    pub(super) fn disk_mut(&mut self) -> &mut Disk {
        &mut self.base
    }

    /// As [`Disk::read`].
    pub(super) fn read(
        &mut self,
        memory: &GuestMemory,
        segments: &[Segment],
        skip: u64,
        extent: Extent,
    ) -> io::Result<()> {
        let Some(loader) = &mut self.loader else {
            return self.base.read(memory, segments, skip, extent);
        };
        let mut done = 0;
        while done < extent.len {
            let left = extent.after(done);
            let (is_there, len) = loader.run(left)?;
            let (part, skip) = (Extent { len, ..left }, skip.saturating_add(done));
            if is_there {
                scatter(memory, segments, skip, loader.load(part)?)?;
            } else {
                self.base.read(memory, segments, skip, part)?;
            }
            done = done.saturating_add(len);
        }
        Ok(())
    }

    /// As [`Disk::read_block`].
    pub(super) fn read_block(&mut self, block: u64, bytes: &mut Block) -> io::Result<()> {
        let extent = Extent { offset: block.saturating_mul(BLOCK_BYTES), len: BLOCK_BYTES };
        if let Some(loader) = &mut self.loader
            && let (true, _) = loader.run(extent)?
        {
            bytes.copy_from_slice(loader.load(extent)?);
            return Ok(());
        }
        self.base.read_block(block, bytes)
    }
}

/// Loads a layer, a chunk at a time.
struct Loader {
    source: Box<dyn PageSource>,
    /// What `content` is: neighbours are mostly read one after the other.
    loaded: Option<ChunkIndex>,
    content: Box<[u8; CHUNK_BYTES]>,
}

impl Loader {
    /// Whether the layer has the first byte of `extent`, and for how many bytes that is so: at most
    /// to the end of a chunk, if it has it.
    fn run(&mut self, extent: Extent) -> io::Result<(bool, u64)> {
        let page = page_at(extent.offset)?;
        let block = page.block();
        let pages = match self.source.has_data(block) {
            true => self.source.pages(block).map_err(io::Error::other)?,
            false => PageSet::EMPTY,
        };
        let first = page.in_block();
        let is_there = pages.contains(first);
        let unit = if is_there { PAGES_PER_CHUNK } else { PAGES_PER_BLOCK };
        let limit = first.saturating_add(1).next_multiple_of(unit);
        let end = (first..limit).find(|page| pages.contains(*page) != is_there).unwrap_or(limit);
        let end_bytes = (end as u64).saturating_mul(PAGE_BYTES as u64);
        let len = block.offset_bytes().saturating_add(end_bytes).saturating_sub(extent.offset);
        Ok((is_there, len.min(extent.len)))
    }

    /// The bytes of an extent in one chunk.
    fn load(&mut self, extent: Extent) -> io::Result<&[u8]> {
        let chunk = page_at(extent.offset)?.chunk();
        if self.loaded != Some(chunk) {
            self.loaded = None;
            self.source.load_chunk(chunk, &mut self.content).map_err(io::Error::other)?;
            self.loaded = Some(chunk);
        }
        let start = extent.offset.saturating_sub(chunk.offset_bytes()) as usize; // in a chunk
        let end = start.saturating_add(extent.len as usize);
        self.content.get(start..end).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("loaded", &self.loaded).finish_non_exhaustive()
    }
}

fn page_at(offset: u64) -> io::Result<PageIndex> {
    PageIndex::at_offset(offset).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
