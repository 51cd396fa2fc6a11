//! A guest as a list of actions: what a driver, right or wrong, can do to a virtio device.

use arbitrary::Arbitrary;
use rotifer_devices::MmioDevice;
use rotifer_devices::virtio::MMIO_REGION_BYTES;
use rotifer_devices::virtio::test_driver::{
    Buffer, DESC_INDIRECT, RAM_BASE, RAM_BYTES, TestDriver, reg,
};
use vm_memory::{Bytes, GuestAddress};

/// Actions taken of one input: enough for any story, few enough to shrink.
const ACTIONS_MAX: usize = 64;
/// Buffers of one chain.
const BUFFERS_MAX: usize = 12;
/// Bytes of one buffer that the driver places.
const BUFFER_BYTES_MAX: usize = 16 << 10;
/// Turns of the event loop after an action. A ring that a driver laid over its own buffers can
/// feed itself for as long as it likes, one bounded turn at a time.
const TURNS: usize = 20;
/// Turns in which a device that was reset must come to rest.
const TURNS_TO_REST: usize = 1000;
/// No more buffers are placed beyond this.
const PLACED_BYTES_MAX: u64 = RAM_BYTES as u64 / 2;

/// A number that tends to be at the edge of something.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Number {
    /// Anything.
    Any(u64),
    /// Sizes, counts, indexes.
    Small(u8),
    /// An address in RAM, near its beginning, where rings lie.
    Ram(u16),
    /// The same, aligned as a ring.
    Aligned(u16),
    /// Around the end of RAM.
    RamEnd(i8),
    /// From the end of all numbers.
    Last(u8),
    /// One bit.
    Bit(u8),
}

impl Number {
    /// Its value.
    pub fn get(self) -> u64 {
        match self {
            Self::Any(value) => value,
            Self::Small(value) => value.into(),
            Self::Ram(offset) => RAM_BASE + u64::from(offset),
            Self::Aligned(offset) => RAM_BASE + 16 * u64::from(offset),
            Self::RamEnd(offset) => {
                (RAM_BASE + RAM_BYTES as u64).wrapping_add_signed(offset.into())
            }
            Self::Last(value) => u64::MAX - u64::from(value),
            Self::Bit(bit) => 1 << (bit % 64),
        }
    }
}

/// A part of a chain.
#[derive(Debug, Clone, Arbitrary)]
pub enum Part {
    /// Bytes for the device.
    Read(Vec<u8>),
    /// Room for the device.
    Write(u16),
    /// Whatever address and length.
    At(Number, Number, bool),
}

/// A descriptor, as the driver writes it.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Descriptor {
    address: Number,
    len: Number,
    flags: u8,
    next: u16,
}

/// What a guest does next.
#[derive(Debug, Clone, Arbitrary)]
pub enum Action {
    /// Reads so many bytes (1, 2, 4 or 8) of the register window.
    Read { offset: u16, width: u8 },
    /// Writes so many bytes of the register window.
    Write { offset: u16, width: u8, value: Number },
    /// Writes a register.
    Register { index: u8, value: Number },
    /// Writes to memory.
    Memory { at: Number, bytes: [u8; 8] },
    /// Everything up to DRIVER_OK, with these features masked out.
    Start { without: Number, ring_size: u8 },
    /// A request as a driver would place it.
    Submit { queue: u8, parts: Vec<Part>, indirect: bool },
    /// Descriptors in the queue's table, and one of them made available.
    Chain { queue: u8, descriptors: Vec<Descriptor>, indirect: bool, head: u16 },
    /// Moves the available index.
    Available { queue: u8, index: u16 },
    /// Kicks, and lets the device work.
    Kick { queue: u8 },
    /// Reads a used entry.
    Used { queue: u8 },
    /// The machine is paused, saved, and goes on.
    Save,
    /// Resets the device.
    Reset,
}

/// Lets `driver` act. The device must survive all of it.
pub fn play(driver: &mut TestDriver, actions: &[Action]) {
    for action in actions.iter().take(ACTIONS_MAX) {
        act(driver, action);
    }
}

/// Whatever was done to it: a reset brings the device to rest, and it starts again.
pub fn assert_recovers(driver: &mut TestDriver) {
    driver.write(reg::STATUS, 0);
    assert!(driver.run_at_most(TURNS_TO_REST), "a device that was reset finds work");
    driver.give_back_from(RAM_BASE);
    driver.start();
    assert!(driver.run_at_most(TURNS_TO_REST), "a device without requests finds work");
    assert!(!driver.needs_reset(), "a reset does not heal");
}

/// One action.
pub fn act(driver: &mut TestDriver, action: &Action) {
    let rings = driver.rings.len().max(1);
    let ring = |queue: u8| usize::from(queue) % rings;
    match action {
        Action::Read { offset, width } => {
            let mut data = [0; 8];
            let offset = u64::from(*offset) % (2 * MMIO_REGION_BYTES);
            driver.transport.read(offset, &mut data[..1 << (width % 4)]);
        }
        Action::Write { offset, width, value } => {
            let offset = u64::from(*offset) % (2 * MMIO_REGION_BYTES);
            driver.transport.write(offset, &value.get().to_le_bytes()[..1 << (width % 4)]);
        }
        Action::Register { index, value } => {
            driver.write(4 * u64::from(index % 64), value.get() as u32);
        }
        Action::Memory { at, bytes } => {
            // Outside of RAM a guest meets other devices, not this one.
            let _ = driver.memory.write_slice(bytes, GuestAddress(at.get()));
        }
        Action::Start { without, ring_size } => {
            let version_1 = 1 << 32;
            let features = driver.offered_features() & !without.get() | version_1;
            if may_place(driver) {
                driver.start_with(features, 1 << (ring_size % 9));
            }
        }
        Action::Submit { queue, parts, indirect } => {
            if !driver.rings.is_empty() && may_place(driver) {
                submit(driver, ring(*queue), parts, *indirect);
            }
        }
        Action::Chain { queue, descriptors, indirect, head } => {
            if !driver.rings.is_empty() && may_place(driver) {
                let descriptors = &descriptors[..descriptors.len().min(BUFFERS_MAX)];
                chain(driver, ring(*queue), descriptors, *indirect);
                driver.make_available(ring(*queue), *head);
            }
        }
        Action::Available { queue, index } => {
            if !driver.rings.is_empty() {
                driver.set_available_index(ring(*queue), *index);
            }
        }
        Action::Kick { queue } => driver.write(reg::QUEUE_NOTIFY, (*queue).into()),
        Action::Used { queue } => {
            if !driver.rings.is_empty() {
                driver.used(ring(*queue));
            }
        }
        Action::Save => {
            driver.transport.drain();
            let state = driver.transport.save();
            assert!(driver.transport.save() == state, "saving changes nothing");
        }
        Action::Reset => driver.write(reg::STATUS, 0),
    }
    driver.run_at_most(TURNS);
}

/// Whether there is memory for more buffers.
pub fn may_place(driver: &mut TestDriver) -> bool {
    driver.allocate(0) - RAM_BASE < PLACED_BYTES_MAX
}

fn submit(driver: &mut TestDriver, queue: usize, parts: &[Part], indirect: bool) {
    let buffers: Vec<_> = parts
        .iter()
        .take(BUFFERS_MAX)
        .map(|part| match part {
            Part::Read(bytes) => Buffer::Read(bytes[..bytes.len().min(BUFFER_BYTES_MAX)].to_vec()),
            Part::Write(len) => Buffer::Write(u32::from(*len) % BUFFER_BYTES_MAX as u32),
            Part::At(address, len, write) => {
                Buffer::At { address: address.get(), len: len.get() as u32, write: *write }
            }
        })
        .collect();
    if indirect {
        driver.submit_indirect(queue, &buffers);
    } else {
        driver.submit(queue, &buffers);
    }
    driver.write(reg::QUEUE_NOTIFY, queue as u32);
}

/// Writes `descriptors` to the queue's table, or to one that its first descriptor refers to.
fn chain(driver: &mut TestDriver, queue: usize, descriptors: &[Descriptor], indirect: bool) {
    let ring = driver.rings[queue].desc;
    let len = 16 * descriptors.len() as u64;
    let table = if indirect { driver.allocate(len) } else { ring };
    for (index, descriptor) in descriptors.iter().enumerate() {
        let Descriptor { address, len, flags, next } = *descriptor;
        let fields = (address.get(), len.get() as u32, u16::from(flags));
        driver.write_descriptor(table, index as u16, fields, next);
    }
    if indirect {
        driver.write_descriptor(ring, 0, (table, len as u32, DESC_INDIRECT), 0);
    }
}
