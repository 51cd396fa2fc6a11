//! The guest's side of a virtio device, as a type: what a driver does, right or wrong, in a few
//! lines. For tests and fuzz targets; it goes through the same registers and eventfds as a guest.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]
#![allow(missing_docs)] // the names are the specification's

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};

use super::{Transport, VirtioDevice};
use crate::{GuestMemory, MmioDevice};

/// Where the test machine's RAM begins.
pub const RAM_BASE: u64 = 0x8000_0000;
/// Size of the test machine's RAM.
pub const RAM_BYTES: usize = 8 << 20;
/// How long a device may take for an answer.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long to wait for events at a time, in milliseconds.
const TURN_MS: i32 = 100;

/// Register offsets that tests use.
pub mod reg {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const CONFIG: u64 = 0x100;
}

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

pub const DESC_NEXT: u16 = 1;
pub const DESC_WRITE: u16 = 2;
pub const DESC_INDIRECT: u16 = 4;

/// A part of a request.
#[derive(Debug, Clone)]
pub enum Buffer {
    /// Bytes for the device to read.
    Read(Vec<u8>),
    /// Room for the device to write, in bytes.
    Write(u32),
    /// Whatever address and length, device-writable if the flag is set.
    At { address: u64, len: u32, write: bool },
}

/// One ring as the driver sees it.
#[derive(Debug, Clone)]
pub struct Ring {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    next_desc: u16,
    next_avail: u16,
    next_used: u16,
}

/// A chain that the device gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub head: u32,
    pub len: u32,
}

/// A test machine with one device and RAM, and its driver.
pub struct TestDriver {
    pub memory: Arc<GuestMemory>,
    pub transport: Arc<Transport>,
    pub rings: Vec<Ring>,
    events: EventManager<Arc<Transport>>,
    next_free: u64,
}

impl TestDriver {
    /// A machine whose driver has not touched the device yet.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let ranges = [(GuestAddress(RAM_BASE), RAM_BYTES)];
        Self::with_memory(device, Arc::new(GuestMemory::from_ranges(&ranges).unwrap()))
    }

    /// The same in `memory`, which holds RAM at [`RAM_BASE`].
    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Self {
        let transport = Arc::new(Transport::new(device, memory.clone()).unwrap());
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(transport.clone());
        Self { memory, transport, rings: Vec::new(), events, next_free: RAM_BASE }
    }

    /// A machine whose driver has negotiated everything offered and runs.
    pub fn started(device: Box<dyn VirtioDevice>) -> Self {
        let mut driver = Self::new(device);
        driver.start();
        driver
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// `len` bytes of configuration space.
    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.transport.read(reg::CONFIG + offset, &mut data);
        data
    }

    pub fn offered_features(&self) -> u64 {
        let half = |select| {
            self.write(reg::DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Resets the device and accepts `features`. True if the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(reg::STATUS, 0);
        self.write(reg::STATUS, ACKNOWLEDGE);
        self.write(reg::STATUS, ACKNOWLEDGE | DRIVER);
        for select in [0, 1] {
            self.write(reg::DRIVER_FEATURES_SEL, select);
            self.write(reg::DRIVER_FEATURES, (features >> (32 * select)) as u32);
        }
        self.write(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.read(reg::STATUS) & FEATURES_OK != 0
    }

    /// Puts rings of `size` (at most what the device offers) into fresh memory, zeroed even if
    /// it was given back before.
    pub fn set_up_rings(&mut self, size: u16) {
        self.rings.clear();
        for index in 0.. {
            self.write(reg::QUEUE_SEL, index);
            let max = self.read(reg::QUEUE_NUM_MAX) as u16;
            if max == 0 {
                return;
            }
            let size = size.min(max);
            let entries = u64::from(size);
            let ring = Ring {
                size,
                desc: self.allocate_zeroed(16 * entries),
                avail: self.allocate_zeroed(6 + 2 * entries),
                used: self.allocate_zeroed(6 + 8 * entries),
                next_desc: 0,
                next_avail: 0,
                next_used: 0,
            };
            self.write(reg::QUEUE_NUM, size.into());
            for (register, address) in [
                (reg::QUEUE_DESC_LOW, ring.desc),
                (reg::QUEUE_DRIVER_LOW, ring.avail),
                (reg::QUEUE_DEVICE_LOW, ring.used),
            ] {
                self.write(register, address as u32);
                self.write(register + 4, (address >> 32) as u32);
            }
            self.write(reg::QUEUE_READY, 1);
            self.rings.push(ring);
        }
    }

    /// Everything a well-behaved driver does before its first request.
    pub fn start(&mut self) {
        let features = self.offered_features();
        self.start_with(features, 64);
    }

    pub fn start_with(&mut self, features: u64, ring_size: u16) {
        assert!(self.negotiate(features), "the device refused features {features:#x}");
        self.set_up_rings(ring_size);
        self.write(reg::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Fresh zeroed memory, aligned to 16 bytes. Never given back: tests are short.
    pub fn allocate(&mut self, len: u64) -> u64 {
        let address = self.next_free;
        self.next_free += len.next_multiple_of(16);
        assert!(self.next_free <= RAM_BASE + RAM_BYTES as u64, "the test machine is out of RAM");
        address
    }

    /// Gives back what was allocated since [`Self::allocate`] returned `mark`, for tests with
    /// more requests than memory. It is not zeroed again.
    pub fn give_back_from(&mut self, mark: u64) {
        self.next_free = mark;
    }

    fn allocate_zeroed(&mut self, len: u64) -> u64 {
        let address = self.allocate(len);
        self.memory.write_slice(&vec![0; len as usize], GuestAddress(address)).unwrap();
        address
    }

    fn place(&mut self, buffer: &Buffer) -> (u64, u32, u16) {
        match buffer {
            Buffer::Read(bytes) => {
                let address = self.allocate(bytes.len() as u64);
                self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
                (address, bytes.len() as u32, 0)
            }
            Buffer::Write(len) => (self.allocate((*len).into()), *len, DESC_WRITE),
            Buffer::At { address, len, write } => {
                (*address, *len, if *write { DESC_WRITE } else { 0 })
            }
        }
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        (address, len, flags): (u64, u32, u16),
        next: u16,
    ) {
        let at = GuestAddress(table + 16 * u64::from(index));
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, at).unwrap();
    }

    /// Places `buffers` as one chain and makes it available. The addresses come back in order.
    pub fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> (u16, Vec<u64>) {
        let placed: Vec<_> = buffers.iter().map(|buffer| self.place(buffer)).collect();
        let head = self.rings[queue].next_desc % self.rings[queue].size;
        let (size, table) = (self.rings[queue].size, self.rings[queue].desc);
        for (count, (address, len, flags)) in placed.iter().enumerate() {
            let index = (head + count as u16) % size;
            let more = count + 1 < placed.len();
            let flags = flags | if more { DESC_NEXT } else { 0 };
            self.write_descriptor(table, index, (*address, *len, flags), (index + 1) % size);
        }
        self.rings[queue].next_desc = (head + placed.len() as u16) % size;
        self.make_available(queue, head);
        (head, placed.into_iter().map(|(address, ..)| address).collect())
    }

    /// The same with an indirect table (section 2.7.5.3).
    pub fn submit_indirect(&mut self, queue: usize, buffers: &[Buffer]) -> (u16, Vec<u64>) {
        let placed: Vec<_> = buffers.iter().map(|buffer| self.place(buffer)).collect();
        let table = self.allocate(16 * placed.len() as u64);
        for (index, (address, len, flags)) in placed.iter().enumerate() {
            let more = index + 1 < placed.len();
            let flags = flags | if more { DESC_NEXT } else { 0 };
            self.write_descriptor(table, index as u16, (*address, *len, flags), index as u16 + 1);
        }
        let (size, descriptors) = (self.rings[queue].size, self.rings[queue].desc);
        let head = self.rings[queue].next_desc % size;
        let len = 16 * placed.len() as u32;
        self.write_descriptor(descriptors, head, (table, len, DESC_INDIRECT), 0);
        self.rings[queue].next_desc = (head + 1) % size;
        self.make_available(queue, head);
        (head, placed.into_iter().map(|(address, ..)| address).collect())
    }

    /// Adds `head` to the available ring.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let entry = ring.avail + 4 + 2 * u64::from(ring.next_avail % ring.size);
        self.memory.write_obj(head.to_le(), GuestAddress(entry)).unwrap();
        ring.next_avail = ring.next_avail.wrapping_add(1);
        let index = ring.next_avail;
        self.set_available_index(queue, index);
    }

    /// Writes the available index, right or wrong.
    pub fn set_available_index(&self, queue: usize, index: u16) {
        let address = GuestAddress(self.rings[queue].avail + 2);
        self.memory.write_obj(index.to_le(), address).unwrap();
    }

    /// Kicks `queue` and lets the device work until it waits again.
    pub fn kick(&mut self, queue: usize) {
        self.write(reg::QUEUE_NOTIFY, queue as u32);
        self.run();
    }

    /// Lets the device work on whatever is ready, until it waits. The bound catches a device
    /// that spins.
    pub fn run(&mut self) {
        assert!(self.run_at_most(100_000), "the device spins: it always has something to do");
    }

    /// Lets the device work for so many turns of its event loop. True if it waits after them.
    pub fn run_at_most(&mut self, turns: usize) -> bool {
        (0..turns).any(|_| self.events.run_with_timeout(0).unwrap() == 0)
    }

    /// The next chain given back on `queue`.
    pub fn used(&mut self, queue: usize) -> Option<Used> {
        let ring = &mut self.rings[queue];
        let index: u16 = self.memory.read_obj(GuestAddress(ring.used + 2)).unwrap();
        if u16::from_le(index) == ring.next_used {
            return None;
        }
        let entry = ring.used + 4 + 8 * u64::from(ring.next_used % ring.size);
        ring.next_used = ring.next_used.wrapping_add(1);
        // An honest driver always wants to hear of the next one (used_event).
        let used_event = GuestAddress(ring.avail + 4 + 2 * u64::from(ring.size));
        self.memory.write_obj(ring.next_used.to_le(), used_event).unwrap();
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        Some(Used { head: u32::from_le(head), len: u32::from_le(len) })
    }

    /// The same, from a device that may need to wait for its host.
    pub fn answer(&mut self, queue: usize) -> Option<Used> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let used = self.used(queue);
            if used.is_some() || Instant::now() > deadline {
                return used;
            }
            self.events.run_with_timeout(TURN_MS).unwrap();
        }
    }

    /// Bytes of guest memory.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Whether the interrupt was raised since this was last asked; acknowledges it.
    pub fn take_interrupt(&self) -> bool {
        let raised = self.transport.interrupt_fd().read().is_ok();
        let status = self.read(reg::INTERRUPT_STATUS);
        self.write(reg::INTERRUPT_ACK, status);
        raised
    }

    pub fn needs_reset(&self) -> bool {
        self.read(reg::STATUS) & NEEDS_RESET != 0
    }
}
