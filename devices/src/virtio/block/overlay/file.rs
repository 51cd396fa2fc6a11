//! The file of an overlay: opened, made, and read.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::backing::Backing;
use super::header::{HEADER_BYTES, Header};
use super::table::{Blank, Table, UNIT_BYTES};
use super::{BLOCK_BYTES, Damage, OverlayError, TABLE_START};

/// Where things are in the file of an overlay.
pub(super) struct Places {
    pub(super) block_count: u64,
    pub(super) data_start: u64,
    pub(super) file_bytes: u64,
}

impl Places {
    pub(super) fn of(disk_bytes: u64) -> Self {
        let block_count = disk_bytes.div_ceil(BLOCK_BYTES);
        let table_bytes = Table::unit_count(block_count).saturating_mul(UNIT_BYTES as u64);
        let data_start = TABLE_START.saturating_add(table_bytes.next_multiple_of(BLOCK_BYTES));
        let file_bytes = data_start.saturating_add(block_count.saturating_mul(BLOCK_BYTES));
        Self { block_count, data_start, file_bytes }
    }
}

/// Reads the table of an overlay and checks all that there is to check.
pub(super) fn load(
    backing: &Backing,
    places: &Places,
    path: &Path,
    expected: Header,
) -> Result<Table, OverlayError> {
    let failed = |attempt| move |source| OverlayError::Io { path: path.into(), attempt, source };
    let damaged = |source| OverlayError::Damaged { path: path.into(), source };
    let found_bytes = backing.len().map_err(failed("find the end of"))?;
    if found_bytes < TABLE_START {
        return Err(damaged(Damage::NotAnOverlay));
    }
    let mut header = [0; HEADER_BYTES];
    backing.read_exact(&mut header, 0).map_err(failed("read the header of"))?;
    let found = Header::decode(&header).map_err(damaged)?;
    expected.check(found).map_err(damaged)?;
    let expected_bytes = places.file_bytes;
    if found_bytes != expected_bytes {
        return Err(damaged(Damage::Length { found_bytes, expected_bytes }));
    }
    // As large as the table of this disk, whatever the file says.
    let mut units = vec![[0; UNIT_BYTES]; Table::unit_count(places.block_count) as usize];
    let table = units.as_flattened_mut();
    backing.read_exact(table, TABLE_START).map_err(failed("read the table of"))?;
    let blank = if expected.below.is_some() { Blank::Absent } else { Blank::Damaged };
    Table::decode(units, places.block_count, blank).map_err(damaged)
}

/// Whether a file may be given up for a restored machine: it is empty, or an overlay of this disk, or
/// what is left of one whose making was cut off. Whatever else it is has been named by mistake.
pub(super) fn check_worthless(
    backing: &Backing,
    places: &Places,
    path: &Path,
    disk_bytes: u64,
) -> Result<(), OverlayError> {
    let failed = |attempt| move |source| OverlayError::Io { path: path.into(), attempt, source };
    let damaged = |source| OverlayError::Damaged { path: path.into(), source };
    let found_bytes = backing.len().map_err(failed("find the end of"))?;
    if found_bytes == 0 {
        return Ok(());
    }
    if found_bytes < TABLE_START {
        return Err(damaged(Damage::NotAnOverlay));
    }
    let mut start = [0; TABLE_START as usize];
    backing.read_exact(&mut start, 0).map_err(failed("read the header of"))?;
    if start == [0; TABLE_START as usize] && found_bytes == places.file_bytes {
        return Ok(());
    }
    let header = start.first_chunk().ok_or_else(|| damaged(Damage::NotAnOverlay))?;
    let overlay_bytes = Header::decode(header).map_err(damaged)?.disk_bytes;
    if overlay_bytes != disk_bytes {
        return Err(damaged(Damage::OtherDisk { overlay_bytes, disk_bytes }));
    }
    Ok(())
}

/// Opens or makes a file that nobody else uses as an overlay.
pub(super) fn open_locked(path: &Path) -> Result<File, OverlayError> {
    let failed = |attempt| move |source| OverlayError::Io { path: path.into(), attempt, source };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        // A FIFO would block us until somebody else opens it.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed("open"))?;
    if !file.metadata().map_err(failed("inspect"))?.is_file() {
        let source = Damage::NotAnOverlay;
        return Err(OverlayError::Damaged { path: path.into(), source });
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OverlayError::InUse { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// Makes an overlay in an empty file.
pub(super) fn make(backing: &Backing, places: &Places, header: Header) -> io::Result<Table> {
    backing.set_len(places.file_bytes)?;
    let mut table = Table::new(places.block_count);
    write_table(backing, &mut table)?;
    backing.sync()?;
    // A file is an overlay when its header is there, which therefore comes last.
    backing.write_all(&header.encode(), 0)?;
    backing.sync()?;
    Ok(table)
}

pub(super) fn write_table(backing: &Backing, table: &mut Table) -> io::Result<()> {
    while let Some((unit, bytes)) = table.next_dirty() {
        let at = (unit as u64).saturating_mul(UNIT_BYTES as u64);
        backing.write_all(&bytes, TABLE_START.saturating_add(at))?;
        table.is_written(unit);
    }
    Ok(())
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    File::open(parent)?.sync_all()
}
