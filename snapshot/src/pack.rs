//! Packs: the files with the content of snapshots, one per layer.
//!
//! A pack is a header of one page with its name, then pieces, then block records. Nothing in it is
//! found but through a manifest, and all of it is covered by digests that begin there.

mod search;

pub use search::PackSearch;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::id::PackId;
use crate::layout::PAGE_BYTES;
use crate::manifest::FORMAT_VERSION;
use crate::wire::{Cursor, Put};

/// The first bytes of a pack.
pub const PACK_MAGIC: [u8; 8] = *b"RotiferP";
/// Bytes of a pack's header: a page, so that uncompressed pieces are aligned to pages.
pub const PACK_HEADER_BYTES: usize = PAGE_BYTES;

/// Content that is read from any place: a file, memory, and a remote object the same.
pub trait ReadAt: Send + Sync {
    /// Fills the buffer from this place.
    ///
    /// # Errors
    /// The content ends before the buffer is full (`UnexpectedEof`), or cannot be read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Its length.
    ///
    /// # Errors
    /// It cannot be asked.
    fn len_bytes(&self) -> io::Result<u64>;

    /// The file that it is, if it is one: another process can be handed that.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let content = start
            .and_then(|start| self.get(start..))
            .and_then(|rest| rest.get(..buffer.len()))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(content);
        Ok(())
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Why something is not a pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It cannot be read.
    #[error("read the pack {label}")]
    Read {
        /// The pack.
        label: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is no part of a snapshot yet, or no more.
    #[error("the pack {label} is being written, or removed")]
    Busy {
        /// The pack.
        label: String,
    },
    /// It is something else, or its header was changed.
    #[error("{label} is no pack: {reason}")]
    Header {
        /// The file.
        label: String,
        /// What is wrong with the header.
        reason: &'static str,
    },
    /// From another time.
    #[error("the pack {label} has format version {found}, and this program reads {FORMAT_VERSION}")]
    Version {
        /// The pack.
        label: String,
        /// The version.
        found: u32,
    },
    /// A directory that cannot be searched.
    #[error("look for packs in {directory}")]
    Directory {
        /// The directory.
        directory: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A pack that is open.
#[derive(Clone)]
pub struct Pack {
    /// Where it comes from; only for messages.
    pub label: Arc<str>,
    /// Its name.
    pub id: PackId,
    /// Its length when it was opened.
    pub bytes: u64,
    pub(crate) content: Arc<dyn ReadAt>,
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pack {} in {}", self.id, self.label)
    }
}

impl Pack {
    /// Reads and checks the header of a pack.
    ///
    /// # Errors
    /// See [`PackError`].
    pub fn open(label: &str, content: Arc<dyn ReadAt>) -> Result<Self, PackError> {
        let read_error = |source| PackError::Read { label: label.into(), source };
        let bytes = content.len_bytes().map_err(read_error)?;
        let mut header = [0; PACK_HEADER_BYTES];
        content.read_exact_at(&mut header, 0).map_err(read_error)?;
        let id = decode_header(label, &header)?;
        Ok(Self { label: label.into(), id, bytes, content })
    }

    /// Its file, if it is one.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.content.descriptor()
    }

    /// Whether its file has a name. One that has none is gone when nobody has it open any more: one
    /// in memory, or one that was removed.
    pub(crate) fn is_durable(&self) -> io::Result<bool> {
        self.descriptor().map_or(Ok(true), |file| Ok(rustix::fs::fstat(file)?.st_nlink > 0))
    }
}

/// The header of a new pack.
pub(crate) fn encode_header(id: PackId) -> Vec<u8> {
    let mut header = Vec::with_capacity(PACK_HEADER_BYTES);
    header.put(&PACK_MAGIC);
    header.put_u32(FORMAT_VERSION);
    header.put_u32(PAGE_BYTES as u32);
    header.put(&id.0);
    header.resize(PACK_HEADER_BYTES, 0);
    header
}

fn decode_header(label: &str, header: &[u8]) -> Result<PackId, PackError> {
    let refuse = |reason| PackError::Header { label: label.into(), reason };
    let cut = |_| refuse("its header is cut");
    let mut cursor = Cursor::new(header);
    let magic: [u8; 8] = cursor.array().map_err(cut)?;
    if magic != PACK_MAGIC {
        return Err(refuse("it begins with something else"));
    }
    let found = cursor.u32().map_err(cut)?;
    if found != FORMAT_VERSION {
        return Err(PackError::Version { label: label.into(), found });
    }
    if cursor.u32().map_err(cut)? as usize != PAGE_BYTES {
        return Err(refuse("it counts in other pages than those of 4096 bytes"));
    }
    let id = PackId(cursor.array().map_err(cut)?);
    if id == PackId::NIL {
        return Err(refuse("its name is empty"));
    }
    let rest = cursor.take(cursor.left()).map_err(cut)?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(refuse("its header has bytes that nobody knows"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_of_a_header_is_noticed() {
        let id = PackId([9; 16]);
        let header = encode_header(id);
        assert_eq!(Pack::open("good", Arc::new(header.clone())).unwrap().id, id);
        for at in 0..header.len() {
            let mut changed = header.clone();
            changed[at] ^= 0x10;
            let same = Pack::open("bad", Arc::new(changed)).is_ok_and(|pack| pack.id == id);
            assert!(!same, "byte {at}");
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let error = Pack::open("short", Arc::new(vec![1; 10])).unwrap_err();
        assert_eq!(error.to_string(), "read the pack short");
        let error = Pack::open("other", Arc::new(vec![1; 5000])).unwrap_err();
        assert_eq!(error.to_string(), "other is no pack: it begins with something else");
        let mut newer = encode_header(PackId([1; 16]));
        newer[8] = 2;
        let error = Pack::open("newer", Arc::new(newer)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pack newer has format version 2, and this program reads 1"
        );
    }
}
