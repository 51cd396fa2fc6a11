//! The file of an overlay, and in tests a record of what was done to it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::super::disk::{Extent, is_unsupported, retry};
use crate::virtio::GuestIoVec;

/// The file. Everything that changes it goes through here.
#[derive(Debug)]
pub(super) struct Backing {
    file: File,
    #[cfg(test)]
    pub(super) record: std::sync::Mutex<Vec<Deed>>,
}

/// What was done to the file.
#[cfg(test)]
#[derive(Debug, Clone)]
pub(super) enum Deed {
    /// These bytes were written there.
    Write(u64, Vec<u8>),
    /// A hole was made.
    Punch(Extent),
    /// The file got this length.
    Length(u64),
    /// Everything before is durable.
    Sync,
}

impl Backing {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(test)]
            record: std::sync::Mutex::default(),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        #[cfg(test)]
        self.record.lock().unwrap().push(Deed::Length(bytes));
        Ok(())
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    pub(super) fn read_exact(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    pub(super) fn read(&self, part: &GuestIoVec<'_>, at: u64) -> io::Result<u64> {
        part.read_from(&self.file, at)
    }

    pub(super) fn write_all(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        self.note(at, bytes.len() as u64);
        Ok(())
    }

    pub(super) fn write(&self, part: &GuestIoVec<'_>, at: u64) -> io::Result<u64> {
        let count = part.write_to(&self.file, at)?;
        self.note(at, count);
        Ok(count)
    }

    /// Frees space that nobody will read. A file system that cannot do it keeps it.
    pub(super) fn punch(&self, extent: Extent) -> io::Result<()> {
        let punched = retry(|| {
            Ok(fallocate(&self.file, FallocateMode::PunchHole, true, extent.offset, extent.len)?)
        });
        match punched {
            Err(error) if is_unsupported(&error) => return Ok(()),
            outcome => outcome?,
        }
        #[cfg(test)]
        self.record.lock().unwrap().push(Deed::Punch(extent));
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        #[cfg(test)]
        self.record.lock().unwrap().push(Deed::Sync);
        Ok(())
    }

    #[cfg(test)]
    fn note(&self, at: u64, len: u64) {
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        self.record.lock().unwrap().push(Deed::Write(at, bytes));
    }

    #[cfg(not(test))]
    fn note(&self, _at: u64, _len: u64) {}
}
