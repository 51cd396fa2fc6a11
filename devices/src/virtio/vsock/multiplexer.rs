//! All connections of a guest, and whose turn it is to send to it.
//!
//! ```text
//!   TX ring ──▶ receive ──▶ connections[(host port, guest port)] ◀── events of host sockets
//!                                 │ has something for the guest
//!                                 ▼
//!   RX ring ◀── deliver ◀── resets first, then one packet of each connection in turn
//! ```

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmm_sys_util::epoll::{EpollEvent, EventSet};

use super::connection::{Connection, Outgoing, Pair};
use super::handshake::{self, Handshake};
use super::host::{Host, PORT_ANY, READY_EVENTS, Token};
use super::lifecycle::{Fate, Phase};
use super::packet::{
    HEADER_BYTES, HOST_CID, Header, MAX_PAYLOAD_BYTES, Op, PAYLOAD_OFFSET, Payload, TYPE_STREAM,
};
use super::{RX_QUEUE, VsockError};
use crate::GuestMemory;
use crate::virtio::{BrokenRing, Chain, QueueIo};

/// Connections at the same time. At the limit, one whose host peer has gone and which the guest
/// has not let go of is given up; if there is none, the new one is refused.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// What may wait for a slow host peer, per connection, in bytes.
pub(super) const BUF_ALLOC_BYTES: u32 = 256 << 10;
/// The same while there are many connections, so that a guest cannot make us hold much.
const CROWDED_BUF_ALLOC_BYTES: u32 = 64 << 10;
/// How many are many. All connections together hold at most 76 MiB.
const CROWDED_CONNECTIONS: usize = 64;
/// RST packets that wait for room in the RX ring. What is past it is dropped: a guest that still
/// believes in a connection meets RST again with its next packet.
pub(super) const MAX_RESETS: usize = 256;
/// Where host clients get their ports from, upwards: out of the way of the ports that services
/// on the host are known by.
pub(super) const FIRST_LOCAL_PORT: u32 = 1 << 30;

/// See the module.
pub(super) struct Multiplexer {
    pub(super) guest_cid: u64,
    host: Host,
    connections: HashMap<Pair, Connection>,
    /// Those with something for the guest, in the order of their turns.
    round: VecDeque<Pair>,
    resets: VecDeque<Header>,
    pub(super) next_local_port: u32,
}

impl Multiplexer {
    pub(super) fn new(guest_cid: u64, path: &Path) -> Result<Self, VsockError> {
        Ok(Self {
            guest_cid,
            host: Host::new(path)?,
            connections: HashMap::new(),
            round: VecDeque::new(),
            resets: VecDeque::new(),
            next_local_port: FIRST_LOCAL_PORT,
        })
    }

    /// The descriptor that is readable while host sockets want attention.
    pub(super) fn epoll_fd(&self) -> RawFd {
        self.host.epoll_fd()
    }

    /// Ends every connection that the guest has seen. Clients that wait for their request to be
    /// sent go on waiting: whoever connects while the guest boots reaches its driver.
    pub(super) fn reset(&mut self) {
        self.connections
            .retain(|_, connection| connection.phase() == (Phase::Requested { is_sent: false }));
        let connections = &self.connections;
        self.round.retain(|pair| connections.contains_key(pair));
        self.resets.clear();
        self.host.on_descriptor_freed();
    }

    /// Takes one packet of the guest.
    pub(super) fn receive(&mut self, chain: &Chain, memory: &GuestMemory) {
        let Some(header) = Header::read(chain, memory) else { return };
        if header.src_cid != self.guest_cid {
            tracing::debug!(cid = header.src_cid, "a packet from a foreign CID");
            return;
        }
        let pair = Pair { host_port: header.dst_port, guest_port: header.src_port };
        let known = header.dst_cid == HOST_CID && pair.host_port != PORT_ANY;
        let op = Op::from_raw(header.op).filter(|_| known && header.kind == TYPE_STREAM);
        let Some(op) = op else {
            // Section 5.10.6.4: what is not known is answered with RST, but for RST itself.
            if header.op != Op::Rst as u16 {
                self.push_reset(header.reset_reply());
            }
            return;
        };
        let Some(payload) = payload(op, &header, chain, memory) else {
            return self.conclude(pair, Fate::Reset);
        };
        match self.connections.get_mut(&pair) {
            Some(connection) if op == Op::Request && connection.phase() == Phase::Orphaned => {
                // Its former life still has bytes for a host peer: the guest picks another port.
                self.push_reset(header.reset_reply());
            }
            Some(connection) => {
                let fate = connection.on_packet(op, &header, &payload, pair.host_port);
                self.conclude(pair, fate);
            }
            None if op == Op::Request => self.connect_to_host(pair, &header),
            None if op == Op::Rst => {}
            None => self.push_reset(header.reset_reply()),
        }
    }

    fn connect_to_host(&mut self, pair: Pair, request: &Header) {
        let socket = if self.make_room() {
            self.host.connect(pair)
        } else {
            Err(io::Error::other("too many connections"))
        };
        match socket {
            Ok(socket) => {
                let connection = Connection::from_guest(socket, self.buf_alloc_bytes(), request);
                self.connections.insert(pair, connection);
                self.conclude(pair, Fate::Live);
            }
            Err(error) => {
                tracing::debug!(port = pair.host_port, %error, "the guest reaches nobody");
                self.push_reset(request.reset_reply());
            }
        }
    }

    /// Looks after everything that happened on host sockets.
    pub(super) fn on_host_events(&mut self) {
        let mut events = [EpollEvent::default(); READY_EVENTS];
        let count = self.host.events(&mut events);
        for event in events.iter().take(count) {
            match Token::decode(event.data()) {
                Token::Listener => self.host.accept(),
                Token::Handshake(number) => self.on_handshake(number),
                Token::Connection(pair) => {
                    let events = EventSet::from_bits_truncate(event.events());
                    if let Some(connection) = self.connections.get_mut(&pair) {
                        let fate = connection.on_host_events(events);
                        self.conclude(pair, fate);
                    }
                }
            }
        }
    }

    fn on_handshake(&mut self, number: u32) {
        let Some(client) = self.host.handshake(number) else { return };
        match handshake::read(client) {
            Handshake::Incomplete => {}
            Handshake::Refused => {
                self.host.end_handshake(number);
                self.host.on_descriptor_freed();
            }
            Handshake::Connect { guest_port } => {
                if let Some(client) = self.host.end_handshake(number) {
                    self.connect_to_guest(client, guest_port);
                }
            }
        }
    }

    /// A refused client finds its socket closed.
    fn connect_to_guest(&mut self, client: UnixStream, guest_port: u32) {
        if !self.make_room() {
            tracing::debug!(guest_port, "too many vsock connections: a client is refused");
            return;
        }
        let Some(pair) = self.local_pair(guest_port) else { return };
        if let Err(error) = self.host.adopt(&client, pair) {
            tracing::warn!(%error, "watch a vsock client");
            return;
        }
        self.connections.insert(pair, Connection::from_host(client, self.buf_alloc_bytes()));
        self.conclude(pair, Fate::Live);
    }

    /// A free pair for a connection to `guest_port`.
    fn local_pair(&mut self, guest_port: u32) -> Option<Pair> {
        // Among one port more than there can be connections, one is free.
        for _ in 0..=MAX_CONNECTIONS {
            let host_port = self.next_local_port;
            let next = host_port.wrapping_add(1);
            self.next_local_port = if next == PORT_ANY { FIRST_LOCAL_PORT } else { next };
            let pair = Pair { host_port, guest_port };
            if !self.connections.contains_key(&pair) {
                return Some(pair);
            }
        }
        None
    }

    /// Whether there is room for one more connection.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let mut connections = self.connections.iter();
        let parting = connections.find(|(_, connection)| connection.phase() == Phase::Parting);
        let Some(pair) = parting.map(|(pair, _)| *pair) else { return false };
        self.conclude(pair, Fate::Reset);
        true
    }

    fn buf_alloc_bytes(&self) -> u32 {
        if self.connections.len() < CROWDED_CONNECTIONS {
            BUF_ALLOC_BYTES
        } else {
            CROWDED_BUF_ALLOC_BYTES
        }
    }

    /// Sees to what follows from something that happened to a connection.
    fn conclude(&mut self, pair: Pair, fate: Fate) {
        if fate != Fate::Live {
            if let Some(connection) = self.connections.remove(&pair) {
                if connection.is_queued {
                    self.round.retain(|queued| *queued != pair);
                }
                drop(connection);
                self.host.on_descriptor_freed();
            }
            if fate == Fate::Reset {
                let reset = Header { op: Op::Rst as u16, ..self.addressed(pair) };
                self.push_reset(reset);
            }
            return;
        }
        let Some(connection) = self.connections.get_mut(&pair) else { return };
        if let Some((socket, wanted)) = connection.take_interest_change() {
            self.host.watch_writable(socket, pair, wanted);
        }
        if !connection.is_queued && connection.has_output() {
            connection.is_queued = true;
            self.round.push_back(pair);
        }
    }

    fn push_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    /// Fills RX chains for as long as there are chains and something to put into them. With
    /// `is_held`, only resets.
    pub(super) fn deliver(
        &mut self,
        io: &mut QueueIo<'_>,
        is_held: bool,
    ) -> Result<(), BrokenRing> {
        while !self.resets.is_empty() || !(is_held || self.round.is_empty()) {
            let Some(chain) = io.pop(RX_QUEUE)? else { return Ok(()) };
            if chain.writable_bytes() <= PAYLOAD_OFFSET {
                // No room for anything; a driver that posts such is broken, but the ring is not.
                io.complete(RX_QUEUE, chain, 0)?;
                continue;
            }
            let Some(header) = self.next_packet(&chain, io.memory(), is_held) else {
                io.undo_pop(RX_QUEUE, chain);
                return Ok(());
            };
            let written = match chain.write_at(io.memory(), 0, &header.encode()) {
                Ok(HEADER_BYTES) => header.len.saturating_add(HEADER_BYTES as u32),
                _ => 0,
            };
            io.complete(RX_QUEUE, chain, written)?;
        }
        Ok(())
    }

    /// The header of the next packet for the guest; its payload is in `chain`.
    fn next_packet(
        &mut self,
        chain: &Chain,
        memory: &GuestMemory,
        is_held: bool,
    ) -> Option<Header> {
        loop {
            if let Some(reset) = self.resets.pop_front() {
                return Some(reset);
            }
            if is_held {
                return None;
            }
            let pair = self.round.pop_front()?;
            let Some(connection) = self.connections.get_mut(&pair) else { continue };
            connection.is_queued = false;
            match connection.next_packet(chain, memory) {
                Ok(outgoing) => {
                    self.conclude(pair, Fate::Live);
                    if let Some(outgoing) = outgoing {
                        return Some(self.header(pair, outgoing));
                    }
                }
                Err(fate) => self.conclude(pair, fate),
            }
        }
    }

    fn header(&self, pair: Pair, outgoing: Outgoing) -> Header {
        Header {
            op: outgoing.op as u16,
            flags: outgoing.flags,
            len: outgoing.len_bytes,
            buf_alloc: outgoing.buf_alloc,
            fwd_cnt: outgoing.fwd_cnt,
            ..self.addressed(pair)
        }
    }

    fn addressed(&self, pair: Pair) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: pair.host_port,
            dst_port: pair.guest_port,
            kind: TYPE_STREAM,
            ..Header::default()
        }
    }
}

/// The payload that `header` announces, if it is in the chain and not too long.
fn payload<'a>(
    op: Op,
    header: &Header,
    chain: &'a Chain,
    memory: &'a GuestMemory,
) -> Option<Payload<'a>> {
    let len_bytes = if op == Op::Rw { header.len } else { 0 };
    let end = PAYLOAD_OFFSET.checked_add(len_bytes.into())?;
    let fits = len_bytes <= MAX_PAYLOAD_BYTES && end <= chain.readable_bytes();
    fits.then_some(Payload { chain, memory, len_bytes })
}
