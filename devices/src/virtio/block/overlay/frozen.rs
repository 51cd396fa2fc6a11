//! An overlay that stands still, page by page: what a snapshot takes of a disk, and gives back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::backing::Backing;
use super::table::Table;
use super::{BLOCK_BYTES, Block, BlockState, OverlayError, Places, load, seal};

/// The overlay of a machine that is paused, and was drained since it last did anything: then the
/// file has all of it. Reads the same file as the device, and is of no use once that goes on.
#[derive(Debug)]
pub struct Frozen {
    backing: Backing,
    table: Table,
    data_start: u64,
}

impl Frozen {
    /// The overlay at `path`, whatever locks there are on it.
    ///
    /// # Errors
    /// [`OverlayError`] names the file and what is wrong with it.
    pub fn open(path: &Path, disk_bytes: u64) -> Result<Self, OverlayError> {
        let file = File::open(path).map_err(|source| OverlayError::Io {
            path: path.into(),
            attempt: "open",
            source,
        })?;
        Self::with_file(file, path, disk_bytes)
    }

    /// The same in an open file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_file(file: File, path: &Path, disk_bytes: u64) -> Result<Self, OverlayError> {
        let backing = Backing::new(file);
        let places = Places::of(disk_bytes);
        let table = load(&backing, &places, path, disk_bytes)?;
        Ok(Self { backing, table, data_start: places.data_start })
    }

    /// How many pages the disk has; the last may be cut by its end.
    pub fn page_count(&self) -> u64 {
        self.table.block_count()
    }

    /// What the overlay knows of `page`.
    pub fn state(&self, page: u64) -> BlockState {
        self.table.state(page)
    }

    /// The pages that are not as in the base, in ascending order, as long ranges of one state.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, BlockState)> + '_ {
        let mut next = 0;
        let runs = std::iter::from_fn(move || {
            let left = self.page_count().checked_sub(next).filter(|left| *left > 0)?;
            let offset = next.saturating_mul(BLOCK_BYTES);
            let (state, len) = self.table.run(offset, left.saturating_mul(BLOCK_BYTES));
            let start = next;
            next = start.saturating_add(len / BLOCK_BYTES);
            Some((start..next, state))
        });
        runs.filter(|(_, state)| *state != BlockState::Absent)
    }

    /// Fills `out` with a page; with zeroes if the overlay does not have it.
    ///
    /// # Errors
    /// The host fails, or the file was cut off.
    pub fn read(&self, page: u64, out: &mut Block) -> io::Result<BlockState> {
        let state = self.state(page);
        match state {
            BlockState::Present => {
                let at = page.saturating_mul(BLOCK_BYTES).saturating_add(self.data_start);
                self.backing.read_exact(out, at)?;
            }
            BlockState::Absent | BlockState::Zero => out.fill(0),
        }
        Ok(state)
    }
}

/// Makes the overlay with which a restored machine starts, of what a snapshot has of its disk.
#[derive(Debug)]
pub struct Thawing {
    backing: Backing,
    table: Table,
    data_start: u64,
    disk_bytes: u64,
}

impl Thawing {
    /// An overlay in `file`, which is empty. Nothing opens it before [`Self::finish`].
    ///
    /// # Errors
    /// The host refuses.
    pub fn begin(file: File, disk_bytes: u64) -> io::Result<Self> {
        let backing = Backing::new(file);
        let places = Places::of(disk_bytes);
        let table = Table::new(places.block_count);
        backing.file().set_len(places.file_bytes)?;
        Ok(Self { backing, table, data_start: places.data_start, disk_bytes })
    }

    /// The disk has these bytes there.
    ///
    /// # Errors
    /// The host refuses; or there is no such page.
    pub fn put(&mut self, page: u64, bytes: &Block) -> io::Result<()> {
        self.check(page)?;
        let at = page.saturating_mul(BLOCK_BYTES).saturating_add(self.data_start);
        self.backing.write_all(bytes, at)?;
        self.table.set(page, BlockState::Present);
        Ok(())
    }

    /// The disk has zeroes there, whatever its base has.
    ///
    /// # Errors
    /// There is no such page.
    pub fn put_zero(&mut self, page: u64) -> io::Result<()> {
        self.check(page)?;
        self.table.set(page, BlockState::Zero);
        Ok(())
    }

    /// The file is an overlay now, and durable.
    ///
    /// # Errors
    /// The host refuses.
    pub fn finish(mut self) -> io::Result<()> {
        seal(&self.backing, &mut self.table, self.disk_bytes)
    }

    fn check(&self, page: u64) -> io::Result<()> {
        if page < self.table.block_count() {
            Ok(())
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}
