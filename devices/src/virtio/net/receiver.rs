//! From the tap to the guest.
//!
//! Buffers that the driver made available are taken ahead, until a frame of any size has room,
//! and kept from one frame to the next:
//! ```text
//!   ring ─ pop ─▶ posted ─ readv ─▶ a frame in the first of them ─▶ used ring, all at once
//!                   └── given back to the ring when the machine is saved
//! ```

use std::collections::VecDeque;
use std::io::ErrorKind;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::header::{ETHERNET_HEADER_BYTES, HEADER_BYTES, NUM_BUFFERS_OFFSET};
use super::tap::Tap;
use super::throttle::Throttle;
use super::{FRAME_BYTES_MAX, FRAMES_AT_A_TIME, RX_QUEUE, VLAN_FRAME_HEADERS_BYTES};
use crate::virtio::{BrokenRing, Chain, QueueIo, Room, RoomIoVec};

/// A driver that has posted this part of all the room it ever had will not post more by itself,
/// so that the next frame must do with what there is.
const LEAST_PART: u64 = 4;

/// With the header before it.
const FRAME_BYTES_MIN: u64 = HEADER_BYTES as u64 + ETHERNET_HEADER_BYTES;

/// Chains taken ahead.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    posted: VecDeque<(Chain, Room)>,
    room: RoomIoVec,
    /// The most room that there ever was since the driver started.
    most_room_bytes: u64,
    /// The tap had frames when it was last looked at.
    is_ready: bool,
    pub(super) throttle: Throttle,
}

/// What was negotiated, as far as it matters here.
#[derive(Clone, Copy)]
struct Rules {
    mergeable: bool,
    checksums: bool,
    /// The longest frame that comes, with its header.
    frame_bytes_max: u64,
}

impl Rules {
    fn of(io: &QueueIo<'_>, mtu: u16) -> Self {
        let segmentation = [
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        ];
        let frame_bytes_max = if segmentation.iter().any(|feature| io.has_feature(*feature)) {
            FRAME_BYTES_MAX
        } else {
            VLAN_FRAME_HEADERS_BYTES.saturating_add(mtu.into())
        };
        Self {
            mergeable: io.has_feature(VIRTIO_NET_F_MRG_RXBUF),
            checksums: io.has_feature(VIRTIO_NET_F_GUEST_CSUM),
            frame_bytes_max: frame_bytes_max.saturating_add(HEADER_BYTES as u64),
        }
    }
}

impl Receiver {
    /// The tap has something, or may have.
    pub(super) fn wake(&mut self) {
        self.is_ready = true;
    }

    /// Moves frames as long as there are any, and room for them. `mtu` is the guest's.
    pub(super) fn run(
        &mut self,
        tap: &Tap,
        mtu: u16,
        io: &mut QueueIo<'_>,
    ) -> Result<(), BrokenRing> {
        let rules = Rules::of(io, mtu);
        for _ in 0..FRAMES_AT_A_TIME {
            if !self.is_ready || !io.is_running() || self.throttle.is_closed() {
                return Ok(());
            }
            if !self.has_room(rules, io)? {
                return Ok(()); // the driver kicks when it has made more available
            }
            match self.room.receive_from(tap) {
                Ok(0) => self.is_ready = false, // the other end of a socket is gone
                Ok(bytes) if !(FRAME_BYTES_MIN..=self.room.len_bytes()).contains(&bytes) => {
                    tracing::debug!(bytes, "a frame is lost: it does not fit, or is none");
                }
                Ok(bytes) => {
                    self.throttle.spend(bytes.saturating_sub(HEADER_BYTES as u64));
                    self.deliver(bytes, rules, io)?;
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    kind => {
                        if kind != ErrorKind::WouldBlock {
                            tracing::debug!(%error, "receive a frame from the tap");
                        }
                        self.is_ready = false;
                    }
                },
            }
        }
        io.come_back(RX_QUEUE);
        Ok(())
    }

    /// Takes chains until the next frame fits. False if it must wait for more of them.
    fn has_room(&mut self, rules: Rules, io: &mut QueueIo<'_>) -> Result<bool, BrokenRing> {
        loop {
            let enough = if rules.mergeable {
                self.room.len_bytes() >= rules.frame_bytes_max
            } else {
                !self.posted.is_empty()
            };
            if enough {
                return Ok(true);
            }
            let Some(chain) = io.pop(RX_QUEUE)? else { break };
            let room = self.room.push(io.memory(), chain.writable());
            match room {
                Ok(Some(room)) if room.len_bytes >= HEADER_BYTES as u64 => {
                    self.posted.push_back((chain, room));
                    continue;
                }
                Ok(Some(room)) => self.room.take_back(room),
                Ok(None) | Err(_) => {}
            }
            if !self.posted.is_empty() {
                // Its turn comes: chains can be put back only in their order. Until then no more
                // can be taken, so that what there is must do.
                io.undo_pop(RX_QUEUE, chain);
                return Ok(true);
            }
            tracing::debug!("a buffer for frames is given back: it is too short or not in RAM");
            io.complete(RX_QUEUE, chain, 0)?;
        }
        let room_bytes = self.room.len_bytes();
        self.most_room_bytes = self.most_room_bytes.max(room_bytes);
        let least = self.most_room_bytes.checked_div(LEAST_PART).unwrap_or(0);
        Ok(!self.posted.is_empty() && room_bytes >= least)
    }

    /// Gives the driver the chains in which a frame is, which has `bytes` with its header.
    fn deliver(
        &mut self,
        bytes: u64,
        rules: Rules,
        io: &mut QueueIo<'_>,
    ) -> Result<(), BrokenRing> {
        let mut left = bytes;
        let mut count: usize = 0;
        for (_, room) in &self.posted {
            count = count.saturating_add(1);
            left = left.saturating_sub(room.len_bytes);
            if left == 0 {
                break;
            }
        }
        if let Some((first, _)) = self.posted.front() {
            // The host's kernel leaves this field alone. What `readv` has filled is RAM.
            let num_buffers = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
            let _ = first.write_at(io.memory(), NUM_BUFFERS_OFFSET, &num_buffers);
            if !rules.checksums {
                // It tells of checksums that it has found right, whoever may want to know.
                let _ = first.write_at(io.memory(), 0, &[0]);
            }
        }
        let (posted, iovecs) = (&mut self.posted, &mut self.room);
        let mut left = bytes;
        let filled = posted.drain(..count.min(posted.len())).map(|(chain, room)| {
            iovecs.pop(room);
            let filled = left.min(room.len_bytes);
            left = left.saturating_sub(filled);
            (chain, u32::try_from(filled).unwrap_or(u32::MAX))
        });
        io.complete_together(RX_QUEUE, filled)
    }

    /// Puts what was taken ahead back on the ring.
    pub(super) fn give_back(&mut self, io: &mut QueueIo<'_>) {
        while let Some((chain, _)) = self.posted.pop_back() {
            io.undo_pop(RX_QUEUE, chain);
        }
        self.room.clear();
    }

    /// Forgets the driver. The tap is looked at when the next one starts.
    pub(super) fn reset(&mut self) {
        self.posted.clear();
        self.room.clear();
        self.most_room_bytes = 0;
        self.is_ready = true;
    }
}
