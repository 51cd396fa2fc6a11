//! An overlay: what one machine wrote to a disk whose base, or snapshot, it shares with others.
//!
//! ```text
//!  0          4096                                  data_start
//!  ┌─ header ─┬─ table: 2 bits for each block ──────┬─ block 0 ─┬─ block 1 ─┬─ ... (sparse)
//! ```
//! A block is 4 KiB and has its place in the file whether it is there or not. The states are kept
//! in memory and get to the file at a flush, in this order: the blocks are durable, then the
//! table is written, then that is durable. So a table never speaks of a block that is not there,
//! and after a crash at any point each sector is what it was at the last flush, or something that
//! was written to it since: what a disk with a cache promises.
//!
//! Without flushes from the guest (`Cache::Unsafe`) the table follows each change at once, so
//! that the end of the process loses nothing; a power failure of the host may.

mod backing;
mod below;
mod error;
mod file;
mod frozen;
mod header;
mod table;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use self::backing::Backing;
use self::below::Below;
pub use self::below::Layer;
pub use self::error::{Damage, OverlayError};
use self::file::{Places, check_worthless, load, make, open_locked, sync_directory, write_table};
pub use self::frozen::{Frozen, OverlayFile, Pages};
use self::header::Header;
pub use self::table::BlockState;
use self::table::Table;
use super::Cache;
use super::disk::{Disk, Extent, gather, transfer, zero_fill};
use crate::GuestMemory;
use crate::virtio::Segment;

/// The unit in which an overlay differs from its base, and a page of a snapshot.
pub const BLOCK_BYTES: u64 = 4096;
/// Where the table begins.
const TABLE_START: u64 = 4096;

/// A block's content.
pub type Block = [u8; BLOCK_BYTES as usize];

/// What is only read, and the file that takes the writes.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Below,
    header: Header,
    path: PathBuf,
    backing: Backing,
    table: Table,
    data_start: u64,
    cache: Cache,
}

impl Overlay {
    /// Opens or, if it is missing or empty, makes the overlay at `path`, and locks it.
    pub(super) fn open(base: Disk, path: &Path, cache: Cache) -> Result<Self, OverlayError> {
        Self::with_file(base, open_locked(path)?, path, cache)
    }

    /// Opens and locks what will be an overlay above `layer` when [`OverlayFile::begin`] is called,
    /// in place of the overlay of this disk that may be there. Anything else is not given up.
    pub(super) fn above(
        layer: Layer,
        base: Disk,
        path: &Path,
        cache: Cache,
    ) -> Result<Self, OverlayError> {
        let backing = Backing::new(open_locked(path)?);
        let header = Header { disk_bytes: base.capacity_bytes(), below: Some(layer.snapshot) };
        let places = Places::of(header.disk_bytes);
        check_worthless(&backing, &places, path, header.disk_bytes)?;
        let table = Table::blank(places.block_count);
        let below = Below::layer(base, layer.source);
        let (path, data_start) = (path.into(), places.data_start);
        Ok(Self { below, header, path, backing, table, data_start, cache })
    }

    fn with_file(base: Disk, file: File, path: &Path, cache: Cache) -> Result<Self, OverlayError> {
        let failed =
            |attempt| move |source| OverlayError::Io { path: path.into(), attempt, source };
        let header = Header { disk_bytes: base.capacity_bytes(), below: None };
        let backing = Backing::new(file);
        let places = Places::of(header.disk_bytes);
        let found_bytes = backing.len().map_err(failed("find the end of"))?;
        let table = if found_bytes == 0 {
            let table = make(&backing, &places, header).map_err(failed("make"))?;
            sync_directory(path).map_err(failed("make durable the name of"))?;
            table
        } else {
            load(&backing, &places, path, header)?
        };
        let (path, data_start) = (path.into(), places.data_start);
        Ok(Self { below: Below::base(base), header, path, backing, table, data_start, cache })
    }

    /// The file, for who saves and restores the machine.
    pub(super) fn file(&self) -> Result<OverlayFile, OverlayError> {
        let path = self.path.clone();
        let files = (self.backing.file().try_clone(), self.below.disk().file().try_clone());
        match files {
            (Ok(file), Ok(base)) => {
                let (backing, is_behind) = (Backing::new(file), self.table.is_behind());
                Ok(OverlayFile { path, backing, base, header: self.header, is_behind })
            }
            (Err(source), _) | (_, Err(source)) => {
                Err(OverlayError::Io { path, attempt: "duplicate the descriptor of", source })
            }
        }
    }

    pub(super) fn base(&self) -> &Disk {
        self.below.disk()
    }

    pub(super) fn base_mut(&mut self) -> &mut Disk {
        self.below.disk_mut()
    }

    /// As [`Disk::read`].
    pub(super) fn read(
        &mut self,
        memory: &GuestMemory,
        segments: &[Segment],
        skip: u64,
        extent: Extent,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < extent.len {
            let left = extent.after(done);
            let (state, len) = self.table.run(left.offset, left.len);
            let (part, skip) = (Extent { len, ..left }, skip.saturating_add(done));
            match state {
                BlockState::Absent => self.below.read(memory, segments, skip, part)?,
                BlockState::Zero => zero_fill(memory, segments, skip, len)?,
                BlockState::Present => {
                    let place = self.place(part);
                    transfer(memory, segments, skip, place, |part, at| {
                        self.backing.read(part, at)
                    })?;
                }
            }
            done = done.saturating_add(len);
        }
        Ok(())
    }

    /// As [`Disk::write`].
    pub(super) fn write(
        &mut self,
        memory: &GuestMemory,
        segments: &[Segment],
        skip: u64,
        extent: Extent,
    ) -> io::Result<()> {
        self.check_end(extent)?;
        let mut done = 0;
        while done < extent.len {
            let piece = self.piece(extent.after(done));
            let skip = skip.saturating_add(done);
            if self.is_whole(piece) || self.state(piece) == BlockState::Present {
                transfer(memory, segments, skip, self.place(piece), |part, at| {
                    self.backing.write(part, at)
                })?;
            } else {
                self.copy_up(piece, |bytes| gather(memory, segments, skip, bytes))?;
            }
            self.set(piece, BlockState::Present);
            done = done.saturating_add(piece.len);
        }
        self.follow()
    }

    /// As [`Disk::write_zeroes`]; what is freed or kept is the overlay's own affair.
    pub(super) fn write_zeroes(&mut self, extent: Extent) -> io::Result<()> {
        self.check_end(extent)?;
        let mut done = 0;
        while done < extent.len {
            let piece = self.piece(extent.after(done));
            let state = self.state(piece);
            if self.is_whole(piece) {
                self.zero(piece)?;
            } else if state == BlockState::Present {
                let zeroes = vec![0; piece.len as usize]; // less than a block
                self.backing.write_all(&zeroes, self.place(piece).offset)?;
            } else if state == BlockState::Absent {
                self.copy_up(piece, |bytes| {
                    bytes.fill(0);
                    Ok(())
                })?;
                self.set(piece, BlockState::Present);
            }
            done = done.saturating_add(piece.len);
        }
        self.follow()
    }

    /// As [`Disk::discard`]: whole blocks become zero, and parts of blocks stay.
    pub(super) fn discard(&mut self, extent: Extent) -> io::Result<()> {
        let mut done = 0;
        while done < extent.len {
            let piece = self.piece(extent.after(done));
            if self.is_whole(piece) {
                self.zero(piece)?;
            }
            done = done.saturating_add(piece.len);
        }
        self.follow()
    }

    /// As [`Disk::flush`].
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.backing.sync()?;
        if self.table.is_dirty() {
            write_table(&self.backing, &mut self.table)?;
            self.backing.sync()?;
        }
        Ok(())
    }

    /// Sees to it that the file has everything, for whoever looks at it while the machine is paused.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if self.table.is_dirty() { self.flush() } else { Ok(()) }
    }

    /// The table in the file follows that in memory where no flush will see to it.
    fn follow(&mut self) -> io::Result<()> {
        match self.cache {
            Cache::Unsafe => write_table(&self.backing, &mut self.table),
            Cache::Writeback => Ok(()),
        }
    }

    /// The first part of `extent`: in one block, or many whole ones.
    fn piece(&self, extent: Extent) -> Extent {
        let in_block = extent.offset % BLOCK_BYTES;
        let len = if in_block != 0 || extent.len < BLOCK_BYTES {
            BLOCK_BYTES.saturating_sub(in_block)
        } else {
            extent.len.saturating_sub(extent.len % BLOCK_BYTES)
        };
        Extent { offset: extent.offset, len: len.min(extent.len) }
    }

    fn is_whole(&self, piece: Extent) -> bool {
        piece.offset.is_multiple_of(BLOCK_BYTES) && piece.len.is_multiple_of(BLOCK_BYTES)
    }

    fn state(&self, piece: Extent) -> BlockState {
        self.table.state(piece.offset / BLOCK_BYTES)
    }

    fn set(&mut self, piece: Extent, state: BlockState) {
        let end = piece.offset.saturating_add(piece.len).div_ceil(BLOCK_BYTES);
        for block in piece.offset / BLOCK_BYTES..end {
            self.table.set(block, state);
        }
    }

    /// Where bytes of the disk are in the file.
    fn place(&self, extent: Extent) -> Extent {
        Extent { offset: self.data_start.saturating_add(extent.offset), ..extent }
    }

    /// Writes a block that is not there yet as it is below, but for `piece`, which `fill` gives.
    fn copy_up(
        &mut self,
        piece: Extent,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let block = piece.offset / BLOCK_BYTES;
        let mut bytes: Block = [0; BLOCK_BYTES as usize];
        if self.table.state(block) == BlockState::Absent {
            self.below.read_block(block, &mut bytes)?;
        }
        let start = (piece.offset % BLOCK_BYTES) as usize;
        let end = start.saturating_add(piece.len as usize);
        fill(bytes.get_mut(start..end).unwrap_or_default())?;
        let whole = Extent { offset: block.saturating_mul(BLOCK_BYTES), len: BLOCK_BYTES };
        self.backing.write_all(&bytes, self.place(whole).offset)
    }

    /// Whole blocks become zero and take no space.
    fn zero(&mut self, piece: Extent) -> io::Result<()> {
        let mut done = 0;
        while done < piece.len {
            let left = piece.after(done);
            let (state, len) = self.table.run(left.offset, left.len);
            if state == BlockState::Present {
                // Should the process end before the table is written, they are zero all the same.
                self.backing.punch(self.place(Extent { len, ..left }))?;
            }
            done = done.saturating_add(len);
        }
        self.set(piece, BlockState::Zero);
        Ok(())
    }

    /// An overlay that somebody truncated would grow again, with holes where data had been.
    fn check_end(&self, extent: Extent) -> io::Result<()> {
        let place = self.place(extent);
        if self.backing.len()? < place.offset.saturating_add(place.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl Drop for Overlay {
    /// A machine that ends in peace leaves its disk as its guest last saw it.
    fn drop(&mut self) {
        if let Err(error) = self.settle() {
            tracing::error!(%error, "write the block table of an overlay");
        }
    }
}
