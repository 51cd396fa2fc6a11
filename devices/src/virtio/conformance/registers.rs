//! Queue registers and configuration space (section 4.2.2).

use super::{assert_recovers, for_each, started};
use crate::MmioDevice;
use crate::virtio::MMIO_REGION_BYTES;
use crate::virtio::test_driver::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, RAM_BASE, RAM_BYTES, TestDriver, reg,
};

/// Sets the device up with one register changed before queue 0 becomes ready.
fn started_with(driver: &mut TestDriver, register: u64, value: u32) {
    let features = driver.offered_features();
    assert!(driver.negotiate(features));
    driver.set_up_rings(16);
    driver.write(reg::QUEUE_SEL, 0);
    driver.write(reg::QUEUE_READY, 0);
    driver.write(register, value);
    driver.write(reg::QUEUE_READY, 1);
    driver.write(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
}

#[test]
fn a_queue_of_a_size_that_was_not_offered_needs_a_reset() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        driver.write(reg::QUEUE_SEL, 0);
        let max = driver.read(reg::QUEUE_NUM_MAX);
        for size in [0, 3, 12, max + 1, max * 2, 0x1_0000, 0x1_0010, u32::MAX] {
            started_with(&mut driver, reg::QUEUE_NUM, size);
            assert!(driver.needs_reset(), "{size} entries of {max}");
            assert!(driver.take_interrupt(), "the driver hears of it");
            driver.kick(0);
            assert_recovers(specimen, &mut driver);
        }
    });
}

#[test]
fn a_misaligned_ring_needs_a_reset() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        for (register, off_by) in
            [(reg::QUEUE_DESC_LOW, 8), (reg::QUEUE_DRIVER_LOW, 1), (reg::QUEUE_DEVICE_LOW, 2)]
        {
            started_with(&mut driver, register, RAM_BASE as u32 + 0x1000 + off_by);
            assert!(driver.needs_reset(), "register {register:#x}");
            assert!(driver.take_interrupt(), "the driver hears of it");
            assert_recovers(specimen, &mut driver);
        }
    });
}

#[test]
fn a_ring_outside_of_memory_needs_a_reset() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let end = RAM_BASE as u32 + RAM_BYTES as u32;
        for register in [reg::QUEUE_DESC_LOW, reg::QUEUE_DRIVER_LOW, reg::QUEUE_DEVICE_LOW] {
            for address in [0, end, end - 16, 0xffff_fff0] {
                started_with(&mut driver, register, address);
                assert!(driver.needs_reset(), "register {register:#x} = {address:#x}");
                assert!(driver.take_interrupt(), "the driver hears of it");
                driver.kick(0);
            }
            // The upper half: addresses near the end of all numbers.
            started_with(&mut driver, register + 4, u32::MAX);
            assert!(driver.needs_reset());
            assert_recovers(specimen, &mut driver);
        }
    });
}

#[test]
fn a_queue_that_is_not_ready_is_left_alone() {
    for_each(|specimen| {
        let mut driver = TestDriver::new(specimen.device());
        let features = driver.offered_features();
        assert!(driver.negotiate(features));
        driver.write(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        driver.write(reg::QUEUE_SEL, 0);
        assert_eq!(driver.read(reg::QUEUE_READY), 0);
        driver.kick(specimen.queue());
        assert!(!driver.needs_reset());
        assert_recovers(specimen, &mut driver);
    });
}

#[test]
fn a_queue_that_does_not_exist_has_no_size_and_takes_no_value() {
    for_each(|specimen| {
        let mut driver = started(specimen);
        for queue in [driver.rings.len() as u32, 1000, u32::MAX] {
            driver.write(reg::QUEUE_SEL, queue);
            assert_eq!(driver.read(reg::QUEUE_NUM_MAX), 0);
            driver.write(reg::QUEUE_READY, 1);
            assert_eq!(driver.read(reg::QUEUE_READY), 0);
            driver.write(reg::QUEUE_NOTIFY, queue);
            driver.run();
        }
        specimen.request(&mut driver, TestDriver::submit);
    });
}

#[test]
fn registers_read_the_same_at_any_width_that_is_allowed_and_zero_otherwise() {
    for_each(|specimen| {
        let driver = started(specimen);
        for offset in 0..reg::CONFIG {
            for width in [1, 2, 8] {
                let mut data = [0xff; 8];
                driver.transport.read(offset, &mut data[..width]);
                assert!(data[..width].iter().all(|byte| *byte == 0), "{offset:#x}, {width}");
            }
            if offset % 4 != 0 {
                assert_eq!(driver.read(offset), 0, "{offset:#x}");
            }
        }
    });
}

#[test]
fn configuration_space_reads_the_same_at_any_offset_and_width() {
    for_each(|specimen| {
        let driver = started(specimen);
        let len = MMIO_REGION_BYTES - reg::CONFIG;
        let bytes: Vec<u8> = (0..len).flat_map(|offset| driver.config(offset, 1)).collect();
        for width in [2, 4, 8] {
            for offset in 0..=bytes.len() - width {
                let expected = &bytes[offset..offset + width];
                assert_eq!(driver.config(offset as u64, width), expected, "{offset}, {width}");
            }
        }
        for offset in [len, 0x1000, u64::MAX - reg::CONFIG, u64::MAX - reg::CONFIG - 7] {
            assert_eq!(driver.config(offset, 8), [0; 8], "past the end, at {offset:#x}");
        }
    });
}

#[test]
fn configuration_space_takes_writes_anywhere_and_goes_on() {
    for_each(|specimen| {
        let mut driver = started(specimen);
        for offset in (0..0x100).chain([u64::MAX - reg::CONFIG]) {
            for width in [1, 2, 4, 8] {
                driver.transport.write(reg::CONFIG + offset, &[0xff; 8][..width]);
            }
        }
        driver.run();
        assert_recovers(specimen, &mut driver);
    });
}
