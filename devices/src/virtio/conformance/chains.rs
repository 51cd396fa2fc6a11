//! Descriptor chains that must not be (section 2.7.5), one abuse at a time.

use super::{Specimen, assert_recovers, for_each, started};
use crate::virtio::MAX_CHAIN_SEGMENTS;
use crate::virtio::test_driver::{
    Buffer, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, RAM_BASE, RAM_BYTES, TestDriver,
};

const RAM_END: u64 = RAM_BASE + RAM_BYTES as u64;
/// The available ring names a descriptor that is none.
const NO_HEAD: u16 = 64;

/// A descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

/// Writes `descriptors` to `table`.
fn write_table(driver: &TestDriver, table: u64, descriptors: &[Descriptor]) {
    for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
        driver.write_descriptor(table, index as u16, (*address, *len, *flags), *next);
    }
}

/// Kicks the device with `descriptors` as its table and the chain that begins at `head`.
fn kick_with(
    specimen: &dyn Specimen,
    driver: &mut TestDriver,
    descriptors: &[Descriptor],
    head: u16,
) {
    write_table(driver, driver.rings[specimen.queue()].desc, descriptors);
    driver.make_available(specimen.queue(), head);
    driver.kick(specimen.queue());
}

/// The device stops, tells the driver so, answers nothing more, and recovers.
fn assert_breaks(what: &str, descriptors: impl Fn(&mut TestDriver) -> (Vec<Descriptor>, u16)) {
    for_each(|specimen| {
        let mut driver = started(specimen);
        let (descriptors, head) = descriptors(&mut driver);
        kick_with(specimen, &mut driver, &descriptors, head);
        assert!(driver.needs_reset(), "{what}");
        assert!(driver.take_interrupt(), "{what}: the driver hears of it");
        driver.submit(specimen.queue(), &[Buffer::Write(64)]);
        driver.kick(specimen.queue());
        assert_eq!(driver.used(specimen.queue()), None, "{what}: nothing is answered any more");
        assert_recovers(specimen, &mut driver);
    });
}

#[test]
fn a_chain_that_loops_breaks_the_ring() {
    let itself = (RAM_BASE, 16, DESC_NEXT, 0);
    assert_breaks("a loop of one", |_| (vec![itself], 0));
    let two = [(RAM_BASE, 16, DESC_NEXT, 1), (RAM_BASE, 16, DESC_NEXT, 0)];
    assert_breaks("a loop of two", |_| (two.to_vec(), 0));
    let written = (RAM_BASE, 0, DESC_NEXT | DESC_WRITE, 0);
    assert_breaks("a loop of nothing", |_| (vec![written], 0));
}

#[test]
fn a_chain_that_leaves_its_table_breaks_the_ring() {
    for next in [64, 1000, u16::MAX] {
        let descriptor = (RAM_BASE, 16, DESC_NEXT, next);
        assert_breaks("next is outside", |_| (vec![descriptor], 0));
    }
    for head in [NO_HEAD, 1000, u16::MAX] {
        assert_breaks("the head is outside", |_| (vec![(RAM_BASE, 16, 0, 0)], head));
    }
}

#[test]
fn writable_before_readable_breaks_the_ring() {
    let descriptors = [(RAM_BASE, 16, DESC_WRITE | DESC_NEXT, 1), (RAM_BASE, 16, 0, 0)];
    assert_breaks("the wrong order", |_| (descriptors.to_vec(), 0));
}

#[test]
fn more_than_4_gib_in_a_chain_break_the_ring() {
    let half = |flags, next| (RAM_BASE, 1 << 31, flags, next);
    let descriptors = [half(DESC_NEXT, 1), half(DESC_NEXT, 2), half(0, 0)];
    assert_breaks("6 GiB", |_| (descriptors.to_vec(), 0));
}

#[test]
fn an_indirect_table_that_is_none_breaks_the_ring() {
    for (what, address, len) in [
        ("empty", RAM_BASE, 0),
        ("not whole descriptors", RAM_BASE, 24),
        ("longer than a table can be", RAM_BASE, 16 << 16),
        ("as long as can be", RAM_BASE, u32::MAX),
        ("after RAM", RAM_END, 16),
        ("before RAM", 0, 16),
        ("at the end of all addresses", u64::MAX - 7, 16),
    ] {
        assert_breaks(what, |_| (vec![(address, len, DESC_INDIRECT, 0)], 0));
    }
}

/// A ring whose first descriptor is an indirect table with `descriptors`.
fn indirect(driver: &mut TestDriver, descriptors: &[Descriptor]) -> (Vec<Descriptor>, u16) {
    let len = 16 * descriptors.len() as u64;
    let table = driver.allocate(len);
    write_table(driver, table, descriptors);
    (vec![(table, len as u32, DESC_INDIRECT, 0)], 0)
}

#[test]
fn an_indirect_table_obeys_the_rules_of_a_direct_one() {
    assert_breaks("indirect in indirect", |driver| {
        indirect(driver, &[(RAM_BASE, 16, DESC_INDIRECT, 0)])
    });
    assert_breaks("a loop", |driver| indirect(driver, &[(RAM_BASE, 16, DESC_NEXT, 0)]));
    assert_breaks("a way out", |driver| indirect(driver, &[(RAM_BASE, 16, DESC_NEXT, 1)]));
    assert_breaks("a table that ends outside of RAM", |driver| {
        write_table(driver, RAM_END - 16, &[(RAM_BASE, 16, DESC_NEXT, 1)]);
        (vec![(RAM_END - 16, 32, DESC_INDIRECT, 0)], 0)
    });
}

#[test]
fn a_chain_is_taken_up_to_the_limit_and_not_beyond() {
    let chain = |driver: &mut TestDriver, count: usize| {
        let at = driver.allocate(16);
        let descriptor = |index: usize| {
            let more = if index + 1 < count { DESC_NEXT } else { 0 };
            (at, 1, DESC_WRITE | more, index as u16 + 1)
        };
        let descriptors: Vec<_> = (0..count).map(descriptor).collect();
        indirect(driver, &descriptors)
    };
    assert_breaks("one too many", |driver| chain(driver, MAX_CHAIN_SEGMENTS + 1));
    assert_breaks("all that a table can hold", |driver| chain(driver, u16::MAX.into()));
    for_each(|specimen| {
        let mut driver = started(specimen);
        let (descriptors, head) = chain(&mut driver, MAX_CHAIN_SEGMENTS);
        kick_with(specimen, &mut driver, &descriptors, head);
        assert!(!driver.needs_reset());
        assert!(driver.used(specimen.queue()).is_some());
    });
}

#[test]
fn an_available_index_that_jumps_breaks_the_ring() {
    for jump in [65, 0x7fff, 0x8000, u16::MAX] {
        for_each(|specimen| {
            let mut driver = started(specimen);
            driver.set_available_index(specimen.queue(), jump);
            driver.kick(specimen.queue());
            assert!(driver.needs_reset(), "{jump} entries of 64");
            assert_recovers(specimen, &mut driver);
        });
    }
}

#[test]
fn buffers_of_any_address_and_length_stop_no_device() {
    let buffers = [
        (RAM_BASE, 0),
        (RAM_END, 0),
        (RAM_END, 1),
        (RAM_END - 1, 2),
        (0, 64),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 15, 16),
        (RAM_BASE, u32::MAX),
        (RAM_BASE - 1, 64),
        (RAM_END - 64, u32::MAX),
    ];
    for (address, len) in buffers {
        for_each(|specimen| {
            println!("{len:#x} bytes at {address:#x}");
            let mut driver = started(specimen);
            let read = Buffer::At { address, len, write: false };
            let write = Buffer::At { address, len, write: true };
            let (small, room) = (Buffer::Read(vec![0; 16]), Buffer::Write(64));
            let chains = [
                vec![read.clone()],
                vec![write.clone()],
                vec![read.clone(), room.clone()],
                vec![small.clone(), write.clone()],
                vec![small.clone(), read.clone(), room.clone()],
                vec![small.clone(), write.clone(), room.clone()],
            ];
            for buffers in chains {
                driver.submit(specimen.queue(), &buffers);
                driver.kick(specimen.queue());
            }
            assert_recovers(specimen, &mut driver);
        });
    }
}
