//! One connection: its lifecycle, its credit in both directions, its host peer.
//!
//! ```text
//!   guest ── Rw ──▶ inbound credit ──▶ host socket (writev) ──┐ what it does not take
//!                                           ▲                 ▼
//!                                           └──── flush ── backlog, at most `buf_alloc`
//!   guest ◀── Rw ── outbound credit ◀── host socket (readv)
//! ```
//! What the guest must hear besides bytes is kept as facts (a response is due, credit is worth
//! announcing, a half was closed), never as a queue of packets, so it cannot grow.

use std::io::Write;
use std::os::unix::net::UnixStream;

use vmm_sys_util::epoll::EventSet;

use super::credit::{Inbound, Outbound};
use super::lifecycle::{Fate, Intake, Lifecycle, Phase};
use super::packet::{Header, MAX_PAYLOAD_BYTES, Op, PAYLOAD_OFFSET, Payload, Shutdown};
use super::peer::{HostPeer, Received, Sent};
use crate::GuestMemory;
use crate::virtio::{Chain, GuestIoVec};

/// The two ports that name a connection; its identifiers are always the guest's and the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub host_port: u32,
    pub guest_port: u32,
}

/// A packet for the guest, but for its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub op: Op,
    pub flags: u32,
    pub len_bytes: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    life: Lifecycle,
    /// `None` once the host peer's socket is closed.
    peer: Option<HostPeer>,
    inbound: Inbound,
    outbound: Outbound,
    response_due: bool,
    credit_due: bool,
    /// The guest's credit is used up, and it was asked for more.
    credit_asked: bool,
    /// It is in the round of connections with something for the guest.
    pub(super) is_queued: bool,
}

impl Connection {
    /// A host client wants to reach the guest.
    pub(super) fn from_host(socket: UnixStream, buf_alloc: u32) -> Self {
        Self::new(Phase::Requested { is_sent: false }, socket, buf_alloc)
    }

    /// The guest wants to reach a host socket, which has accepted.
    pub(super) fn from_guest(socket: UnixStream, buf_alloc: u32, request: &Header) -> Self {
        let mut connection = Self::new(Phase::Open, socket, buf_alloc);
        connection.outbound.update(request.buf_alloc, request.fwd_cnt);
        connection.response_due = true;
        connection
    }

    fn new(phase: Phase, socket: UnixStream, buf_alloc: u32) -> Self {
        Self {
            life: Lifecycle::new(phase),
            peer: Some(HostPeer::new(socket)),
            inbound: Inbound::new(buf_alloc),
            outbound: Outbound::default(),
            response_due: false,
            credit_due: false,
            credit_asked: false,
            is_queued: false,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.life.phase()
    }

    /// The socket to watch, if it is still open, and whether the interest in its writability
    /// has changed; asking takes the change note of it.
    pub(super) fn take_interest_change(&mut self) -> Option<(&UnixStream, bool)> {
        let peer = self.peer.as_mut()?;
        let wanted = !peer.is_flushed();
        if wanted == peer.watches_writable {
            return None;
        }
        peer.watches_writable = wanted;
        Some((peer.socket(), wanted))
    }

    /// A packet of the guest. `local_port` is what a host client is told.
    pub(super) fn on_packet(
        &mut self,
        op: Op,
        header: &Header,
        payload: &Payload<'_>,
        local_port: u32,
    ) -> Fate {
        self.outbound.update(header.buf_alloc, header.fwd_cnt);
        if self.outbound.available_bytes() > 0 {
            self.credit_asked = false;
        }
        let fate = match op {
            // A second request: one of the two sides has lost track of this connection.
            Op::Request => Fate::Reset,
            Op::Response => self.on_response(local_port),
            Op::Rst => self.life.on_guest_reset(),
            Op::Shutdown => self.on_guest_shutdown(Shutdown::from_flags(header.flags)),
            Op::Rw => self.on_payload(payload),
            Op::CreditUpdate => Fate::Live,
            Op::CreditRequest => {
                self.credit_due = true;
                Fate::Live
            }
        };
        if fate == Fate::Live { self.settle() } else { fate }
    }

    fn on_response(&mut self, local_port: u32) -> Fate {
        if self.life.on_response() != Fate::Live {
            return Fate::Reset;
        }
        let answer = format!("OK {local_port}\n");
        let Some(peer) = &self.peer else { return Fate::Reset };
        // The first bytes of all on this socket: there is room for them, or nobody listens.
        match peer.socket().write(answer.as_bytes()) {
            Ok(count) if count == answer.len() => Fate::Live,
            _ => Fate::Reset,
        }
    }

    fn on_guest_shutdown(&mut self, flags: Shutdown) -> Fate {
        if self.life.on_guest_shutdown(flags) != Fate::Live {
            return Fate::Reset;
        }
        if let Some(peer) = &mut self.peer
            && flags.has(Shutdown::RECEIVE)
        {
            peer.close_read();
        }
        Fate::Live
    }

    fn on_payload(&mut self, payload: &Payload<'_>) -> Fate {
        let intake = self.life.intake();
        if intake == Intake::Violation || self.inbound.receive(payload.len_bytes).is_err() {
            return Fate::Reset;
        }
        match (&mut self.peer, intake) {
            (Some(peer), Intake::Forward) => {
                let sent = peer.send(payload);
                self.on_sent(sent)
            }
            _ => {
                self.inbound.forward(payload.len_bytes);
                Fate::Live
            }
        }
    }

    fn on_sent(&mut self, sent: Sent) -> Fate {
        match sent {
            Sent::Bytes(count) => self.inbound.forward(count),
            Sent::Closed => {
                self.inbound.forward(u32::MAX);
                self.life.on_host_shutdown(Shutdown::RECEIVE);
            }
            Sent::Broken => return Fate::Reset,
        }
        Fate::Live
    }

    /// The kernel reports events of the host peer's socket.
    pub(super) fn on_host_events(&mut self, events: EventSet) -> Fate {
        let Some(peer) = &mut self.peer else { return Fate::Live };
        let has_gone = peer.on_events(events);
        if has_gone {
            self.life.on_host_shutdown(Shutdown::RECEIVE);
            self.inbound.forward(u32::MAX);
        } else if events.contains(EventSet::OUT) {
            let sent = peer.flush();
            if self.on_sent(sent) != Fate::Live {
                return Fate::Reset;
            }
        }
        self.settle()
    }

    /// Acts on what the lifecycle concludes: half-closes and closes the socket.
    fn settle(&mut self) -> Fate {
        let fate = self.life.settle(self.peer.as_ref().is_none_or(HostPeer::is_flushed));
        if self.life.phase() == Phase::Parting {
            self.peer = None;
        } else if let Some(peer) = &mut self.peer
            && !self.life.guest_sends()
            && peer.is_flushed()
        {
            peer.close_write();
        }
        fate
    }

    /// Whether there is something for the guest now.
    pub(super) fn has_output(&self) -> bool {
        let asks = self.phase() == (Phase::Requested { is_sent: false });
        asks || self.response_due
            || self.has_bytes() && (self.outbound.available_bytes() > 0 || !self.credit_asked)
            || self.life.untold().is_some()
            || self.owes_credit()
    }

    fn has_bytes(&self) -> bool {
        self.life.may_send_to_guest() && self.peer.as_ref().is_some_and(HostPeer::is_readable)
    }

    fn owes_credit(&self) -> bool {
        let flows = self.phase() == Phase::Open && self.life.guest_sends();
        flows && (self.credit_due || self.inbound.is_worth_announcing())
    }

    /// The next packet for the guest; its payload is in `chain` already, its header not.
    ///
    /// # Errors
    /// The fate, if the connection ends here.
    pub(super) fn next_packet(
        &mut self,
        chain: &Chain,
        memory: &GuestMemory,
    ) -> Result<Option<Outgoing>, Fate> {
        if self.phase() == (Phase::Requested { is_sent: false }) {
            self.life.on_request_sent();
            return Ok(Some(self.outgoing(Op::Request, 0, 0)));
        }
        if std::mem::take(&mut self.response_due) {
            return Ok(Some(self.outgoing(Op::Response, 0, 0)));
        }
        if self.has_bytes() && self.outbound.available_bytes() > 0 {
            let len_bytes = self.read_into(chain, memory)?;
            if len_bytes > 0 {
                self.outbound.send(len_bytes);
                return Ok(Some(self.outgoing(Op::Rw, 0, len_bytes)));
            }
        }
        if let Some(flags) = self.life.untold() {
            self.life.on_told();
            return Ok(Some(self.outgoing(Op::Shutdown, flags.flags(), 0)));
        }
        if self.has_bytes() && self.outbound.available_bytes() == 0 && !self.credit_asked {
            self.credit_asked = true;
            return Ok(Some(self.outgoing(Op::CreditRequest, 0, 0)));
        }
        if self.owes_credit() {
            return Ok(Some(self.outgoing(Op::CreditUpdate, 0, 0)));
        }
        Ok(None)
    }

    /// Reads what the host peer sent, as far as credit and chain allow.
    fn read_into(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<u32, Fate> {
        let Some(peer) = &mut self.peer else { return Ok(0) };
        let limit = self.outbound.available_bytes().min(MAX_PAYLOAD_BYTES);
        let room = GuestIoVec::new(memory, chain.writable(), PAYLOAD_OFFSET, limit.into());
        let room = room.map_err(|_| Fate::Reset)?;
        match peer.receive(&room) {
            Received::Bytes(count) => return Ok(count),
            Received::Nothing => return Ok(0),
            Received::Eof => self.life.on_host_shutdown(Shutdown::SEND),
            Received::Broken => return Err(Fate::Reset),
        }
        match self.settle() {
            Fate::Live => Ok(0),
            fate => Err(fate),
        }
    }

    /// Every packet tells the guest its credit.
    fn outgoing(&mut self, op: Op, flags: u32, len_bytes: u32) -> Outgoing {
        self.credit_due = false;
        let (buf_alloc, fwd_cnt) = self.inbound.announce();
        Outgoing { op, flags, len_bytes, buf_alloc, fwd_cnt }
    }
}
