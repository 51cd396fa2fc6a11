//! The host's side: the listening socket, clients that have not said yet where they want to go,
//! sockets that the guest wants to reach, and the epoll set that watches all of them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::VsockError;
use super::connection::Pair;

/// Clients that may be in their handshake at the same time. One more pushes out the one that has
/// been at it for the longest, so that slow clients keep nobody out and no timer is needed.
pub(super) const MAX_HANDSHAKES: usize = 64;
/// Events fetched from the kernel at a time.
pub(super) const READY_EVENTS: usize = 64;
/// Who may connect: the owner of the VMM process.
const SOCKET_MODE: u32 = 0o600;
/// Connections that the kernel keeps until they are accepted.
const LISTEN_BACKLOG: i32 = 128;

/// No connection of a guest has this host port (`VMADDR_PORT_ANY`), so it marks other tokens.
pub(super) const PORT_ANY: u32 = u32::MAX;

/// What an event of the epoll set is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    /// A client in its handshake, by its number.
    Handshake(u32),
    Connection(Pair),
}

impl Token {
    fn encode(self) -> u64 {
        let (high, low) = match self {
            Self::Listener => (PORT_ANY, u32::MAX),
            Self::Handshake(number) => (PORT_ANY, number),
            Self::Connection(pair) => (pair.host_port, pair.guest_port),
        };
        u64::from(high) << 32 | u64::from(low)
    }

    pub(super) fn decode(data: u64) -> Self {
        match ((data >> 32) as u32, data as u32) {
            (PORT_ANY, u32::MAX) => Self::Listener,
            (PORT_ANY, number) => Self::Handshake(number),
            (host_port, guest_port) => Self::Connection(Pair { host_port, guest_port }),
        }
    }
}

/// See the module.
pub(super) struct Host {
    epoll: Epoll,
    listener: UnixListener,
    path: PathBuf,
    /// From the oldest to the newest.
    handshakes: VecDeque<(u32, UnixStream)>,
    next_handshake: u32,
    /// The host had no descriptor left for the next client.
    is_accept_stalled: bool,
}

impl Host {
    pub(super) fn new(path: &Path) -> Result<Self, VsockError> {
        let listener = listen(path)?;
        let watch = |source| VsockError::Watch { path: path.into(), source };
        let host = Self {
            epoll: Epoll::new().map_err(watch)?,
            listener,
            path: path.into(),
            handshakes: VecDeque::new(),
            next_handshake: 0,
            is_accept_stalled: false,
        };
        // From here on `host` unlinks the socket if anything fails.
        host.control(ControlOperation::Add, &host.listener, EventSet::IN, Token::Listener)
            .map_err(watch)?;
        Ok(host)
    }

    /// The descriptor that is readable while there are events.
    pub(super) fn epoll_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// The events that are there now: how many.
    pub(super) fn events(&self, events: &mut [EpollEvent]) -> usize {
        self.epoll.wait(0, events).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                tracing::error!(%error, "wait for events of vsock sockets");
            }
            0
        })
    }

    /// Accepts every client that waits.
    pub(super) fn accept(&mut self) {
        self.is_accept_stalled = false;
        loop {
            match self.listener.accept() {
                Ok((client, _)) => self.begin_handshake(client),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        tracing::warn!(%error, path = %self.path.display(), "accept a client");
                        self.is_accept_stalled = true;
                        return;
                    }
                },
            }
        }
    }

    /// A descriptor has been closed: whoever waits for one gets it.
    pub(super) fn on_descriptor_freed(&mut self) {
        if self.is_accept_stalled {
            self.accept();
        }
    }

    fn begin_handshake(&mut self, client: UnixStream) {
        if self.handshakes.len() >= MAX_HANDSHAKES {
            self.handshakes.pop_front();
        }
        let number = self.next_handshake;
        // `u32::MAX` is the listener's.
        self.next_handshake = number.wrapping_add(1) % u32::MAX;
        let watched = client.set_nonblocking(true).and_then(|()| {
            self.control(ControlOperation::Add, &client, READ_EVENTS, Token::Handshake(number))
        });
        match watched {
            Ok(()) => self.handshakes.push_back((number, client)),
            Err(error) => tracing::warn!(%error, "watch a vsock client"),
        }
    }

    /// The client in handshake `number`, if it is still there.
    pub(super) fn handshake(&self, number: u32) -> Option<&UnixStream> {
        self.handshakes.iter().find(|(other, _)| *other == number).map(|(_, client)| client)
    }

    /// Ends a handshake, one way or the other.
    pub(super) fn end_handshake(&mut self, number: u32) -> Option<UnixStream> {
        let index = self.handshakes.iter().position(|(other, _)| *other == number)?;
        self.handshakes.remove(index).map(|(_, client)| client)
    }

    /// Watches a former client of a handshake as the host peer of `pair`.
    pub(super) fn adopt(&self, client: &UnixStream, pair: Pair) -> io::Result<()> {
        self.control(ControlOperation::Modify, client, READ_EVENTS, Token::Connection(pair))
    }

    /// Connects to the socket where the host serves `pair.host_port`, and watches it.
    pub(super) fn connect(&self, pair: Pair) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{}", pair.host_port));
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        // It connects at once or not at all: a full backlog counts as refused, not as a wait.
        socket.connect(&SockAddr::unix(path)?)?;
        let socket = UnixStream::from(std::os::fd::OwnedFd::from(socket));
        self.control(ControlOperation::Add, &socket, READ_EVENTS, Token::Connection(pair))?;
        Ok(socket)
    }

    /// Hears of `socket` becoming writable, or not any more.
    pub(super) fn watch_writable(&self, socket: &UnixStream, pair: Pair, wanted: bool) {
        let events = if wanted { READ_EVENTS | EventSet::OUT } else { READ_EVENTS };
        let token = Token::Connection(pair);
        if let Err(error) = self.control(ControlOperation::Modify, socket, events, token) {
            tracing::error!(%error, "change what is watched on a vsock socket");
        }
    }

    fn control(
        &self,
        operation: ControlOperation,
        socket: &impl AsRawFd,
        events: EventSet,
        token: Token,
    ) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token.encode());
        self.epoll.ctl(operation, socket.as_raw_fd(), event)
    }
}

/// What is always watched on a stream. Closing a descriptor ends its watch.
const READ_EVENTS: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP);

impl Drop for Host {
    fn drop(&mut self) {
        // It may be gone already, or its directory; there is nobody to tell.
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket that listens at `path`, in place of a dead one if there is one.
fn listen(path: &Path) -> Result<UnixListener, VsockError> {
    let bind = |source| VsockError::Bind { path: path.into(), source };
    let address = SockAddr::unix(path).map_err(bind)?;
    let open = || Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None);
    remove_stale(path, &address, open)?;
    let socket = open().map_err(bind)?;
    // The kernel creates the file with the mode of the descriptor: nobody else can connect even
    // in the moment between `bind` and a later `chmod`.
    let file = fs::File::from(std::os::fd::OwnedFd::from(socket));
    file.set_permissions(fs::Permissions::from_mode(SOCKET_MODE)).map_err(bind)?;
    let socket = Socket::from(std::os::fd::OwnedFd::from(file));
    socket.bind(&address).map_err(bind)?;
    if let Err(source) = socket.listen(LISTEN_BACKLOG) {
        let _ = fs::remove_file(path);
        return Err(bind(source));
    }
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

/// Removes what lies at `path` if it is a socket on which nobody listens.
fn remove_stale(
    path: &Path,
    address: &SockAddr,
    open: impl FnOnce() -> io::Result<Socket>,
) -> Result<(), VsockError> {
    let examine = |source| VsockError::Examine { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(examine(source)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(VsockError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match open().and_then(|probe| probe.connect(address)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(examine)
        }
        // A full backlog belongs to a listener as well.
        Ok(()) => Err(VsockError::InUse { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(VsockError::InUse { path: path.into() })
        }
        Err(source) => Err(examine(source)),
    }
}
