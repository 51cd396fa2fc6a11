//! Rings in normal use and around its edges (section 2.7).

use super::{Submit, assert_recovers, for_each, started};
use crate::virtio::test_driver::{
    ACKNOWLEDGE, Buffer, DRIVER, DRIVER_OK, FEATURES_OK, RAM_BASE, TestDriver, reg,
};

const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

#[test]
fn an_indirect_request_is_answered_as_a_direct_one() {
    for_each(|specimen| {
        let mut driver = started(specimen);
        assert_eq!(driver.offered_features() & INDIRECT_DESC, INDIRECT_DESC);
        for submit in [TestDriver::submit as Submit, TestDriver::submit_indirect] {
            specimen.request(&mut driver, submit);
            assert!(driver.take_interrupt());
        }
    });
}

#[test]
fn every_device_works_with_and_without_event_indexes() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let offered = driver.offered_features();
        assert_eq!(offered & EVENT_IDX, EVENT_IDX);
        for features in [offered, offered & !EVENT_IDX] {
            driver.start_with(features, 16);
            for _ in 0..40 {
                specimen.request(&mut driver, TestDriver::submit);
                assert!(driver.take_interrupt(), "features {features:#x}");
            }
        }
    });
}

#[test]
fn indexes_wrap_around_at_65536() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let features = driver.offered_features();
        driver.start_with(features, 4);
        let mark = driver.allocate(0);
        for _ in 0..66_000 {
            specimen.request(&mut driver, TestDriver::submit);
            driver.give_back_from(mark);
        }
    });
}

#[test]
fn a_request_before_driver_ok_waits_for_it() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let features = driver.offered_features();
        assert!(driver.negotiate(features));
        driver.set_up_rings(16);
        let buffers = [Buffer::Read(vec![0; 64]), Buffer::Write(64)];
        driver.submit(specimen.queue(), &buffers);
        driver.kick(specimen.queue());
        assert_eq!(driver.used(specimen.queue()), None);
        assert!(!driver.take_interrupt());
        driver.write(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        driver.run();
        assert!(driver.used(specimen.queue()).is_some(), "nobody kicked after DRIVER_OK");
    });
}

#[test]
fn a_request_to_a_device_that_was_reset_is_not_answered() {
    for_each(|specimen| {
        let mut driver = started(specimen);
        driver.submit(specimen.queue(), &[Buffer::Read(vec![0; 64]), Buffer::Write(64)]);
        driver.write(reg::QUEUE_NOTIFY, specimen.queue() as u32);
        driver.write(reg::STATUS, 0);
        driver.run();
        driver.kick(specimen.queue());
        assert_eq!(driver.used(specimen.queue()), None);
        assert!(!driver.take_interrupt());
        assert_recovers(specimen, &mut driver);
    });
}

#[test]
fn a_full_ring_is_served_by_one_kick() {
    for_each(|specimen| {
        let queue = specimen.queue();
        let mut driver = TestDriver::new(specimen.device());
        let features = driver.offered_features();
        driver.start_with(features, 16);
        for _ in 0..16 {
            driver.submit(queue, &[Buffer::Write(64)]);
        }
        driver.kick(queue);
        let answers = std::iter::from_fn(|| driver.used(queue)).count();
        assert_eq!(answers, 16);
        assert!(driver.take_interrupt());
    });
}

#[test]
fn a_saved_device_goes_on_in_another_one() {
    for_each(|specimen| {
        let mut driver = started(specimen);
        specimen.request(&mut driver, TestDriver::submit);
        // Made available, and not seen before the machine stops.
        let buffers = [Buffer::Read(vec![0; 64]), Buffer::Write(64)];
        let (head, _) = driver.submit(specimen.queue(), &buffers);
        driver.transport.drain();
        let state = driver.transport.save();

        let mut copy = TestDriver::with_memory(specimen.device(), driver.memory.clone());
        copy.transport.load(&state).unwrap();
        assert!(copy.transport.save() == state, "nothing is lost on the way");
        copy.rings = driver.rings.clone();
        copy.allocate(driver.allocate(0) - RAM_BASE); // what the first driver has placed
        copy.transport.kick();
        copy.run();
        let used = copy.used(specimen.queue()).expect("the waiting request is answered");
        assert_eq!(used.head, u32::from(head));
        assert!(copy.take_interrupt());
        specimen.request(&mut copy, TestDriver::submit);
        assert_recovers(specimen, &mut copy);
    });
}

#[test]
fn a_saved_device_that_no_driver_ever_touched_is_as_good_as_new() {
    for_each(|specimen| {
        let state = TestDriver::new(specimen.device()).transport.save();
        let mut copy = TestDriver::new(specimen.device());
        copy.transport.load(&state).unwrap();
        copy.start();
        specimen.request(&mut copy, TestDriver::submit);
    });
}
