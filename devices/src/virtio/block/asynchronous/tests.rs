use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use vm_memory::{Bytes, GuestAddress};

use super::super::disk::{Disk, Extent};
use super::super::medium::Medium;
use super::super::{Block, Engine, Options, QUEUE_SIZE, Server};
use super::*;
use crate::virtio::Segment;
use crate::virtio::test_driver::{Buffer, TestDriver, reg};

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
/// A read or write that nobody answers for so long hangs.
const DEADLINE: Duration = Duration::from_secs(60);

fn options(cache: Cache) -> Options {
    Options {
        id: "slow".into(),
        path: "stream".into(),
        read_only: false,
        cache,
        engine: Engine::Async,
        queue_count: 1,
        overlay: None,
    }
}

/// A device whose reads wait until somebody writes to the stream.
fn slow() -> (Block, UnixStream) {
    let (disk, host) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(DEADLINE)).unwrap();
    (Block::new(Disk::slow(disk.into()), &options(Cache::Unsafe), None).unwrap(), host)
}

fn started() -> (TestDriver, UnixStream) {
    let (block, host) = slow();
    (TestDriver::started(Box::new(block)), host)
}

fn header(kind: u32) -> Buffer {
    Buffer::Read([&kind.to_le_bytes()[..], &[0; 12]].concat())
}

/// Makes a read available; where its data and status are to be.
fn submit_read(driver: &mut TestDriver) -> (u16, u64) {
    let (head, at) = driver.submit(0, &[header(VIRTIO_BLK_T_IN), Buffer::Write(513)]);
    (head, at[1])
}

fn submit_write(driver: &mut TestDriver, byte: u8) -> (u16, u64) {
    let data = Buffer::Read(vec![byte; 512]);
    let (head, at) = driver.submit(0, &[header(VIRTIO_BLK_T_OUT), data, Buffer::Write(1)]);
    (head, at[2])
}

#[test]
fn what_is_done_first_is_answered_first() {
    let (mut driver, mut host) = started();
    let (read_head, read_at) = submit_read(&mut driver);
    let (write_head, status_at) = submit_write(&mut driver, 7);
    driver.kick(0);
    let used = driver.answer(0).unwrap();
    assert_eq!((used.head, used.len), (write_head.into(), 1), "the read still waits");
    assert_eq!(driver.bytes(status_at, 1), [OK]);
    let mut written = [0; 512];
    host.read_exact(&mut written).unwrap();
    assert_eq!(written, [7; 512]);
    assert!(driver.take_interrupt());

    host.write_all(&[9; 512]).unwrap();
    let used = driver.answer(0).unwrap();
    assert_eq!((used.head, used.len), (read_head.into(), 513));
    assert_eq!(driver.bytes(read_at, 513), [&[9; 512][..], &[OK]].concat());
    assert!(driver.take_interrupt());
}

#[test]
fn everything_available_is_in_flight_at_once() {
    const COUNT: u16 = 16;
    let (mut driver, mut host) = started();
    for _ in 0..COUNT {
        submit_read(&mut driver);
    }
    driver.kick(0);
    assert_eq!(driver.used(0), None);
    // avail_event: the device wants to hear of the request after these, which it has taken.
    let ring = &driver.rings[0];
    let avail_event = GuestAddress(ring.used + 4 + 8 * u64::from(ring.size));
    assert_eq!(driver.memory.read_obj::<u16>(avail_event).unwrap(), COUNT);
    for _ in 0..COUNT {
        host.write_all(&[1; 512]).unwrap();
        assert_eq!(driver.answer(0).unwrap().len, 513);
    }
}

#[test]
fn a_reset_comes_after_the_last_byte_in_flight_and_nothing_is_answered_after_it() {
    let (mut driver, mut host) = started();
    let (_, at) = submit_read(&mut driver);
    driver.kick(0);
    let transport = driver.transport.clone();
    let reset = thread::spawn(move || {
        crate::MmioDevice::write(transport.as_ref(), reg::STATUS, &0_u32.to_le_bytes());
    });
    host.write_all(&[3; 512]).unwrap();
    reset.join().unwrap();
    // Memory is the driver's again.
    let scribble = [0xee; 513];
    driver.memory.write_slice(&scribble, GuestAddress(at)).unwrap();
    driver.run();
    assert_eq!(driver.used(0), None);
    assert!(!driver.take_interrupt());
    assert_eq!(driver.bytes(at, 513), scribble);

    driver.start();
    submit_write(&mut driver, 4);
    driver.kick(0);
    assert_eq!(driver.answer(0).unwrap().len, 1, "the device works again");
}

#[test]
fn draining_completes_what_is_in_flight() {
    let (mut driver, mut host) = started();
    let reads = [submit_read(&mut driver), submit_read(&mut driver)];
    driver.kick(0);
    let transport = driver.transport.clone();
    let drain = thread::spawn(move || transport.drain());
    host.write_all(&[5; 1024]).unwrap();
    drain.join().unwrap();
    for (_, at) in reads {
        assert!(driver.used(0).is_some(), "without another turn of the event loop");
        assert_eq!(driver.bytes(at, 513), [&[5; 512][..], &[OK]].concat());
    }
    assert!(driver.take_interrupt());
}

#[test]
fn a_broken_ring_gets_no_answers_of_requests_in_flight() {
    let (mut driver, mut host) = started();
    submit_read(&mut driver);
    driver.kick(0);
    driver.set_available_index(0, 0x8000);
    driver.kick(0);
    assert!(driver.needs_reset());
    host.write_all(&[6; 512]).unwrap();
    driver.transport.drain();
    driver.run();
    assert_eq!(driver.used(0), None);
    driver.start();
    submit_write(&mut driver, 4);
    driver.kick(0);
    assert_eq!(driver.answer(0).unwrap().len, 1, "a reset heals");
}

#[test]
fn requests_before_a_broken_chain_are_not_forgotten() {
    let (mut driver, mut host) = started();
    submit_read(&mut driver);
    driver.make_available(0, 999); // no such descriptor
    driver.kick(0);
    assert!(driver.needs_reset());
    // Were it only queued and not submitted, this would wait for ever.
    host.write_all(&[6; 512]).unwrap();
    driver.transport.drain();
}

#[test]
fn a_device_is_not_dropped_before_its_requests() {
    let (block, mut host) = slow();
    let mut driver = TestDriver::started(Box::new(block));
    submit_read(&mut driver);
    driver.kick(0);
    let memory = Arc::downgrade(&driver.memory);
    host.write_all(&[1; 512]).unwrap();
    drop(driver);
    assert!(memory.upgrade().is_none());
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the disk is closed");
}

#[test]
fn a_disk_that_fails_gives_errors() {
    let (mut driver, host) = started();
    drop(host);
    let (_, at) = submit_read(&mut driver);
    driver.kick(0);
    assert_eq!(driver.answer(0).unwrap().len, 0);
    assert_eq!(driver.bytes(at + 512, 1), [IO_ERROR], "the end of the file");
    let (_, at) = submit_write(&mut driver, 1);
    driver.kick(0);
    driver.answer(0).unwrap();
    assert_eq!(driver.bytes(at, 1), [IO_ERROR]);
}

#[test]
fn a_driver_that_fills_all_slots_waits_for_one() {
    let (mut block, mut host) = slow();
    block.server = Server::Asynchronous(Box::new(Asynchronous::new(Ring::new(2).unwrap(), 2)));
    let mut driver = TestDriver::started(Box::new(block));
    for _ in 0..5 {
        submit_read(&mut driver);
    }
    driver.kick(0);
    for _ in 0..5 {
        host.write_all(&[1; 512]).unwrap();
        assert_eq!(driver.answer(0).unwrap().len, 513);
    }
}

#[test]
fn a_ring_that_the_kernel_refuses_is_done_without() {
    let image = tempfile::tempfile().unwrap();
    image.write_all_at(&[8; 4096], 0).unwrap();
    let mut block = Block::with_file(image, &options(Cache::Writeback)).unwrap();
    let in_flight_max = QUEUE_SIZE.into();
    let ring = Ring::disabled().unwrap();
    block.server = Server::Asynchronous(Box::new(Asynchronous::new(ring, in_flight_max)));
    let mut driver = TestDriver::started(Box::new(block));
    let (_, at) = submit_read(&mut driver);
    submit_write(&mut driver, 1);
    driver.submit(0, &[header(VIRTIO_BLK_T_FLUSH), Buffer::Write(1)]);
    // More than the submission queue holds.
    for _ in 0..9 {
        driver.submit(0, &[header(VIRTIO_BLK_T_FLUSH), Buffer::Write(1)]);
    }
    driver.kick(0);
    for _ in 0..12 {
        assert!(driver.used(0).is_some());
    }
    assert_eq!(driver.bytes(at, 513), [&[8; 512][..], &[OK]].concat());
    let (_, at) = submit_read(&mut driver);
    driver.kick(0);
    assert!(driver.used(0).is_some());
    assert_eq!(driver.bytes(at, 513), [&[1; 512][..], &[OK]].concat());
}

/// A request in flight on an image of two sectors of ones, whose data is twos at `DATA_AT`.
fn in_flight(request: Request, readable_count: usize) -> (InFlight, Drive, GuestMemory) {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[1; 1024], 0).unwrap();
    let options = options(Cache::Writeback);
    let drive = Drive::new(Medium::Image(Disk::with_file(file, &options).unwrap()), &options);
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 8192)]).unwrap();
    memory.write_slice(&[2; 1024], DATA_AT).unwrap();
    let segments = [(GuestAddress(0), HEADER_BYTES as u32), (DATA_AT, 1024), (STATUS_AT, 1)];
    let chain = Chain::of(segments.map(|(address, len)| Segment { address, len }), readable_count);
    let data = GuestIoVec::new(&memory, &[], 0, 0).unwrap().detach();
    (InFlight { queue: 0, chain, request, data, write_through: true }, drive, memory)
}

const DATA_AT: GuestAddress = GuestAddress(4096);
const STATUS_AT: GuestAddress = GuestAddress(2048);
const WHOLE: Extent = Extent { offset: 0, len: 1024 };

#[test]
fn what_the_kernel_left_unread_is_read() {
    for (result, expected) in [
        (1024, [2; 1024]), // the kernel says that it is there already
        (512, [[2; 512], [1; 512]].concat().try_into().unwrap()),
        (0, [1; 1024]),
        (-libc::EAGAIN, [1; 1024]),
        (-libc::EINTR, [1; 1024]),
    ] {
        let (request, mut drive, memory) = in_flight(Request::Read(WHOLE), 1);
        assert_eq!(request.finish(result, &mut drive, &memory).unwrap(), 1024, "{result}");
        let mut bytes = [0; 1024];
        memory.read_slice(&mut bytes, DATA_AT).unwrap();
        assert_eq!(bytes, expected, "{result}");
    }
}

#[test]
fn what_the_kernel_left_unwritten_is_written() {
    for (result, written_from) in [(1024, 1024), (512, 512), (0, 0), (-libc::EAGAIN, 0)] {
        let (request, mut drive, memory) = in_flight(Request::Write(WHOLE), 2);
        assert_eq!(request.finish(result, &mut drive, &memory).unwrap(), 0, "{result}");
        let mut bytes = [0; 1024];
        drive.disk.image().unwrap().file().read_exact_at(&mut bytes, 0).unwrap();
        let (before, after) = bytes.split_at(written_from);
        assert!(before.iter().all(|byte| *byte == 1), "{result}");
        assert!(after.iter().all(|byte| *byte == 2), "{result}");
    }
}

#[test]
fn what_the_kernel_cannot_do_is_an_error_with_its_reason() {
    for result in [-libc::EIO, -libc::ENOSPC, i32::MIN] {
        for request in [Request::Read(WHOLE), Request::Write(WHOLE), Request::Flush] {
            let (request, mut drive, memory) = in_flight(request, 1);
            let error = request.finish(result, &mut drive, &memory).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(result.wrapping_neg()));
        }
    }
    let (request, mut drive, memory) = in_flight(Request::Flush, 1);
    assert_eq!(request.finish(-libc::EINTR, &mut drive, &memory).unwrap(), 0, "flushed by us");
}
