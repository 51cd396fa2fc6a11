//! Features (section 2.2) and the life of a device (sections 2.1 and 3.1).

use super::{assert_recovers, for_each, started};
use crate::virtio::test_driver::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, TestDriver, reg,
};

const VERSION_1: u64 = 1 << 32;

#[test]
fn every_device_identifies_itself() {
    for_each(|specimen| {
        let driver = TestDriver::new(specimen.device());
        assert_eq!(driver.read(reg::MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert_eq!(driver.read(reg::VERSION), 2);
        assert_eq!(driver.read(reg::DEVICE_ID), specimen.device().kind() as u32);
        assert_eq!(driver.read(reg::STATUS), 0);
    });
}

#[test]
fn every_device_refuses_each_feature_that_it_did_not_offer() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let offered = driver.offered_features();
        assert_ne!(offered & VERSION_1, 0);
        for bit in (0..64).filter(|bit| offered & (1 << bit) == 0) {
            assert!(!driver.negotiate(offered | 1 << bit), "feature {bit}");
        }
        assert_recovers(specimen, &mut driver);
    });
}

#[test]
fn every_device_wants_version_1_and_nothing_else() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let offered = driver.offered_features();
        assert!(!driver.negotiate(0));
        assert!(!driver.negotiate(offered & !VERSION_1));
        for bit in 0..64 {
            let subset = VERSION_1 | offered & (1 << bit);
            assert!(driver.negotiate(subset), "features {subset:#x}");
        }
        driver.start_with(VERSION_1, 64);
        specimen.request(&mut driver, TestDriver::submit);
    });
}

#[test]
fn features_past_the_64th_do_not_exist() {
    for_each(|specimen| {
        let driver = TestDriver::new(specimen.device());
        for select in [2, 3, u32::MAX] {
            driver.write(reg::DEVICE_FEATURES_SEL, select);
            assert_eq!(driver.read(reg::DEVICE_FEATURES), 0);
        }
    });
}

#[test]
fn features_are_frozen_once_they_are_agreed() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        assert!(driver.negotiate(VERSION_1));
        driver.write(reg::DRIVER_FEATURES_SEL, 0);
        let agreed = driver.transport.save();
        driver.write(reg::DRIVER_FEATURES, u32::MAX);
        assert!(driver.transport.save() == agreed);
    });
}

#[test]
fn status_bits_come_in_order_or_not_at_all() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        for (written, expected) in [
            (DRIVER_OK, 0),
            (FEATURES_OK, 0),
            (ACKNOWLEDGE | DRIVER_OK, ACKNOWLEDGE),
            (ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER), // no VERSION_1 yet
            (ACKNOWLEDGE | DRIVER | DRIVER_OK, ACKNOWLEDGE | DRIVER),
        ] {
            driver.write(reg::STATUS, written);
            assert_eq!(driver.read(reg::STATUS), expected, "after {written}");
        }
        assert_recovers(specimen, &mut driver);
    });
}

#[test]
fn a_status_bit_is_not_cleared_but_by_a_reset() {
    for_each(|specimen| {
        let driver = started(specimen);
        let running = driver.read(reg::STATUS);
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            driver.write(reg::STATUS, running & !bit);
            assert_eq!(driver.read(reg::STATUS), running);
        }
        driver.write(reg::STATUS, 0);
        assert_eq!(driver.read(reg::STATUS), 0);
    });
}

#[test]
fn unknown_status_bits_and_the_devices_own_are_not_the_drivers_to_set() {
    for_each(|specimen| {
        let mut driver = started(specimen);
        let running = driver.read(reg::STATUS);
        for bit in [16, 32, NEEDS_RESET, 1 << 8, 1 << 31] {
            driver.write(reg::STATUS, running | bit);
            assert_eq!(driver.read(reg::STATUS), running, "bit {bit:#x}");
        }
        specimen.request(&mut driver, TestDriver::submit);
    });
}

#[test]
fn a_reset_works_from_every_state() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let features = driver.offered_features();
        let steps: [&dyn Fn(&mut TestDriver); 6] = [
            &|driver| driver.write(reg::STATUS, ACKNOWLEDGE),
            &|driver| driver.write(reg::STATUS, ACKNOWLEDGE | DRIVER),
            &|driver| assert!(!driver.negotiate(0)),
            &|driver| assert!(driver.negotiate(features)),
            &|driver| driver.start(),
            &|driver| {
                driver.start();
                driver.set_available_index(specimen.queue(), 0x8000);
                driver.kick(specimen.queue());
                assert!(driver.needs_reset());
            },
        ];
        for step in steps {
            step(&mut driver);
            driver.write(reg::STATUS, 0);
            assert_eq!(driver.read(reg::STATUS), 0);
            assert_eq!(driver.read(reg::INTERRUPT_STATUS), 0);
            assert_recovers(specimen, &mut driver);
        }
    });
}
