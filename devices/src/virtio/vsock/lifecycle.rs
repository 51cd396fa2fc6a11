//! The life of a connection, without its bytes.
//!
//! ```text
//!  host: CONNECT <port>                    guest: REQUEST, and <uds_path>_<port> accepts
//!        │                                        │
//!        ▼              guest: RESPONSE           ▼
//!    Requested ───────────────────────────────▶ Open ─────────────────────────┐
//!        │ guest: RST │ client gone               │  │ both halves are done,   │ guest: RST
//!        ▼            ▼                           │  ▼ the guest not told so   │
//!      Close    Close, or Reset if                │ Parting ── guest: RST ─────┤
//!               the guest was asked               │  │                         ▼
//!                                                 │  │ guest: SHUTDOWN both   Close
//!      guest: SHUTDOWN both, all of its ──────────┴──┴──▶ Reset                ▲
//!      bytes with the host peer                                                │
//!                                                                              │
//!      guest: SHUTDOWN both, then RST before its bytes are all written: Orphaned
//!                                                       (written, or peer gone)
//! ```
//! A half is done when its sender sends no more and everything sent is delivered, or when its
//! receiver does not want any more. There is no timer: a guest that gives up sends RST, a host
//! peer that gives up closes its socket, and whoever does neither holds one place in a table of
//! bounded size, from which a place held by `Parting` is taken first.

use super::packet::Shutdown;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// A host client waits for the guest to accept it.
    Requested {
        /// The guest has seen the request.
        is_sent: bool,
    },
    /// Bytes may flow.
    Open,
    /// The guest is done and forgot about it; the host peer still gets the rest.
    Orphaned,
    /// The host peer is done and its socket closed; the guest has yet to agree.
    Parting,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    /// It goes on.
    Live,
    /// It is over, and the guest knows.
    Close,
    /// It is over, and the guest is told by RST.
    Reset,
}

/// What the guest may do with its payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// Pass them on.
    Forward,
    /// The host peer has gone, which the guest may not know yet.
    Discard,
    /// It must not send any.
    Violation,
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifecycle {
    phase: Phase,
    /// What the guest does no longer, as it told.
    guest: Shutdown,
    /// What the host peer does no longer.
    host: Shutdown,
    /// As much of `host` as the guest was told.
    told: Shutdown,
}

impl Lifecycle {
    pub(super) fn new(phase: Phase) -> Self {
        Self { phase, guest: Shutdown::NONE, host: Shutdown::NONE, told: Shutdown::NONE }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn on_request_sent(&mut self) {
        self.phase = Phase::Requested { is_sent: true };
    }

    /// The guest accepts. `Reset` if nobody asked it.
    pub(super) fn on_response(&mut self) -> Fate {
        if self.phase != (Phase::Requested { is_sent: true }) {
            return Fate::Reset;
        }
        self.phase = Phase::Open;
        Fate::Live
    }

    /// The guest will not do what `flags` name any more.
    pub(super) fn on_guest_shutdown(&mut self, flags: Shutdown) -> Fate {
        if matches!(self.phase, Phase::Requested { .. } | Phase::Orphaned) {
            return Fate::Reset;
        }
        self.guest.add(flags);
        Fate::Live
    }

    /// The guest has dropped the connection.
    pub(super) fn on_guest_reset(&mut self) -> Fate {
        match self.phase {
            // It is tired of waiting for our RST; its bytes are not lost for that.
            Phase::Open if self.guest == Shutdown::BOTH => {
                self.phase = Phase::Orphaned;
                Fate::Live
            }
            Phase::Orphaned => Fate::Live,
            _ => Fate::Close,
        }
    }

    /// The host peer will not do what `flags` name any more, and what it sent is delivered.
    pub(super) fn on_host_shutdown(&mut self, flags: Shutdown) {
        self.host.add(flags);
    }

    /// Draws the conclusion from what has happened; asked after every change.
    pub(super) fn settle(&mut self, is_flushed: bool) -> Fate {
        let host_receives = !self.host.has(Shutdown::RECEIVE);
        match self.phase {
            Phase::Requested { is_sent } => match (host_receives, is_sent) {
                (true, _) => Fate::Live,
                (false, false) => Fate::Close,
                (false, true) => Fate::Reset,
            },
            Phase::Orphaned if is_flushed || !host_receives => Fate::Close,
            Phase::Orphaned => Fate::Live,
            Phase::Open | Phase::Parting => {
                let to_guest_done =
                    self.guest.has(Shutdown::RECEIVE) || self.host.has(Shutdown::SEND);
                let to_host_done = !host_receives || (self.guest.has(Shutdown::SEND) && is_flushed);
                if !(to_guest_done && to_host_done) {
                    return Fate::Live;
                }
                if self.guest == Shutdown::BOTH {
                    return Fate::Reset;
                }
                self.host = Shutdown::BOTH;
                self.phase = Phase::Parting;
                Fate::Live
            }
        }
    }

    /// The flags of the SHUTDOWN packet that the guest should get now, if any.
    pub(super) fn untold(&self) -> Option<Shutdown> {
        let may_tell = matches!(self.phase, Phase::Open | Phase::Parting);
        (may_tell && self.host != self.told).then_some(self.host)
    }

    /// That packet is sent.
    pub(super) fn on_told(&mut self) {
        self.told = self.host;
    }

    /// Whether bytes of the host peer may go to the guest.
    pub(super) fn may_send_to_guest(&self) -> bool {
        self.phase == Phase::Open
            && !self.guest.has(Shutdown::RECEIVE)
            && !self.host.has(Shutdown::SEND)
    }

    /// Whether the guest has said that it sends no more.
    pub(super) fn guest_sends(&self) -> bool {
        !self.guest.has(Shutdown::SEND)
    }

    /// What to do with a payload of the guest.
    pub(super) fn intake(&self) -> Intake {
        match self.phase {
            Phase::Requested { .. } | Phase::Orphaned => Intake::Violation,
            _ if !self.guest_sends() => Intake::Violation,
            Phase::Parting => Intake::Discard,
            Phase::Open if self.host.has(Shutdown::RECEIVE) => Intake::Discard,
            Phase::Open => Intake::Forward,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open() -> Lifecycle {
        Lifecycle::new(Phase::Open)
    }

    #[test]
    fn a_request_is_answered_once() {
        let mut life = Lifecycle::new(Phase::Requested { is_sent: false });
        assert_eq!(life.on_response(), Fate::Reset, "before it was sent");
        life.on_request_sent();
        assert_eq!(life.on_response(), Fate::Live);
        assert_eq!(life.on_response(), Fate::Reset, "a second time");
    }

    #[test]
    fn a_client_that_leaves_before_the_guest_heard_of_it_leaves_no_trace() {
        for (is_sent, fate) in [(false, Fate::Close), (true, Fate::Reset)] {
            let mut life = Lifecycle::new(Phase::Requested { is_sent });
            life.on_host_shutdown(Shutdown::BOTH);
            assert_eq!(life.settle(true), fate);
        }
    }

    #[test]
    fn a_guest_that_closes_gets_rst_once_its_bytes_are_delivered() {
        let mut life = open();
        assert_eq!(life.on_guest_shutdown(Shutdown::BOTH), Fate::Live);
        assert_eq!(life.settle(false), Fate::Live);
        assert_eq!(life.settle(true), Fate::Reset);
    }

    #[test]
    fn a_guest_that_gives_up_waiting_for_rst_loses_no_bytes() {
        let mut life = open();
        let _ = life.on_guest_shutdown(Shutdown::BOTH);
        assert_eq!(life.on_guest_reset(), Fate::Live);
        assert_eq!(life.settle(false), Fate::Live);
        assert_eq!(life.settle(true), Fate::Close);
    }

    #[test]
    fn one_half_may_stay_open_alone() {
        let mut life = open();
        let _ = life.on_guest_shutdown(Shutdown::SEND);
        assert_eq!(life.settle(true), Fate::Live);
        assert!(life.may_send_to_guest());
        assert_eq!(life.intake(), Intake::Violation);
        life.on_host_shutdown(Shutdown::SEND);
        assert_eq!(life.settle(true), Fate::Live);
        assert_eq!((life.phase(), life.untold()), (Phase::Parting, Some(Shutdown::BOTH)));
        life.on_told();
        assert_eq!(life.untold(), None);
        assert_eq!(life.on_guest_reset(), Fate::Close);
    }

    #[derive(Debug, Clone)]
    enum Event {
        RequestSent,
        Response,
        GuestShutdown(u32),
        GuestReset,
        HostShutdown(u32),
        Told,
    }

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::RequestSent),
            Just(Event::Response),
            (0_u32..4).prop_map(Event::GuestShutdown),
            Just(Event::GuestReset),
            (0_u32..4).prop_map(Event::HostShutdown),
            Just(Event::Told),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: a phase is never left backwards, what was told
        /// is true, and a connection on which both sides are done ends as soon as it is flushed.
        #[test]
        fn no_order_of_events_confuses_it(
            requested in any::<bool>(),
            steps in prop::collection::vec((events(), any::<bool>()), 1..40),
        ) {
            let rank = |phase| match phase {
                Phase::Requested { is_sent } => u8::from(is_sent),
                Phase::Open => 2,
                Phase::Orphaned | Phase::Parting => 3,
            };
            let first = if requested { Phase::Requested { is_sent: false } } else { Phase::Open };
            let mut life = Lifecycle::new(first);
            for (event, is_flushed) in steps {
                let before = rank(life.phase());
                let fate = match event {
                    Event::RequestSent if before == 0 => { life.on_request_sent(); Fate::Live }
                    Event::RequestSent => Fate::Live,
                    Event::Response => life.on_response(),
                    Event::GuestShutdown(flags) => {
                        life.on_guest_shutdown(Shutdown::from_flags(flags))
                    }
                    Event::GuestReset => life.on_guest_reset(),
                    Event::HostShutdown(flags) => {
                        life.on_host_shutdown(Shutdown::from_flags(flags));
                        Fate::Live
                    }
                    Event::Told => {
                        if life.untold().is_some() { life.on_told(); }
                        Fate::Live
                    }
                };
                if fate != Fate::Live || life.settle(is_flushed) != Fate::Live {
                    return Ok(());
                }
                prop_assert!(rank(life.phase()) >= before);
                prop_assert!(life.host.has(life.told));
                let all_done = life.guest == Shutdown::BOTH && life.host == Shutdown::BOTH;
                prop_assert!(!all_done, "it should have ended");
                if life.phase() == Phase::Parting {
                    prop_assert!(!life.may_send_to_guest());
                    prop_assert!(life.intake() != Intake::Forward);
                }
            }
        }
    }
}
