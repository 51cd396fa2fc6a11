//! Opening files that a configuration names, without ever waiting for them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens `path` for reading; a FIFO without a writer must not hold us up.
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Opens `path` for reading and writing, likewise.
pub(super) fn open_for_writing(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// What an open file is, in the words of the messages.
pub(super) fn kind(file: &File) -> io::Result<Kind> {
    let kind = file.metadata()?.file_type();
    Ok(match () {
        () if kind.is_file() => Kind::Regular,
        () if kind.is_block_device() => Kind::BlockDevice,
        () if kind.is_dir() => Kind::Other("a directory"),
        () if kind.is_fifo() => Kind::Other("a FIFO"),
        () if kind.is_char_device() => Kind::Other("a character device"),
        () => Kind::Other("a special file"),
    })
}

/// The kinds of files that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    BlockDevice,
    Other(&'static str),
}
