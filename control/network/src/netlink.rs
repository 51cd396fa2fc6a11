//! Requests to the kernel, one at a time: routing (links, addresses) and netfilter.
//!
//! The packets are rust-netlink's. Its asynchronous transport is left out: a network is made by a
//! few requests in a row on a thread that has entered the network's namespace.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator, Parseable,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    none::ControlMessage,
};
use netlink_sys::{
    SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind,
    netlink::{NETFILTER, SocketAddrNetlink},
    socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

/// The kernel answers at once; a lost answer must not hang us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A dump that the kernel says was interrupted by a change is asked for again.
const DUMP_ATTEMPTS_MAX: usize = 10;
const SUBSYSTEM_NFTABLES: u16 = 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The kernel refused, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// One request.
    #[error("cannot {what}")]
    Request {
        /// What was attempted.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// Whether the kernel answered that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        let errors = [Some(libc::ENOENT), Some(libc::ENODEV)];
        matches!(self, Self::Request { source, .. } if errors.contains(&source.raw_os_error()))
    }
}

/// `NFNLGRP_NFTABLES`, as a bit: what everybody changes about rules.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);

/// A socket that can be read whenever somebody has changed the rules of this namespace.
pub fn rule_changes() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
    bind(&socket, &SocketAddrNetlink::new(0, NFTABLES_GROUP))?;
    Ok(socket)
}

/// One answer of a dump: what follows the headers, as attributes can be read from it.
pub type Answer = Vec<u8>;
/// A message of a netfilter transaction: its flags beside [`NLM_F_REQUEST`], its family, itself.
pub type Step = (u16, NetfilterProtoFamily, NetfilterMessageInner);

/// A socket. It belongs to the namespace in which it was opened, whoever uses it.
pub struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
}

impl Socket {
    /// For links, addresses, routes and neighbours.
    pub fn route() -> Result<Self, Error> {
        Self::open(NETLINK_ROUTE)
    }

    /// For rule sets.
    pub fn netfilter() -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, Error> {
        let mut inner = netlink_sys::Socket::new(protocol).map_err(Error::Open)?;
        inner.bind_auto().map_err(Error::Open)?;
        inner.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        set_socket_timeout(inner.as_fd(), Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|errno| Error::Open(errno.into()))?;
        Ok(Self { inner, sequence: 0 })
    }

    /// Has the kernel do one thing.
    pub fn request(
        &mut self,
        what: &str,
        flags: u16,
        message: impl NetlinkSerializable,
    ) -> Result<(), Error> {
        let last = self.next();
        let bytes = serialize(message, NLM_F_REQUEST | NLM_F_ACK | flags, last);
        self.exchange(&bytes, last, last).map_err(|source| failed(what, source))
    }

    /// Has the kernel do all of it or nothing.
    pub fn transaction(&mut self, what: &str, steps: Vec<Step>) -> Result<(), Error> {
        let first = self.next();
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES);
        let control = |inner: ControlMessage| NetfilterMessage::new(header.clone(), inner);
        let mut bytes = serialize(control(ControlMessage::BatchBegin), NLM_F_REQUEST, first);
        let count = steps.len();
        let mut last = first;
        for (number, (flags, family, inner)) in steps.into_iter().enumerate() {
            last = self.next();
            let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
            let ack = if number + 1 == count { NLM_F_ACK } else { 0 };
            bytes.extend(serialize(message, NLM_F_REQUEST | ack | flags, last));
        }
        let end = self.next();
        bytes.extend(serialize(control(ControlMessage::BatchEnd), NLM_F_REQUEST, end));
        self.exchange(&bytes, first, last).map_err(|source| failed(what, source))
    }

    /// Everything of a kind.
    pub fn dump<M: NetlinkSerializable + Clone>(
        &mut self,
        what: &str,
        message: &M,
        header_bytes: usize,
    ) -> Result<Vec<Answer>, Error> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let sequence = self.next();
            let bytes = serialize(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, sequence);
            if let Some(answers) = self
                .collect(&bytes, sequence, header_bytes)
                .map_err(|source| failed(what, source))?
            {
                return Ok(answers);
            }
        }
        Err(failed(what, io::Error::other("the kernel's state changes all the time")))
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends, and reads until `last` is acknowledged. What the kernel says of the first message of
    /// a transaction concerns the whole.
    fn exchange(&mut self, bytes: &[u8], first: u32, last: u32) -> io::Result<()> {
        self.inner.send(bytes, 0)?;
        let mut refused = None;
        loop {
            for (header, payload) in self.receive()? {
                let ours = (first..=last).contains(&header.sequence);
                if header.kind != NLMSG_ERROR || !ours {
                    continue;
                }
                if let Some(error) = error_code(&payload) {
                    refused.get_or_insert(error);
                }
                if header.sequence == last || (refused.is_some() && header.sequence == first) {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// `None` if the dump was interrupted by a change.
    fn collect(
        &mut self,
        bytes: &[u8],
        sequence: u32,
        header_bytes: usize,
    ) -> io::Result<Option<Vec<Answer>>> {
        self.inner.send(bytes, 0)?;
        let (mut answers, mut is_whole) = (Vec::new(), true);
        loop {
            for (header, payload) in self.receive()? {
                if header.sequence != sequence {
                    continue;
                }
                is_whole &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    NLMSG_DONE => return Ok(is_whole.then_some(answers)),
                    NLMSG_ERROR => {
                        return Err(
                            error_code(&payload).unwrap_or_else(|| io::ErrorKind::Other.into())
                        );
                    }
                    _ => answers.push(payload.get(header_bytes..).unwrap_or_default().to_vec()),
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<Vec<(Header, Vec<u8>)>> {
        let (datagram, _) = self.inner.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = datagram.as_slice();
        while let Ok(buffer) = NetlinkBuffer::new_checked(&rest) {
            let header = Header {
                kind: buffer.message_type(),
                flags: buffer.flags(),
                sequence: buffer.sequence_number(),
            };
            messages.push((header, buffer.payload().to_vec()));
            let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn failed(what: &str, source: io::Error) -> Error {
    Error::Request { what: what.to_owned(), source }
}

fn serialize(message: impl NetlinkSerializable, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let length = message.buffer_len();
    let mut bytes = vec![0; length.next_multiple_of(4)];
    message.serialize(bytes.get_mut(..length).unwrap_or_default());
    bytes
}

fn error_code(payload: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(*payload.first_chunk()?);
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

/// The attributes in some bytes that the kernel sent, without those that make no sense.
pub fn attributes(bytes: &[u8]) -> Vec<DefaultNla> {
    NlasIterator::new(bytes).flatten().filter_map(|nla| DefaultNla::parse(&nla).ok()).collect()
}

/// The value of the first attribute of a kind.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<Vec<u8>> {
    use netlink_packet_core::Nla;
    let mask = 0x3fff;
    let found = attributes(bytes).into_iter().find(|nla| nla.kind() & mask == kind)?;
    let mut value = vec![0; found.value_len()];
    found.emit_value(&mut value);
    Some(value)
}
