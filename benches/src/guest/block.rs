//! Load on a disk, past the page cache of the guest.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use rustix::fs::OFlags;
use rustix::io::{preadv, pwritev};
use rustix::mm::{Advice, madvise};
use serde::{Deserialize, Serialize};

use super::{Transfer, xorshift};

/// Memory of a request begins at a multiple of this and lies, where the kernel has huge pages, in
/// one: whether its pages happen to be neighbours would otherwise decide how many segments a
/// request has.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What a piece has, and what lies between it and the next one. O_DIRECT wants memory and offsets
/// that are aligned to the disk's blocks.
const PIECE_BYTES: usize = 4096;
/// Linux has huge pages off in guests of less than 512 MiB.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const IN_FLIGHT_MAX: u32 = 256;
/// What is written: never zeroes, which some layer might treat specially.
const PATTERN: u8 = 0xa5;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the requests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Operation {
    /// Read the disk.
    Read,
    /// Write it.
    Write,
}

/// Where the requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Order {
    /// One after the other, from the start again after the end.
    Sequential,
    /// Anywhere; the same places each time.
    Random,
}

/// Requests of one size.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BlockLoad {
    /// The disk
    pub device: PathBuf,
    /// What to do
    #[arg(long)]
    pub operation: Operation,
    /// Where
    #[arg(long)]
    pub order: Order,
    /// The size of a request
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub block_bytes: u32,
    /// How many requests are on their way at the same time
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(IN_FLIGHT_MAX)))]
    pub in_flight: u32,
    /// How many requests in all
    #[arg(long)]
    pub count: u64,
    /// Whether each page of a request lies apart from the others, as in an ordinary program
    #[arg(long)]
    pub scattered: bool,
}

impl BlockLoad {
    /// The words that make a guest run this.
    pub fn words(&self) -> Vec<String> {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        let mut words = vec![
            "block".into(),
            self.device.display().to_string(),
            format!("--operation={}", name(self.operation.to_possible_value())),
            format!("--order={}", name(self.order.to_possible_value())),
            format!("--block-bytes={}", self.block_bytes),
            format!("--in-flight={}", self.in_flight),
            format!("--count={}", self.count),
        ];
        words.extend(self.scattered.then(|| "--scattered".into()));
        words
    }

    /// Does it.
    ///
    /// # Errors
    /// The disk cannot be opened, is smaller than a block, or a request fails.
    pub fn run(&self) -> Result<Transfer> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(self.operation == Operation::Write)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(&self.device)
            .with_context(|| format!("cannot open the disk {}", self.device.display()))?;
        let disk_bytes = file.seek(SeekFrom::End(0)).context("cannot tell the disk's size")?;
        let mut offsets = Offsets::new(self, disk_bytes)?;
        if self.scattered && self.in_flight != 1 {
            bail!("scattered requests are made one at a time");
        }
        // Refused by a kernel without them.
        let _ = std::fs::write(HUGE_PAGES, "madvise");
        let mut buffers: Vec<Buffer> =
            (0..self.in_flight).map(|_| Buffer::new(self.block_bytes)).collect();
        let start = Instant::now();
        let done = match buffers.as_mut_slice() {
            [buffer] if self.scattered => self.in_pieces(&file, buffer, &mut offsets),
            [buffer] => self.one_by_one(&file, buffer, &mut offsets),
            buffers => self.overlapping(&file, buffers, &mut offsets),
        };
        done.with_context(|| format!("the disk {} failed", self.device.display()))?;
        Ok(Transfer::since(start, self.count * u64::from(self.block_bytes), self.count))
    }

    fn one_by_one(&self, file: &File, buffer: &mut Buffer, offsets: &mut Offsets) -> Result<()> {
        for _ in 0..self.count {
            let offset = offsets.next();
            match self.operation {
                Operation::Read => file.read_exact_at(buffer.bytes_mut(), offset)?,
                Operation::Write => file.write_all_at(buffer.bytes_mut(), offset)?,
            }
        }
        Ok(())
    }

    fn in_pieces(&self, file: &File, buffer: &mut Buffer, offsets: &mut Offsets) -> Result<()> {
        for _ in 0..self.count {
            let offset = offsets.next();
            let count = match self.operation {
                Operation::Read => preadv(file, &mut buffer.pieces_mut(), offset)?,
                Operation::Write => pwritev(file, &buffer.pieces(), offset)?,
            };
            if u32::try_from(count) != Ok(self.block_bytes) {
                bail!("{count} of {} bytes were moved", self.block_bytes);
            }
        }
        Ok(())
    }

    fn overlapping(
        &self,
        file: &File,
        buffers: &mut [Buffer],
        offsets: &mut Offsets,
    ) -> Result<()> {
        let mut ring = IoUring::new(self.in_flight).context("cannot make an io_uring")?;
        let mut free: Vec<usize> = (0..buffers.len()).collect();
        let (mut submitted, mut completed) = (0, 0);
        while completed < self.count {
            while submitted < self.count
                && let Some(slot) = free.pop()
            {
                let entry = self.entry(file, &mut buffers[slot], offsets.next(), slot);
                // SAFETY: the buffer outlives this function, is used by no other request while its
                // slot is not free, and `file` stays open. The function does not return before
                // each request has come back: on errors the process ends.
                if unsafe { ring.submission().push(&entry) }.is_err() {
                    die("the submission queue is full");
                }
                submitted += 1;
            }
            if let Err(error) = ring.submit_and_wait(1) {
                die(&format!("cannot submit requests: {error}"));
            }
            for completion in ring.completion() {
                let (result, slot) = (completion.result(), completion.user_data());
                if u32::try_from(result) != Ok(self.block_bytes) {
                    die(&format!("a request came back with {result}"));
                }
                completed += 1;
                // It is an index of `buffers`, as `entry` was given it.
                free.extend(usize::try_from(slot));
            }
        }
        Ok(())
    }

    fn entry(&self, file: &File, buffer: &mut Buffer, offset: u64, slot: usize) -> Entry {
        let descriptor = types::Fd(file.as_raw_fd());
        let memory = buffer.bytes_mut().as_mut_ptr();
        let entry = match self.operation {
            Operation::Read => {
                opcode::Read::new(descriptor, memory, self.block_bytes).offset(offset).build()
            }
            Operation::Write => {
                opcode::Write::new(descriptor, memory, self.block_bytes).offset(offset).build()
            }
        };
        entry.user_data(slot as u64)
    }
}

/// Ends the process, because returning would free buffers that the kernel may still write to.
fn die(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(1);
}

/// Where the next request goes.
struct Offsets {
    order: Order,
    block_bytes: u64,
    block_count: u64,
    /// The next block, or the state of the generator.
    state: u64,
}

impl Offsets {
    fn new(load: &BlockLoad, disk_bytes: u64) -> Result<Self> {
        let block_bytes = u64::from(load.block_bytes);
        let block_count = disk_bytes / block_bytes;
        if block_count == 0 {
            bail!("a disk of {disk_bytes} bytes has no block of {block_bytes} bytes");
        }
        let state = if load.order == Order::Random { SEED } else { 0 };
        Ok(Self { order: load.order, block_bytes, block_count, state })
    }

    fn next(&mut self) -> u64 {
        let block = match self.order {
            Order::Sequential => {
                let block = self.state;
                self.state = (block + 1) % self.block_count;
                block
            }
            Order::Random => xorshift(&mut self.state) % self.block_count,
        };
        block * self.block_bytes
    }
}

/// Memory for a request, and as much again for the gaps of a scattered one.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    fn new(block_bytes: u32) -> Self {
        let length = block_bytes as usize;
        let used_bytes = 2 * length.max(PIECE_BYTES);
        let mut memory: Vec<u8> = Vec::with_capacity(used_bytes + 2 * HUGE_PAGE_BYTES);
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        let huge = memory.spare_capacity_mut().get_mut(start..).unwrap_or_default();
        // SAFETY: the range lies in memory that is ours, and the advice changes no content.
        // A kernel without huge pages refuses it, and pages lie where they lie.
        let _ =
            unsafe { madvise(huge.as_mut_ptr().cast(), HUGE_PAGE_BYTES, Advice::LinuxHugepage) };
        memory.resize(start + used_bytes, PATTERN);
        Self { memory, start, length }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }

    fn pieces(&self) -> Vec<IoSlice<'_>> {
        let pieces = self.memory[self.start..].chunks(PIECE_BYTES).step_by(2);
        pieces.take(self.length.div_ceil(PIECE_BYTES)).map(IoSlice::new).collect()
    }

    fn pieces_mut(&mut self) -> Vec<IoSliceMut<'_>> {
        let pieces = self.memory[self.start..].chunks_mut(PIECE_BYTES).step_by(2);
        pieces.take(self.length.div_ceil(PIECE_BYTES)).map(IoSliceMut::new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(order: Order, operation: Operation, in_flight: u32) -> BlockLoad {
        let device = PathBuf::from("/dev/vda");
        let scattered = false;
        BlockLoad { device, operation, order, block_bytes: 4096, in_flight, count: 64, scattered }
    }

    #[test]
    fn sequential_offsets_start_over_at_the_end() {
        let load = load(Order::Sequential, Operation::Read, 1);
        let mut offsets = Offsets::new(&load, 3 * 4096 + 100).unwrap();
        let seen: Vec<u64> = (0..4).map(|_| offsets.next()).collect();
        assert_eq!(seen, [0, 4096, 8192, 0]);
    }

    #[test]
    fn random_offsets_are_blocks_of_the_disk_and_the_same_each_time() {
        let load = load(Order::Random, Operation::Read, 1);
        let disk_bytes = 1000 * 4096;
        let draw = || {
            let mut offsets = Offsets::new(&load, disk_bytes).unwrap();
            (0..500).map(|_| offsets.next()).collect::<Vec<u64>>()
        };
        let seen = draw();
        assert_eq!(seen, draw());
        assert!(seen.iter().all(|offset| offset % 4096 == 0 && *offset < disk_bytes));
        let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
        assert!(distinct.len() > 300, "{} distinct offsets", distinct.len());
    }

    #[test]
    fn a_disk_without_a_block_is_refused() {
        assert!(Offsets::new(&load(Order::Random, Operation::Read, 1), 100).is_err());
    }

    #[test]
    fn buffers_are_aligned() {
        let mut buffer = Buffer::new(5000);
        assert_eq!(buffer.bytes_mut().as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        assert_eq!(buffer.bytes_mut().len(), 5000);
    }

    #[test]
    fn scattered_pieces_have_gaps_and_make_up_the_request() {
        let mut buffer = Buffer::new(4 * 4096);
        let start = buffer.bytes_mut().as_ptr();
        let pieces = buffer.pieces_mut();
        let places: Vec<usize> =
            pieces.iter().map(|piece| piece.as_ptr() as usize - start as usize).collect();
        assert_eq!(places, [0, 2 * 4096, 4 * 4096, 6 * 4096]);
        assert_eq!(pieces.iter().map(|piece| piece.len()).sum::<usize>(), 4 * 4096);
        assert_eq!(buffer.pieces().len(), 4);
    }

    #[test]
    fn every_scattered_request_reaches_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![0; 64 * 4096]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let load = load(Order::Sequential, Operation::Write, 1);
        let load = BlockLoad { block_bytes: 4 * 4096, count: 16, ..load };
        let mut offsets = Offsets::new(&load, 64 * 4096).unwrap();
        load.in_pieces(&file, &mut Buffer::new(4 * 4096), &mut offsets).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == PATTERN));
    }

    #[test]
    fn every_request_reaches_the_disk_one_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![0; 64 * 4096]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let load = load(Order::Sequential, Operation::Write, 1);
        let mut offsets = Offsets::new(&load, 64 * 4096).unwrap();
        load.one_by_one(&file, &mut Buffer::new(4096), &mut offsets).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == PATTERN));
    }

    #[test]
    fn every_request_reaches_the_disk_when_they_overlap() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![0; 64 * 4096]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let load = load(Order::Sequential, Operation::Write, 16);
        if let Err(error) = IoUring::new(1) {
            eprintln!("skipped: this kernel has no io_uring for us: {error}");
            return;
        }
        let mut offsets = Offsets::new(&load, 64 * 4096).unwrap();
        let mut buffers: Vec<Buffer> = (0..16).map(|_| Buffer::new(4096)).collect();
        load.overlapping(&file, &mut buffers, &mut offsets).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == PATTERN));
    }
}
