//! The file of an overlay as those see it who look after the machine: made anew when a machine is
//! restored, and read when one is saved.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rotifer_snapshot::layout::PAGE_BYTES;
use rotifer_snapshot::{BlockIndex, DiskBase, PageIndex, PageSet};

use super::backing::Backing;
use super::file::{Places, load};
use super::header::Header;
use super::table::Table;
use super::{BLOCK_BYTES, BlockState, OverlayError};

/// The file of a drive's overlay. The drive has it, too, and its lock.
#[derive(Debug)]
pub struct OverlayFile {
    pub(super) path: PathBuf,
    pub(super) backing: Backing,
    pub(super) base: File,
    pub(super) header: Header,
    /// Whether the table in the file lacks something.
    pub(super) is_behind: Arc<AtomicBool>,
}

impl OverlayFile {
    /// The length of the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.header.disk_bytes
    }

    /// What the file takes on the host's disk, which is at least what it has of the guest's.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn stored_bytes(&self) -> io::Result<u64> {
        const SECTOR_BYTES: u64 = 512;
        Ok(self.backing.file().metadata()?.blocks().saturating_mul(SECTOR_BYTES))
    }

    /// What lies below all.
    ///
    /// # Errors
    /// The base cannot be read.
    pub fn base(&self) -> io::Result<DiskBase> {
        DiskBase::of(&self.base, self.disk_bytes())
    }

    /// The last step of a restore: what is in the file gives way to an overlay of nothing. To be
    /// called before the guest runs, and when nothing can be refused any more. Without effect on an
    /// overlay that lies on its base.
    ///
    /// Nothing is synced: after a power cut the file is what it was before, or empty, or all zeroes,
    /// or an overlay over this snapshot, and each of them the next restore takes.
    ///
    /// # Errors
    /// [`OverlayError`] names the file.
    pub fn begin(&self) -> Result<(), OverlayError> {
        if self.header.below.is_none() {
            return Ok(());
        }
        let path = self.path.clone();
        let begin = || {
            self.backing.set_len(0)?;
            self.backing.set_len(Places::of(self.disk_bytes()).file_bytes)?;
            self.backing.write_all(&self.header.encode(), 0)
        };
        begin().map_err(|source| OverlayError::Io { path, attempt: "begin", source })
    }

    /// What the overlay of a machine has that is paused, and was drained since it last did anything.
    /// It is of no use once the machine goes on.
    ///
    /// # Errors
    /// [`OverlayError`] names the file and what is wrong with it.
    pub fn freeze(&self) -> Result<Frozen<'_>, OverlayError> {
        if self.is_behind.load(Ordering::Acquire) {
            return Err(OverlayError::Behind { path: self.path.clone() });
        }
        let places = Places::of(self.disk_bytes());
        let table = load(&self.backing, &places, &self.path, self.header)?;
        Ok(Frozen { backing: &self.backing, table, data_start: places.data_start })
    }
}

/// The overlay of a machine that stands still, in the units of a snapshot.
#[derive(Debug)]
pub struct Frozen<'a> {
    backing: &'a Backing,
    table: Table,
    data_start: u64,
}

impl Frozen<'_> {
    /// The pages that are not as below, data and zeroes alike, by block.
    pub fn blocks(&self) -> BTreeMap<BlockIndex, Pages> {
        let mut blocks: BTreeMap<BlockIndex, Pages> = BTreeMap::new();
        for (page, state) in self.table.marked() {
            let page = PageIndex(page as u32); // a disk has 32 GiB
            let (pages, page) = (blocks.entry(page.block()).or_default(), page.in_block());
            match state {
                BlockState::Present => pages.data.insert(page),
                BlockState::Zero => pages.zero.insert(page),
                BlockState::Absent => {}
            }
        }
        blocks
    }

    /// Fills `out` with these pages of a block, one after the other, which the overlay has data of.
    ///
    /// # Errors
    /// The host fails, or the file was cut off.
    pub fn read(&self, block: BlockIndex, pages: &PageSet, out: &mut [u8]) -> io::Result<()> {
        let mut out = out;
        let mut pages = pages.pages().peekable();
        while let Some(first) = pages.next() {
            let mut end = first.saturating_add(1);
            while pages.next_if_eq(&end).is_some() {
                end = end.saturating_add(1);
            }
            let bytes = end.saturating_sub(first).saturating_mul(PAGE_BYTES);
            let (part, rest) =
                out.split_at_mut_checked(bytes).ok_or(io::ErrorKind::InvalidInput)?;
            let offset = (first as u64).saturating_mul(BLOCK_BYTES);
            let at = self.data_start.saturating_add(block.offset_bytes()).saturating_add(offset);
            self.backing.read_exact(part, at)?;
            out = rest;
        }
        Ok(())
    }
}

/// What an overlay has of a block of the disk. (Its own blocks are the pages of a snapshot.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pages {
    /// Pages with content.
    pub data: PageSet,
    /// Pages that are zero, whatever is below.
    pub zero: PageSet,
}

impl Pages {
    /// Both.
    pub fn all(&self) -> PageSet {
        self.data.union(&self.zero)
    }
}
