//! A driver that does anything at all, from fixed seeds. The fuzz targets go further.

use vm_memory::{Bytes, GuestAddress};

use super::{assert_recovers, for_each, started};
use crate::MmioDevice;
use crate::virtio::MMIO_REGION_BYTES;
use crate::virtio::test_driver::{Buffer, RAM_BASE, RAM_BYTES, TestDriver, reg};

const SEEDS: u64 = 60;
const STEPS: usize = 400;
/// Rings and small buffers lie here, so this is where scribbling hurts.
const SCRIBBLED_BYTES: u64 = 64 << 10;
/// Turns of the event loop per kick. A ring that a driver laid over its own buffers can feed
/// itself for as long as it likes, one bounded turn at a time.
const TURNS: usize = 50;

/// xorshift64*: good enough to be nasty, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Numbers that tend to be at the edge of something.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => self.next(),
            1 => self.below(70),
            2 => RAM_BASE + self.below(SCRIBBLED_BYTES) / 16 * 16,
            3 => RAM_BASE + RAM_BYTES as u64 - self.below(32),
            4 => u64::MAX - self.below(4),
            _ => 1 << self.below(64),
        }
    }
}

fn step(driver: &mut TestDriver, dice: &mut Dice, queue: usize) {
    let bytes = dice.number().to_le_bytes();
    match dice.below(8) {
        0 => {
            let width = 1 << dice.below(4);
            driver.transport.write(dice.below(MMIO_REGION_BYTES + 8), &bytes[..width]);
        }
        1 | 2 => driver.write(4 * dice.below(0x40), dice.number() as u32),
        3 => {
            let mut data = [0; 8];
            let width = 1 << dice.below(4);
            driver.transport.read(dice.below(MMIO_REGION_BYTES + 8), &mut data[..width]);
        }
        4 | 5 => {
            let at = RAM_BASE + dice.below(SCRIBBLED_BYTES);
            let count = 1 + dice.below(8) as usize;
            driver.memory.write_slice(&bytes[..count], GuestAddress(at)).unwrap();
        }
        6 if driver.allocate(0) < RAM_BASE + RAM_BYTES as u64 / 2 => {
            let (address, len) = (dice.number(), dice.number() as u32);
            let write = dice.below(2) == 0;
            let buffers = [
                Buffer::Read(bytes.repeat(2)),
                Buffer::At { address, len, write },
                Buffer::Write(1),
            ];
            driver.submit(queue, &buffers);
        }
        _ => driver.write(reg::QUEUE_NOTIFY, dice.below(4) as u32),
    }
    driver.run_at_most(TURNS);
}

#[test]
fn a_driver_that_rolls_dice_stops_no_device() {
    for_each(|specimen| {
        for seed in 1..=SEEDS {
            println!("seed {seed}");
            let mut dice = Dice(seed);
            let mut driver = started(specimen);
            for _ in 0..STEPS {
                step(&mut driver, &mut dice, specimen.queue());
            }
            driver.transport.drain();
            driver.transport.save();
            driver.write(reg::STATUS, 0);
            driver.run();
            assert_recovers(specimen, &mut driver);
        }
    });
}
