use rotifer_snapshot::{LoadError, Stateful, Tag};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::test_driver::{
    ACKNOWLEDGE, Buffer, DRIVER, DRIVER_OK, FEATURES_OK, RAM_BASE, TestDriver, reg,
};
use super::super::{BrokenRing, Kind, QueueIo, Source, VirtioDevice};
use super::*;

/// Answers each chain with its readable bytes, and counts resets.
struct Echo {
    event: EventFd,
    resets: u32,
}

impl Echo {
    fn boxed() -> Box<Self> {
        Box::new(Self { event: EventFd::new(EFD_NONBLOCK).unwrap(), resets: 0 })
    }
}

impl Stateful for Echo {
    const TAG: Tag = Tag { kind: *b"ECHO", version: 1 };
    type State = u32;

    fn save(&self) -> u32 {
        self.resets
    }

    fn load(&mut self, state: u32) -> Result<(), LoadError> {
        self.resets = state;
        Ok(())
    }
}

impl VirtioDevice for Echo {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.resets as u8);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 1, fd: self.event.as_raw_fd(), events: EventSet::IN }]
    }

    fn on_kick(&mut self, queue: usize, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        while let Some(chain) = io.pop(queue)? {
            let mut bytes = vec![0; chain.readable_bytes() as usize];
            let read = chain.read_at(io.memory(), 0, &mut bytes).unwrap_or(0);
            let written = chain.write_at(io.memory(), 0, &bytes[..read]).unwrap_or(0);
            io.complete(queue, chain, written as u32)?;
        }
        Ok(())
    }

    fn on_source(&mut self, token: u32, io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        assert_eq!(token, 1);
        self.event.read().unwrap();
        self.on_kick(1, io)
    }

    fn drain(&mut self, _io: &mut QueueIo<'_>) -> Result<(), BrokenRing> {
        Ok(())
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}

#[test]
fn a_chain_is_answered_and_the_driver_interrupted() {
    let mut driver = TestDriver::started(Echo::boxed());
    let (head, at) = driver.submit(0, &[Buffer::Read(b"rotifer".to_vec()), Buffer::Write(16)]);
    driver.kick(0);
    assert_eq!(driver.used(0).map(|used| (used.head, used.len)), Some((head.into(), 7)));
    assert_eq!(driver.bytes(at[1], 7), b"rotifer");
    assert!(driver.take_interrupt());
    assert!(!driver.take_interrupt());
}

#[test]
fn a_source_reaches_the_device() {
    let device = Echo::boxed();
    let event = device.event.try_clone().unwrap();
    let mut driver = TestDriver::started(device);
    driver.submit(1, &[Buffer::Read(vec![1]), Buffer::Write(1)]);
    event.write(1).unwrap();
    driver.run();
    assert!(driver.used(1).is_some());
}

#[test]
fn a_ring_filled_before_driver_ok_is_found() {
    let mut driver = TestDriver::new(Echo::boxed());
    let features = driver.offered_features();
    assert!(driver.negotiate(features));
    driver.set_up_rings(64);
    driver.submit(0, &[Buffer::Read(vec![1]), Buffer::Write(1)]);
    driver.write(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.run();
    assert!(driver.used(0).is_some());
}

#[test]
fn a_queue_cannot_be_changed_while_the_device_runs() {
    let mut driver = TestDriver::started(Echo::boxed());
    driver.write(reg::QUEUE_SEL, 0);
    driver.write(reg::QUEUE_NUM, 1);
    driver.write(reg::QUEUE_DEVICE_LOW, 0);
    driver.write(reg::QUEUE_READY, 0);
    assert_eq!(driver.read(reg::QUEUE_READY), 1);
    driver.submit(0, &[Buffer::Read(vec![1]), Buffer::Write(1)]);
    driver.kick(0);
    assert!(driver.used(0).is_some(), "the ring is where it was and as large");
}

#[test]
fn an_interrupt_that_the_driver_does_not_want_is_not_sent() {
    let mut driver = TestDriver::started(Echo::boxed());
    for _ in 0..3 {
        // Never reads the used ring, so used_event stays at the first entry.
        driver.submit(0, &[Buffer::Read(vec![1]), Buffer::Write(1)]);
        driver.kick(0);
    }
    assert!(driver.take_interrupt(), "for the first");
    driver.submit(0, &[Buffer::Read(vec![1]), Buffer::Write(1)]);
    driver.kick(0);
    assert!(!driver.take_interrupt(), "not for later ones");
}

#[test]
fn a_kick_of_a_reset_device_does_nothing() {
    let mut driver = TestDriver::started(Echo::boxed());
    driver.submit(0, &[Buffer::Read(vec![1]), Buffer::Write(1)]);
    let resets = driver.config(0, 1)[0];
    driver.write(reg::STATUS, 0);
    driver.kick(0);
    assert!(driver.used(0).is_none());
    assert_eq!(driver.config(0, 1), [resets + 1], "the device heard of its reset");
}

#[test]
fn a_saved_transport_goes_on_in_another_one() {
    let mut driver = TestDriver::started(Echo::boxed());
    driver.submit(0, &[Buffer::Read(vec![1]), Buffer::Write(1)]);
    driver.kick(0);
    let state = driver.transport.save();

    let mut copy = TestDriver::with_memory(Echo::boxed(), driver.memory.clone());
    copy.transport.load(&state).unwrap();
    assert_eq!(copy.transport.save(), state);
    copy.rings = driver.rings.clone();
    assert!(copy.used(0).is_some(), "what was used before is in memory");
    copy.allocate(1 << 20); // beyond what the first driver placed
    copy.submit(0, &[Buffer::Read(vec![2]), Buffer::Write(1)]);
    copy.kick(0);
    assert!(copy.used(0).is_some());
}

#[test]
fn a_state_that_cannot_be_is_refused_by_its_field() {
    let driver = TestDriver::started(Echo::boxed());
    let good = driver.transport.save();
    let refused = |change: &dyn Fn(&mut TransportState)| {
        let mut state = good.clone();
        change(&mut state);
        TestDriver::new(Echo::boxed()).transport.load(&state).unwrap_err().to_string()
    };
    assert!(refused(&|s| s.status = 0x100).contains("status = 256"));
    assert!(refused(&|s| s.device_kind = 99).contains("device_kind = 99"));
    assert!(refused(&|s| s.driver_features |= 1 << 63).contains("driver_features"));
    assert!(refused(&|s| s.interrupt_status = 4).contains("interrupt_status = 4"));
    assert!(refused(&|s| s.queues.truncate(1)).contains("queues = 1"));
    assert!(refused(&|s| s.queues[0].size = 3).contains("queue size = 3"));
    assert!(refused(&|s| s.queues[1].used_ring = RAM_BASE - 16).contains("queue = 1"));
    assert!(refused(&|s| s.device.push(0)).contains("1 bytes too many"));
}
