//! `struct virtio_net_hdr` (section 5.1.6), which stands before every frame.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Its size since version 1: with `num_buffers`.
pub(super) const HEADER_BYTES: usize = 12;
/// Where `num_buffers` is.
pub(super) const NUM_BUFFERS_OFFSET: u64 = 10;

/// Addresses and type.
pub(super) const ETHERNET_HEADER_BYTES: u64 = 14;
/// The header of IPv4 without options; the one of IPv6 is longer.
const IP_HEADER_BYTES_MIN: u64 = 20;
const CHECKSUM_BYTES: u64 = 2;
const TCP_CHECKSUM_OFFSET: u16 = 16;
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// A header that a driver must not send.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("checksum offload was not negotiated")]
    Checksum,
    #[error("the checksum is at {start} + {offset}, in a frame of {frame_bytes} bytes")]
    ChecksumPlace { start: u16, offset: u16, frame_bytes: u64 },
    #[error("segmentation of type {gso_type:#x} was not negotiated")]
    Segmentation { gso_type: u8 },
    #[error(
        "segments of {gso_size} bytes of a frame of {frame_bytes} bytes, without checksum: {without_checksum}"
    )]
    Segments { gso_size: u16, frame_bytes: u64, without_checksum: bool },
}

/// What the host's kernel is told of a frame to be sent. It was read once from guest memory, holds
/// only what was negotiated, and nothing in it points outside of the frame. The kernel checks it
/// again, and has had bugs there.
pub(super) fn check(
    raw: [u8; HEADER_BYTES],
    frame_bytes: u64,
    has_feature: impl Fn(u32) -> bool,
) -> Result<[u8; HEADER_BYTES], Malformed> {
    let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1, ..] = raw;
    let [hdr_len, gso_size, start, offset] =
        [[h0, h1], [s0, s1], [c0, c1], [o0, o1]].map(u16::from_le_bytes);
    let mut checked = Checked::default();
    let needs_checksum = flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 != 0;
    if needs_checksum {
        if !has_feature(VIRTIO_NET_F_CSUM) {
            return Err(Malformed::Checksum);
        }
        let end = u64::from(start).saturating_add(offset.into()).saturating_add(CHECKSUM_BYTES);
        if end > frame_bytes {
            return Err(Malformed::ChecksumPlace { start, offset, frame_bytes });
        }
        checked.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        (checked.start, checked.offset) = (start, offset);
    }
    if gso_type != VIRTIO_NET_HDR_GSO_NONE as u8 {
        let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN as u8 != 0;
        let (feature, checksum_offset) = match u32::from(gso_type) & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_TCPV4 => (VIRTIO_NET_F_HOST_TSO4, TCP_CHECKSUM_OFFSET),
            VIRTIO_NET_HDR_GSO_TCPV6 => (VIRTIO_NET_F_HOST_TSO6, TCP_CHECKSUM_OFFSET),
            VIRTIO_NET_HDR_GSO_UDP_L4 if !ecn => (VIRTIO_NET_F_HOST_USO, UDP_CHECKSUM_OFFSET),
            _ => return Err(Malformed::Segmentation { gso_type }),
        };
        if !has_feature(feature) || ecn && !has_feature(VIRTIO_NET_F_HOST_ECN) {
            return Err(Malformed::Segmentation { gso_type });
        }
        let headers_bytes = ETHERNET_HEADER_BYTES.saturating_add(IP_HEADER_BYTES_MIN);
        let is_sane = needs_checksum
            && offset == checksum_offset
            && u64::from(start) >= headers_bytes
            && gso_size > 0
            && u64::from(hdr_len) <= frame_bytes;
        if !is_sane {
            let without_checksum = !needs_checksum;
            return Err(Malformed::Segments { gso_size, frame_bytes, without_checksum });
        }
        (checked.gso_type, checked.gso_size, checked.hdr_len) = (gso_type, gso_size, hdr_len);
    }
    Ok(checked.encode())
}

#[derive(Default)]
struct Checked {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    start: u16,
    offset: u16,
}

impl Checked {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [s0, s1] = self.gso_size.to_le_bytes();
        let [c0, c1] = self.start.to_le_bytes();
        let [o0, o1] = self.offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, s0, s1, c0, c1, o0, o1, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_BYTES: u64 = 3000;

    /// flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
    fn header(flags: u8, gso_type: u8, fields: [u16; 5]) -> [u8; HEADER_BYTES] {
        let mut raw = vec![flags, gso_type];
        raw.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        raw.try_into().unwrap()
    }

    fn checked(raw: [u8; HEADER_BYTES]) -> Result<[u8; HEADER_BYTES], Malformed> {
        check(raw, FRAME_BYTES, |_| true)
    }

    #[test]
    fn good_headers_stay_as_they_are() {
        for good in [
            header(0, 0, [0; 5]),
            header(1, 0, [0, 0, 34, 16, 0]),
            header(1, 1, [54, 1448, 34, 16, 0]),
            header(1, 4, [74, 1428, 54, 16, 0]),
            header(1, 0x81, [54, 1448, 34, 16, 0]),
            header(1, 5, [42, 1000, 34, 6, 0]),
        ] {
            assert_eq!(checked(good), Ok(good));
        }
    }

    #[test]
    fn what_means_nothing_does_not_reach_the_host() {
        let plain = header(0, 0, [0; 5]);
        assert_eq!(checked(header(0xfe, 0, [7, 7, 7, 7, 7])), Ok(plain));
    }

    #[test]
    fn what_points_outside_or_contradicts_itself_is_refused() {
        for (bad, text) in [
            (header(1, 0, [0, 0, 2990, 9, 0]), "the checksum is at 2990 + 9"),
            (header(1, 0, [0, 0, u16::MAX, u16::MAX, 0]), "the checksum is at"),
            (header(0, 1, [54, 1448, 34, 16, 0]), "without checksum: true"),
            (header(1, 1, [54, 0, 34, 16, 0]), "segments of 0 bytes"),
            (header(1, 1, [54, 1448, 34, 6, 0]), "segments"),
            (header(1, 1, [54, 1448, 33, 16, 0]), "segments"),
            (header(1, 1, [3001, 1448, 34, 16, 0]), "segments"),
            (header(1, 3, [42, 1448, 34, 6, 0]), "type 0x3"),
            (header(1, 0x80, [42, 1448, 34, 16, 0]), "type 0x80"),
            (header(1, 0x85, [42, 1448, 34, 6, 0]), "type 0x85"),
            (header(1, 2, [42, 1448, 34, 6, 0]), "type 0x2"),
        ] {
            let error = checked(bad).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn nothing_is_done_that_was_not_negotiated() {
        let only = |feature| move |other| other == feature || other == VIRTIO_NET_F_CSUM;
        let tcp = header(1, 1, [54, 1448, 34, 16, 0]);
        assert!(check(tcp, FRAME_BYTES, only(VIRTIO_NET_F_HOST_TSO4)).is_ok());
        assert!(check(tcp, FRAME_BYTES, only(VIRTIO_NET_F_HOST_TSO6)).is_err());
        let ecn = header(1, 0x81, [54, 1448, 34, 16, 0]);
        assert!(check(ecn, FRAME_BYTES, only(VIRTIO_NET_F_HOST_TSO4)).is_err());
        let udp = header(1, 5, [42, 1000, 34, 6, 0]);
        assert!(check(udp, FRAME_BYTES, only(VIRTIO_NET_F_HOST_TSO4)).is_err());
        let checksum = header(1, 0, [0, 0, 34, 16, 0]);
        assert_eq!(check(checksum, FRAME_BYTES, |_| false), Err(Malformed::Checksum));
    }
}
