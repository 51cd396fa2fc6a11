//! Looking at files that a configuration names, without ever waiting for them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
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

/// Who has the path that a Unix socket is to be bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occupant {
    /// The path is free.
    Nobody,
    /// A socket whose process is gone.
    Dead,
    /// A socket of a process that lives.
    Live,
    /// A file that is not a socket.
    NotASocket,
}

/// Finds out who has `path`, without disturbing or waiting for them.
pub(crate) fn occupant(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Ok(Occupant::NotASocket),
        Ok(_) => {}
    }
    // A datagram socket never waits for the other side, as a stream would when its queue is
    // full. The kernel looks for an owner first (ECONNREFUSED: there is none) and at the type
    // of socket after that (EPROTOTYPE: there is one).
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Occupant::Dead),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Occupant::Nobody),
        _ => Ok(Occupant::Live),
    }
}
