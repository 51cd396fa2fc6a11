//! Packet headers, section 5.10.6.
//!
//! The `virtio-vsock` crate encodes and decodes them. Its handling of chains is not used: it
//! wants the payload in one descriptor, while a driver may cut a packet wherever it likes
//! (section 2.7.4), and it takes the chain from the queue itself, which here the transport does.

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

use crate::GuestMemory;
use crate::virtio::Chain;

/// Size of a header, in bytes.
pub(super) const HEADER_BYTES: usize = PKT_HEADER_SIZE;
/// The same as an offset into a chain: where the payload begins.
pub(super) const PAYLOAD_OFFSET: u64 = HEADER_BYTES as u64;
/// The longest payload of a packet, in both directions. Linux sends no longer ones.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 64 << 10;

/// The context identifier of the host.
pub(super) const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type offered.
pub(super) const TYPE_STREAM: u16 = 1;

/// Operations by their names in the specification, without `VIRTIO_VSOCK_OP_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request = 1,
    Response = 2,
    Rst = 3,
    Shutdown = 4,
    Rw = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    pub(super) fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// What one side does no longer: `VIRTIO_VSOCK_SHUTDOWN_F_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shutdown(u32);

impl Shutdown {
    pub(super) const NONE: Self = Self(0);
    pub(super) const RECEIVE: Self = Self(1);
    pub(super) const SEND: Self = Self(2);
    pub(super) const BOTH: Self = Self(3);

    /// The known ones of the flags of a packet.
    pub(super) fn from_flags(flags: u32) -> Self {
        Self(flags & Self::BOTH.0)
    }

    pub(super) fn flags(self) -> u32 {
        self.0
    }

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Once set, a flag stays (section 5.10.6.5).
    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// A header as an owned value, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the specification's names
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// The header at the beginning of a chain; `None` if the chain is shorter or not in RAM.
    pub(super) fn read(chain: &Chain, memory: &GuestMemory) -> Option<Self> {
        let mut bytes = [0; HEADER_BYTES];
        let len = chain.read_at(memory, 0, &mut bytes).ok()?;
        if len == HEADER_BYTES { Self::parse(&bytes) } else { None }
    }

    /// The header in its form on the wire.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut buffer = [0; HEADER_BYTES];
        let mut packet = packet_over(&mut buffer)?;
        packet.set_header_from_raw(bytes).ok()?;
        Some(Self {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            kind: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        })
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        if let Some(mut packet) = packet_over(&mut bytes) {
            packet
                .set_src_cid(self.src_cid)
                .set_dst_cid(self.dst_cid)
                .set_src_port(self.src_port)
                .set_dst_port(self.dst_port)
                .set_len(self.len)
                .set_type(self.kind)
                .set_op(self.op)
                .set_flags(self.flags)
                .set_buf_alloc(self.buf_alloc)
                .set_fwd_cnt(self.fwd_cnt);
        }
        bytes
    }

    /// The RST that answers this packet. It carries the packet's own addresses, wrong or not, so
    /// that the sender finds the socket it belongs to.
    pub(super) fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: TYPE_STREAM,
            op: Op::Rst as u16,
            ..Self::default()
        }
    }
}

/// The crate's packet on a buffer of ours.
fn packet_over(buffer: &mut [u8; HEADER_BYTES]) -> Option<VsockPacket<'_, ()>> {
    // SAFETY: the packet accesses `buffer`, and nothing else, for as long as it lives; the
    // lifetime in this function's signature keeps the buffer borrowed for that time.
    unsafe { VsockPacket::new(buffer, None) }.ok()
}

/// The payload of a packet of the guest, still in guest memory.
#[derive(Clone, Copy)]
pub(super) struct Payload<'a> {
    pub chain: &'a Chain,
    pub memory: &'a GuestMemory,
    /// Checked to be in the chain, and at most [`MAX_PAYLOAD_BYTES`].
    pub len_bytes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            kind: 0x4142,
            op: 0x5152,
            flags: 0x6162_6364,
            buf_alloc: 0x7172_7374,
            fwd_cnt: 0x8182_8384,
        }
    }

    #[test]
    fn a_header_lies_in_memory_as_the_specification_says() {
        let bytes = header().encode();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1], "src_cid, little-endian");
        assert_eq!(bytes[16..20], [0x14, 0x13, 0x12, 0x11], "src_port");
        assert_eq!(bytes[24..28], [0x34, 0x33, 0x32, 0x31], "len");
        assert_eq!(bytes[28..32], [0x42, 0x41, 0x52, 0x51], "type, op");
        assert_eq!(bytes[40..44], [0x84, 0x83, 0x82, 0x81], "fwd_cnt");
    }

    #[test]
    fn an_encoded_header_parses_to_itself() {
        assert_eq!(Header::parse(&header().encode()), Some(header()));
    }

    #[test]
    fn a_reset_goes_back_where_its_cause_came_from() {
        let reply = header().reset_reply();
        assert_eq!((reply.src_cid, reply.dst_cid), (header().dst_cid, header().src_cid));
        assert_eq!((reply.src_port, reply.dst_port), (header().dst_port, header().src_port));
        assert_eq!(reply.op, 3);
    }

    #[test]
    fn shutdown_flags_accumulate_and_unknown_ones_are_dropped() {
        let mut flags = Shutdown::from_flags(0xffff_fff4);
        assert_eq!(flags, Shutdown::NONE);
        flags.add(Shutdown::SEND);
        assert!(flags.has(Shutdown::SEND) && !flags.has(Shutdown::BOTH));
        flags.add(Shutdown::from_flags(1));
        assert_eq!(flags, Shutdown::BOTH);
    }
}
