//! Many clients, one thread, no waiting.
//!
//! All sockets are in one epoll instance, whose descriptor becomes readable when there is
//! something to do: the main thread's event loop needs to know this one descriptor only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Handler, Interest};
use super::socket::{Socket, SocketError};

/// How many clients may be connected; one more makes the one that was silent longest go.
pub const CONNECTIONS_MAX: usize = 16;
/// The listener's token; clients count from 1.
const LISTENER: u64 = 0;
/// Every socket can report in one go.
const EVENTS_MAX: usize = CONNECTIONS_MAX + 1;
/// How many clients are let in before those inside get their turn.
const ACCEPTS_MAX: usize = CONNECTIONS_MAX;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ServerError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot {attempt} for the API socket")]
    Host { attempt: &'static str, source: io::Error },
}

/// The API's server. Its descriptor is readable when [`Server::process`] has something to do.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    epoll: Epoll,
    clients: BTreeMap<u64, Client>,
    next_token: u64,
    /// Counts activity, to know who was silent longest without a clock.
    now: u64,
    /// Given up for a moment when the process has no descriptor left, to turn a client away.
    spare: Option<File>,
}

#[derive(Debug)]
struct Client {
    connection: Connection,
    interest: Interest,
    last_active: u64,
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Server {
    /// Listens on the Unix socket `path`, and says so in the log: whoever started the process can
    /// wait for that.
    pub fn listen(path: &Path) -> Result<Self, ServerError> {
        let socket = Socket::listen(path)?;
        let host = |attempt| move |source| ServerError::Host { attempt, source };
        let epoll = Epoll::new().map_err(host("create an epoll instance"))?;
        let event = EpollEvent::new(EventSet::IN, LISTENER);
        epoll
            .ctl(ControlOperation::Add, socket.listener.as_raw_fd(), event)
            .map_err(host("watch the listener"))?;
        let spare = open_spare();
        tracing::info!(path = %path.display(), "the API listens");
        Ok(Self { socket, epoll, clients: BTreeMap::new(), next_token: 1, now: 0, spare })
    }

    /// Does all there is to do now, calling `handler` for each request, and returns.
    pub fn process(
        &mut self,
        handler: &mut dyn FnMut(super::Request) -> super::Response,
    ) -> Result<(), ServerError> {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            result => result.map_err(|source| ServerError::Host { attempt: "wait", source })?,
        };
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => self.accept(),
                token => self.advance(token, handler),
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            match self.socket.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // EMFILE and ENFILE have no kind of their own. Left alone, the client would
                // keep the listener readable and us awake.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    tracing::warn!("a client of the API is turned away: {error}");
                    self.spare = None;
                    drop(self.socket.listener.accept());
                    self.spare = open_spare();
                    return;
                }
                Err(error) => {
                    tracing::debug!("a client of the API was lost: {error}");
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        if self.clients.len() >= CONNECTIONS_MAX {
            let silent = self.clients.iter().min_by_key(|(_, client)| client.last_active);
            if let Some(token) = silent.map(|(token, _)| *token) {
                tracing::debug!("the API's longest silent client is disconnected for a new one");
                self.clients.remove(&token);
            }
        }
        let token = self.next_token;
        let event = EpollEvent::new(EventSet::IN, token);
        let watched = stream
            .set_nonblocking(true)
            .and_then(|()| self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event));
        if let Err(error) = watched {
            tracing::warn!("a client of the API is turned away: {error}");
            return;
        }
        self.next_token += 1;
        self.now += 1;
        let connection = Connection::new(stream);
        let client = Client { connection, interest: Interest::Read, last_active: self.now };
        self.clients.insert(token, client);
    }

    fn advance(&mut self, token: u64, handler: &mut Handler<'_>) {
        // A client may have been disconnected for a new one since the event was reported.
        let Some(client) = self.clients.get_mut(&token) else { return };
        self.now += 1;
        client.last_active = self.now;
        let interest = client.connection.advance(handler);
        let changed = interest != std::mem::replace(&mut client.interest, interest);
        let events = match interest {
            Interest::Read => EventSet::IN,
            Interest::Write => EventSet::OUT,
            Interest::Close => {
                // Closing the socket takes it out of epoll.
                self.clients.remove(&token);
                return;
            }
        };
        if !changed {
            return;
        }
        let socket = client.connection.stream().as_raw_fd();
        let event = EpollEvent::new(events, token);
        if let Err(error) = self.epoll.ctl(ControlOperation::Modify, socket, event) {
            tracing::warn!("a client of the API is disconnected: {error}");
            self.clients.remove(&token);
        }
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}
