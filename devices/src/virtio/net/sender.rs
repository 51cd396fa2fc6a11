//! From the guest to the tap.

use super::header::{self, ETHERNET_HEADER_BYTES, HEADER_BYTES};
use super::tap::Tap;
use super::throttle::Throttle;
use super::{FRAME_BYTES_MAX, TX_QUEUE};
use crate::virtio::{BrokenRing, Chain, HeadedIoVec, QueueIo};

/// Sends frames one by one; none is ever kept.
#[derive(Debug, Default)]
pub(super) struct Sender {
    pub(super) throttle: Throttle,
}

impl Sender {
    /// Moves the frames that the driver made available, up to a ring full of them.
    pub(super) fn run(&mut self, tap: &Tap, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        while !self.throttle.is_closed() {
            let Some(chain) = io.pop(TX_QUEUE)? else { break };
            if let Some(frame_bytes) = send(tap, &chain, io) {
                self.throttle.spend(frame_bytes);
            }
            io.complete(TX_QUEUE, chain, 0)?;
        }
        Ok(())
    }
}

/// Returns the frame's length, if the tap has taken it. As on any network, a frame that cannot be
/// sent is lost, and nobody is told.
fn send(tap: &Tap, chain: &Chain, io: &QueueIo<'_>) -> Option<u64> {
    let lost = |reason: &dyn std::fmt::Display| tracing::debug!(%reason, "a frame is not sent");
    let frame_bytes = chain.readable_bytes().checked_sub(HEADER_BYTES as u64)?;
    if !(ETHERNET_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&frame_bytes) {
        lost(&format_args!("it has {frame_bytes} bytes"));
        return None;
    }
    let mut raw = [0; HEADER_BYTES];
    if let Err(outside) = chain.read_at(io.memory(), 0, &mut raw) {
        lost(&outside);
        return None;
    }
    let checked = header::check(raw, frame_bytes, |feature| io.has_feature(feature));
    let header = checked.map_err(|malformed| lost(&malformed)).ok()?;
    let message = HeadedIoVec::new(&header, io.memory(), chain.readable(), HEADER_BYTES as u64);
    let message = message.map_err(|outside| lost(&outside)).ok()?;
    loop {
        match message.send_to(tap) {
            Ok(()) => return Some(frame_bytes),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                lost(&error);
                return None;
            }
        }
    }
}
