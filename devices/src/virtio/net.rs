//! The network device, section 5.1: Ethernet frames between the guest and a tap of the host.
//!
//! ```text
//!   guest ─ TX ring ─▶ Sender: header read once and checked ─ writev ─▶ tap
//!   guest ◀─ RX ring ─ Receiver: buffers taken ahead ◀───────── readv ─ tap
//! ```
//! A frame goes between guest memory and the host's kernel in one system call. Large segments
//! and checksums are left to whoever does them best, as guest and host agree. Either direction may
//! have a rate limit; what it holds up stays in the ring or in the tap.
//!
//! Offered besides: mergeable receive buffers, the address, the link's status (always up) and the
//! MTU, if there is one. There is one pair of queues, since one thread serves it, and no control
//! queue. After a restore the tap is another one; frames that were under way are lost.

mod header;
mod mac;
mod receiver;
mod sender;
mod state;
mod tap;
#[cfg(test)]
mod tests;
mod throttle;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{Receiver as Inbox, Sender as Outbox, channel};
use std::time::Instant;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

pub use self::mac::{Mac, MacError};
use self::receiver::Receiver;
use self::sender::Sender;
pub use self::state::NetState;
pub use self::tap::{NAME_BYTES_MAX, Tap, TapError};
use super::{BrokenRing, Kind, QueueIo, Source, VirtioDevice};
use crate::rate_limiter::Changes;

const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The least that every link must carry, by the standard of IPv4.
pub const MTU_MIN: u16 = 68;
/// What Ethernet carries, unless somebody says otherwise.
const MTU_DEFAULT: u16 = 1500;
/// Addresses, type, and the tag of a VLAN.
const VLAN_FRAME_HEADERS_BYTES: u64 = 18;
/// The longest frame either way: what the kernel splits is no longer than a packet of IP.
const FRAME_BYTES_MAX: u64 = VLAN_FRAME_HEADERS_BYTES + 65535;
/// Frames that are received before others get their turn.
const FRAMES_AT_A_TIME: usize = 256;
/// Frames that a driver does not understand and that are looked for in the tap, at most: more
/// than it queues by itself.
const DISCARDED_FRAMES_MAX: usize = 4096;

const TAP_TOKEN: u32 = 0;
const TIMER_TOKEN: u32 = 1;

/// Size of the configuration space, up to the MTU.
const CONFIG_BYTES: usize = 12;

/// An interface as its user describes it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Its address; a random one if absent.
    pub mac: Option<Mac>,
    /// The longest packet, if the guest shall be told: at least [`MTU_MIN`].
    pub mtu: Option<u16>,
    /// Its rate limits.
    pub limits: Limits,
}

/// What becomes of the limits of both directions, as the guest sees them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the guest.
    pub receive: Changes,
    /// From the guest.
    pub transmit: Changes,
}

/// Why a network device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host has no descriptor left.
    #[error("create a timer for a network device")]
    Timer(#[source] io::Error),
    /// No random numbers.
    #[error("draw a random address for a network device")]
    Mac(#[source] io::Error),
}

/// Changes the limits of a device that runs. What is sent is looked at with the next kick.
pub type LimitSender = Outbox<Limits>;

/// The network device.
#[derive(Debug)]
pub struct Net {
    tap: Tap,
    mac: Mac,
    mtu: Option<u16>,
    receiver: Receiver,
    sender: Sender,
    /// The driver's features are known to the tap.
    is_negotiated: bool,
    timer: TimerFd,
    /// When the timer expires.
    armed_for: Option<Instant>,
    limits: Inbox<Limits>,
}

impl Net {
    /// A device on `tap`, and how to change its limits later.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(tap: Tap, options: &Options) -> Result<(Self, LimitSender), NetError> {
        let (outbox, limits) = channel();
        let mac = options.mac.map_or_else(Mac::random, Ok).map_err(NetError::Mac)?;
        let mut net = Self {
            tap,
            mac,
            mtu: options.mtu.map(|mtu| mtu.max(MTU_MIN)),
            receiver: Receiver::default(),
            sender: Sender::default(),
            is_negotiated: false,
            timer: TimerFd::new().map_err(|error| NetError::Timer(error.into()))?,
            armed_for: None,
            limits,
        };
        net.change(options.limits);
        Ok((net, outbox))
    }

    fn change(&mut self, limits: Limits) {
        self.receiver.throttle.change(limits.receive);
        self.sender.throttle.change(limits.transmit);
    }

    fn receive(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        self.negotiate(io);
        let mtu = self.mtu.unwrap_or(MTU_DEFAULT);
        let outcome = self.receiver.run(&self.tap, mtu, io);
        self.set_timer();
        outcome
    }

    fn transmit(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        let outcome = self.sender.run(&self.tap, io);
        self.set_timer();
        outcome
    }

    /// Tells the tap what the driver understands, once it runs.
    fn negotiate(&mut self, io: &QueueIo<'_>) {
        if self.is_negotiated || !io.is_running() {
            return;
        }
        self.is_negotiated = true;
        match self.tap.negotiate(|feature| io.has_feature(feature)) {
            Ok(false) => {}
            Ok(true) => self.tap.discard(DISCARDED_FRAMES_MAX),
            Err(error) => tracing::error!(%error, "set the offloads of a tap"),
        }
    }

    /// Sees to it that somebody looks when the next limit lets go.
    fn set_timer(&mut self) {
        let until = [self.receiver.throttle.until(), self.sender.throttle.until()];
        let next = until.into_iter().flatten().min();
        if next == self.armed_for {
            return;
        }
        let result = match next {
            // Not zero, which would be never.
            Some(next) => {
                let wait = next.saturating_duration_since(Instant::now());
                self.timer.reset(wait.max(std::time::Duration::from_nanos(1)), None)
            }
            None => self.timer.clear(),
        };
        match result {
            Ok(()) => self.armed_for = next,
            Err(error) => tracing::error!(%error, "set the timer of a network device"),
        }
    }

    fn reset_for_driver(&mut self) {
        self.receiver.reset();
        self.is_negotiated = false;
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let [s0, s1] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        let [m0, m1] = self.mtu.unwrap_or(0).to_le_bytes();
        let Mac([a, b, c, d, e, f]) = self.mac;
        // Behind the status the number of pairs of queues, which only VIRTIO_NET_F_MQ shows.
        [a, b, c, d, e, f, s0, s1, 0, 0, m0, m1]
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { 1 << VIRTIO_NET_F_MTU } else { 0 };
        let own = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_STATUS;
        own | mtu | self.tap.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else { return };
        for (to, from) in data.iter_mut().zip(self.config().iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // Since version 1 a driver changes its address through the control queue alone.
    }

    fn sources(&self) -> Vec<Source> {
        // Edge-triggered: a tap has frames for as long as the driver has no buffers for them.
        let tap = self.tap.as_fd().as_raw_fd();
        let timer = self.timer.as_raw_fd();
        vec![
            Source { token: TAP_TOKEN, fd: tap, events: EventSet::IN | EventSet::EDGE_TRIGGERED },
            Source { token: TIMER_TOKEN, fd: timer, events: EventSet::IN },
        ]
    }

    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        while let Ok(limits) = self.limits.try_recv() {
            self.change(limits);
        }
        match queue {
            RX_QUEUE => self.receive(io),
            TX_QUEUE => self.transmit(io),
            _ => Ok(()),
        }
    }

    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        if token == TAP_TOKEN {
            self.receiver.wake();
            return self.receive(io);
        }
        // Unlike reading it, this takes the event away without ever waiting for it.
        if let Err(error) = self.timer.clear() {
            tracing::error!(%error, "stop the timer of a network device");
        }
        self.armed_for = None;
        self.receive(io)?;
        self.transmit(io)
    }

    /// Nothing is under way but buffers taken ahead, which go back to the ring.
    fn drain(&mut self, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        self.receiver.give_back(io);
        Ok(())
    }

    fn reset(&mut self) {
        self.reset_for_driver();
    }
}
