//! The agent's end of vsock.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, getpeername,
    listen, socket,
};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// The host's context id.
const HOST_CID: u32 = libc::VMADDR_CID_HOST;
const BACKLOG: i32 = 128;

/// A listening vsock socket that lets in nobody but the host.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Listens on `port` of this guest.
    ///
    /// # Errors
    /// The kernel has no vsock, or the port is taken.
    pub fn bind(port: u32) -> io::Result<Self> {
        let socket = new_socket()?;
        bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        // SAFETY: the socket is an open descriptor of its own and is never replaced inside.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// The next connection of the host. Others are closed unheard: a process of the guest that came
    /// through the loopback transport would otherwise be root.
    ///
    /// # Errors
    /// What `accept` says; the listener stays usable.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let mut ready = self.0.readable().await?;
            let accepted = ready.try_io(|socket| {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                Ok(accept4(socket.as_raw_fd(), flags)?)
            });
            let Ok(descriptor) = accepted else { continue };
            // SAFETY: accept4 gave a new descriptor that nobody else owns.
            let socket = unsafe { OwnedFd::from_raw_fd(descriptor?) };
            match getpeername::<VsockAddr>(socket.as_raw_fd()) {
                Ok(peer) if peer.cid() == HOST_CID => return into_stream(socket),
                _ => {}
            }
        }
    }
}

/// Connects to `port` of the host.
///
/// # Errors
/// Nobody listens there, or there is no vsock.
pub async fn connect_to_host(port: u32) -> io::Result<UnixStream> {
    let socket = new_socket()?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = into_stream(socket)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Vsock, SockType::Stream, flags, None)?)
}

/// A connected stream socket is read, written and shut down alike in every family, so that the
/// runtime's Unix stream serves vsock too; only its addresses must not be asked for.
fn into_stream(socket: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(socket))
}
