//! Benchmark: a guest's disk, a file on the host's tmpfs, past the guest's page cache.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bench::{Rounds, Setup, Subject};
use crate::guest::{self, BlockLoad, Operation, Order, Transfer};
use crate::record::{Metric, Recorder};
use crate::vm::{Machine, Vm};

const ROUNDS: Rounds = Rounds { warm_up: 1, full: 5, counted: 3, quick: 2 };

const SYNC_DEVICE: &str = "/dev/vda";
const ASYNC_DEVICE: &str = "/dev/vdb";
const DISK_BYTES: u64 = 64 << 20;
const SEQUENTIAL_BYTES: u32 = 128 << 10;
const RANDOM_BYTES: u32 = 4 << 10;
/// The disk once.
const SEQUENTIAL_REQUESTS: u64 = DISK_BYTES / SEQUENTIAL_BYTES as u64;
const RANDOM_REQUESTS: u64 = 4096;
const MANY_IN_FLIGHT: u32 = 16;
const QUICK_DIVISOR: u64 = 8;

/// One row of the table.
struct Case {
    metric: Metric,
    device: &'static str,
    operation: Operation,
    order: Order,
    in_flight: u32,
    scattered: bool,
}

const CASES: [Case; 13] = [
    sequential("sequential read, 128 KiB", Operation::Read, false),
    sequential("sequential write, 128 KiB", Operation::Write, false),
    sequential("sequential read, 128 KiB of scattered pages", Operation::Read, true),
    sequential("sequential write, 128 KiB of scattered pages", Operation::Write, true),
    random("random read, 4 KiB, 1 in flight", Operation::Read, 1),
    random("random write, 4 KiB, 1 in flight", Operation::Write, 1),
    random("random read, 4 KiB, 16 in flight", Operation::Read, MANY_IN_FLIGHT),
    random("random write, 4 KiB, 16 in flight", Operation::Write, MANY_IN_FLIGHT),
    sequential("Async: sequential read, 128 KiB", Operation::Read, false).through_io_uring(),
    random("Async: random read, 4 KiB, 1 in flight", Operation::Read, 1).through_io_uring(),
    random("Async: random write, 4 KiB, 1 in flight", Operation::Write, 1).through_io_uring(),
    random("Async: random read, 4 KiB, 16 in flight", Operation::Read, MANY_IN_FLIGHT)
        .through_io_uring(),
    random("Async: random write, 4 KiB, 16 in flight", Operation::Write, MANY_IN_FLIGHT)
        .through_io_uring(),
];

const fn sequential(name: &'static str, operation: Operation, scattered: bool) -> Case {
    let metric = Metric::higher(name, "MiB/s");
    let device = SYNC_DEVICE;
    Case { metric, device, operation, order: Order::Sequential, in_flight: 1, scattered }
}

const fn random(name: &'static str, operation: Operation, in_flight: u32) -> Case {
    let metric = Metric::higher(name, "IOPS");
    let device = SYNC_DEVICE;
    Case { metric, device, operation, order: Order::Random, in_flight, scattered: false }
}

/// Runs it.
///
/// # Errors
/// A machine or a load failed.
pub fn run(setup: &Setup) -> Result<Recorder> {
    let disks = [make_disk(setup.scratch(), "disk")?, make_disk(setup.scratch(), "async-disk")?];
    setup.rounds(ROUNDS, |subject, recorder| round(setup, &disks, subject, recorder))
}

fn round(
    setup: &Setup,
    [disk, async_disk]: &[PathBuf; 2],
    subject: &Subject,
    recorder: &mut Recorder,
) -> Result<()> {
    let machine = Machine::small().drive(disk, false).async_drive(async_disk);
    let vm = Vm::start(setup, &subject.program, &machine)?;
    vm.wait_until_ready()?;
    let agent = vm.agent();
    let explain = |error: anyhow::Error| vm.process().explain(format!("{error:#}"));
    guest::install(&agent).map_err(explain)?;
    for case in &CASES {
        let load = case.load(setup.quick);
        let transfer: Transfer = guest::call(&agent, &load.words()).map_err(explain)?;
        let rate = match case.order {
            Order::Sequential => transfer.mib_per_s(),
            Order::Random => transfer.requests_per_s(),
        };
        recorder.add(subject.side, case.metric.clone(), rate);
    }
    Ok(())
}

impl Case {
    const fn through_io_uring(mut self) -> Self {
        self.device = ASYNC_DEVICE;
        self
    }

    fn load(&self, quick: bool) -> BlockLoad {
        let (block_bytes, count) = match self.order {
            Order::Sequential => (SEQUENTIAL_BYTES, SEQUENTIAL_REQUESTS),
            Order::Random => (RANDOM_BYTES, RANDOM_REQUESTS),
        };
        BlockLoad {
            device: self.device.into(),
            operation: self.operation,
            order: self.order,
            block_bytes,
            in_flight: self.in_flight,
            count: if quick { count / QUICK_DIVISOR } else { count },
            scattered: self.scattered,
        }
    }
}

/// A disk without holes: the first write of a page of tmpfs costs more than all later ones.
fn make_disk(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    let making = || format!("cannot make the disk {}", path.display());
    let mut file = File::create(&path).with_context(making)?;
    let piece = vec![0x5a; SEQUENTIAL_BYTES as usize];
    for _ in 0..DISK_BYTES / u64::from(SEQUENTIAL_BYTES) {
        file.write_all(&piece).with_context(making)?;
    }
    drop(file);
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_has_no_holes() {
        let directory = tempfile::tempdir().unwrap();
        let metadata = std::fs::metadata(make_disk(directory.path(), "disk").unwrap()).unwrap();
        let allocated_bytes = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert_eq!(metadata.len(), DISK_BYTES);
        assert!(allocated_bytes >= DISK_BYTES, "{allocated_bytes}");
    }

    #[test]
    fn quick_moves_less() {
        for case in &CASES {
            assert!(case.load(true).count * 4 <= case.load(false).count);
        }
    }
}
