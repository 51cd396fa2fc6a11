//! The listening Unix socket: taken only when nobody else has it, removed only when it is ours.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, listen, socket_with,
};
use rustix::stdio::dup2_stdin;

use crate::config::{Occupant, occupant};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum SocketError {
    #[error(
        "the API socket {} is in use by another live process; stop it or choose another path",
        path.display()
    )]
    Busy { path: PathBuf },
    #[error(
        "the API socket {} cannot be created: a file that is not a socket is there; \
         remove it or choose another path",
        path.display()
    )]
    NotASocket { path: PathBuf },
    #[error("cannot listen on the API socket {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// A listening socket and the file it is known by.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, to know it again.
    file: (u64, u64),
}

impl Socket {
    /// Listens on `path`; a socket there that nobody listens on any more is replaced. If standard input listens
    /// there already, as systemd's `StandardInput=socket` has it, that is taken: whoever starts the process can
    /// then talk to it at once, and need not find out when it listens.
    pub(super) fn listen(path: &Path) -> Result<Self, SocketError> {
        let attempt = |source| SocketError::Listen { path: path.into(), source };
        let inherited = is_listening_at(io::stdin().as_fd(), path);
        let listener = match if inherited { take_stdin() } else { bind_for_owner(path) } {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                // Two processes that find the same dead socket must not remove each other's
                // new one. The lock goes with the descriptor.
                let _lock = lock_directory_of(path)?;
                remove_dead(path)?;
                bind_for_owner(path).map_err(attempt)?
            }
            result => result.map_err(attempt)?,
        };
        listener.set_nonblocking(true).map_err(attempt)?;
        let file = identity(path).map_err(attempt)?;
        Ok(Self { listener, path: path.into(), file })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove the API socket {}: {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Binds with mode 0600 from the first moment: a client that got in would stay in.
fn bind_for_owner(path: &Path) -> io::Result<UnixListener> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    // The file gets the mode that the socket has by then.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn is_listening_at(socket: BorrowedFd<'_>, path: &Path) -> bool {
    let is_listening = socket_acceptconn(socket).unwrap_or(false);
    let address =
        getsockname(socket).ok().and_then(|address| SocketAddrUnix::try_from(address).ok());
    is_listening && address.is_some_and(|it| it.path_bytes() == Some(path.as_os_str().as_bytes()))
}

/// Nothing else can be read there from then on.
fn take_stdin() -> io::Result<UnixListener> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket.into())
}

fn lock_directory_of(path: &Path) -> Result<File, SocketError> {
    let attempt = |source| SocketError::Listen { path: path.into(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = File::open(directory).map_err(attempt)?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(SocketError::Busy { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(attempt(source)),
    }
}

fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let attempt = |source| SocketError::Listen { path: path.into(), source };
    match occupant(path).map_err(attempt)? {
        Occupant::Nobody => Ok(()),
        Occupant::Dead => fs::remove_file(path).map_err(attempt),
        Occupant::Live => Err(SocketError::Busy { path: path.into() }),
        Occupant::NotASocket => Err(SocketError::NotASocket { path: path.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_taken_over_only_if_it_listens_at_the_very_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let socket = bind_for_owner(&path).unwrap();
        assert!(is_listening_at(socket.as_fd(), &path));
        assert!(!is_listening_at(socket.as_fd(), &directory.path().join("b.sock")));
        let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_listening_at(one.as_fd(), &path));
        assert!(!is_listening_at(File::open("/dev/null").unwrap().as_fd(), &path));
    }
}
