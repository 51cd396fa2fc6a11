//! Credit: how much each side may send before the other has made room, section 5.10.6.3.
//!
//! Each side counts in free-running 32-bit counters, so differences are taken modulo 2^32.

/// The guest may not send what it just sent: it would not fit into what we announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overrun;

/// What the guest may send to us.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inbound {
    buf_alloc: u32,
    /// Bytes that arrived from the guest.
    received: u32,
    /// Bytes of those that went on to the host peer: our `fwd_cnt`.
    forwarded: u32,
    /// The `fwd_cnt` that the guest heard last.
    announced: u32,
}

impl Inbound {
    pub(super) fn new(buf_alloc: u32) -> Self {
        Self { buf_alloc, received: 0, forwarded: 0, announced: 0 }
    }

    /// Bytes that wait here for the host peer.
    pub(super) fn waiting_bytes(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// `len` bytes arrived.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        if len > self.buf_alloc.saturating_sub(self.waiting_bytes()) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// `len` of the waiting bytes went on to the host peer.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len.min(self.waiting_bytes()));
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that is about to be sent.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.buf_alloc, self.forwarded)
    }

    /// Whether the guest should hear of its credit even if there is nothing else to tell: as far
    /// as it knows less than half of the buffer is left, and a quarter or more has become free
    /// since. Waiting for both keeps a fast stream at a packet of ours per quarter buffer; and
    /// since a buffer that has drained fulfils the second whenever the first holds, a guest that
    /// waits for half a buffer or less never waits in vain.
    pub(super) fn is_worth_announcing(&self) -> bool {
        let outstanding = self.received.wrapping_sub(self.announced);
        let news = self.forwarded.wrapping_sub(self.announced);
        outstanding > self.buf_alloc / 2 && news >= self.buf_alloc / 4
    }
}

/// What we may send to the guest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outbound {
    /// The guest's `buf_alloc` and `fwd_cnt` as last heard: true or not, they only bound us.
    buf_alloc: u32,
    forwarded: u32,
    sent: u32,
}

impl Outbound {
    /// The guest told its credit, as every packet of it does.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        self.forwarded = fwd_cnt;
    }

    /// Bytes that may be sent now. A `fwd_cnt` ahead of what was sent looks like a full buffer.
    pub(super) fn available_bytes(&self) -> u32 {
        self.buf_alloc.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// `len` bytes were sent.
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Counters that are about to wrap around.
    fn inbound_at(buf_alloc: u32, count: u32) -> Inbound {
        Inbound { buf_alloc, received: count, forwarded: count, announced: count }
    }

    #[test]
    fn a_guest_may_fill_the_buffer_and_not_a_byte_more() {
        let mut credit = Inbound::new(100);
        assert_eq!(credit.receive(100), Ok(()));
        assert_eq!(credit.receive(1), Err(Overrun));
        assert_eq!(credit.receive(u32::MAX), Err(Overrun));
        credit.forward(30);
        assert_eq!(credit.receive(30), Ok(()));
    }

    #[test]
    fn an_unused_buffer_is_not_announced_again() {
        let mut credit = Inbound::new(100);
        credit.receive(50).unwrap();
        credit.forward(50);
        assert!(!credit.is_worth_announcing(), "half of it is left as far as the guest knows");
        credit.receive(1).unwrap();
        assert!(credit.is_worth_announcing());
        assert_eq!(credit.announce(), (100, 50));
        assert!(!credit.is_worth_announcing());
    }

    #[test]
    fn a_guest_that_claims_to_have_received_more_than_was_sent_gets_nothing() {
        let mut credit = Outbound::default();
        credit.update(1000, 1);
        assert_eq!(credit.available_bytes(), 0);
        credit.update(u32::MAX, 0);
        assert_eq!(credit.available_bytes(), u32::MAX);
    }

    proptest! {
        /// A guest that keeps to its credit is never accused, never stuck, and never has more
        /// than `buf_alloc` waiting, wherever the counters stand.
        #[test]
        fn an_honest_guest_is_neither_accused_nor_stuck(
            start in prop_oneof![any::<u32>(), Just(u32::MAX - 10)],
            buf_alloc in 4_u32..5000,
            steps in prop::collection::vec((0_u32..3000, 0_u32..3000), 1..200),
        ) {
            let mut ours = inbound_at(buf_alloc, start);
            let mut guest = Outbound { buf_alloc, forwarded: start, sent: start };
            for (wanted, drained) in steps {
                let len = wanted.min(guest.available_bytes());
                guest.send(len);
                prop_assert_eq!(ours.receive(len), Ok(()));
                prop_assert!(ours.waiting_bytes() <= buf_alloc);
                ours.forward(drained);
                if ours.is_worth_announcing() {
                    let (buf_alloc, fwd_cnt) = ours.announce();
                    guest.update(buf_alloc, fwd_cnt);
                }
            }
            ours.forward(u32::MAX);
            if ours.is_worth_announcing() {
                let (buf_alloc, fwd_cnt) = ours.announce();
                guest.update(buf_alloc, fwd_cnt);
            }
            prop_assert!(guest.available_bytes() >= buf_alloc / 2, "a drained buffer is usable");
        }

        /// Whatever a guest announces, what we send stays within one reading of it.
        #[test]
        fn we_never_send_more_than_the_announced_buffer(
            start in any::<u32>(),
            lies in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..100),
        ) {
            let mut credit = Outbound { buf_alloc: 0, forwarded: start, sent: start };
            for (buf_alloc, fwd_cnt, wanted) in lies {
                credit.update(buf_alloc, fwd_cnt);
                let len = wanted.min(credit.available_bytes());
                credit.send(len);
                if len > 0 {
                    prop_assert!(credit.sent.wrapping_sub(fwd_cnt) <= buf_alloc);
                }
            }
        }
    }
}
