use std::os::unix::fs::{FileExt, PermissionsExt};

use rotifer_snapshot::{BlockIndex, PageSet, Stateful};
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::test_driver::{Buffer, RAM_BASE, RAM_BYTES, TestDriver};
use super::overlay::Pages;
use super::request::Status;
use super::*;

const OK: u8 = Status::Ok as u8;
const IO_ERROR: u8 = Status::IoError as u8;
const UNSUPPORTED: u8 = Status::Unsupported as u8;
const IMAGE_SECTORS: u64 = 64;

/// An image whose sectors hold their own number, repeated.
fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    for sector in 0..IMAGE_SECTORS {
        image.as_file().write_all_at(&pattern(sector), sector * SECTOR_BYTES).unwrap();
    }
    image
}

fn pattern(sector: u64) -> [u8; 512] {
    [sector as u8 + 1; 512]
}

/// Runs `check` with each engine.
fn with_each_engine(check: impl Fn(Engine)) {
    for engine in [Engine::Sync, Engine::Async] {
        // Shown when the check fails.
        println!("engine: {engine:?}");
        check(engine);
    }
}

fn options(image: &NamedTempFile) -> Options {
    Options {
        id: "rootfs".into(),
        path: image.path().into(),
        read_only: false,
        cache: Cache::Writeback,
        engine: Engine::Sync,
        queue_count: 1,
        overlay: None,
    }
}

fn started(options: &Options) -> TestDriver {
    TestDriver::started(Box::new(Block::open(options).unwrap()))
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Submits header and `data`, and returns status, used length and where the data was placed.
fn request(driver: &mut TestDriver, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32, u64) {
    let mut buffers = vec![Buffer::Read(header(kind, sector))];
    buffers.extend_from_slice(data);
    buffers.push(Buffer::Write(1));
    let (_, at) = driver.submit(0, &buffers);
    // A status that nobody wrote must not look like success.
    driver.memory.write_obj(0xff_u8, GuestAddress(*at.last().unwrap())).unwrap();
    driver.kick(0);
    let used = driver.answer(0).expect("the request is answered");
    (driver.bytes(*at.last().unwrap(), 1)[0], used.len, at[1])
}

fn read(driver: &mut TestDriver, sector: u64, len: u32) -> Result<Vec<u8>, u8> {
    let (status, used, at) = request(driver, VIRTIO_BLK_T_IN, sector, &[Buffer::Write(len)]);
    if status != OK {
        return Err(status);
    }
    assert_eq!(used, len + 1);
    Ok(driver.bytes(at, len as usize))
}

fn write(driver: &mut TestDriver, sector: u64, bytes: &[u8]) -> u8 {
    request(driver, VIRTIO_BLK_T_OUT, sector, &[Buffer::Read(bytes.to_vec())]).0
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_was_written_is_in_the_file_and_read_back() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        assert_eq!(read(&mut driver, 3, 1024).unwrap(), [pattern(3), pattern(4)].concat());
        assert_eq!(write(&mut driver, 7, &[0xab; 1024]), OK);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
        assert_eq!(read(&mut driver, 8, 512).unwrap(), [0xab; 512]);
        let mut bytes = [0; 512];
        image.as_file().read_exact_at(&mut bytes, 7 * 512).unwrap();
        assert_eq!(bytes, [0xab; 512]);
        assert!(driver.take_interrupt());
    });
}

#[test]
fn a_request_may_be_cut_into_descriptors_anywhere() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        let mut bytes = header(VIRTIO_BLK_T_OUT, 2);
        bytes.extend([0xcd; 512]);
        let mut buffers: Vec<_> =
            bytes.chunks(37).map(|piece| Buffer::Read(piece.to_vec())).collect();
        buffers.push(Buffer::Write(1));
        let (_, at) = driver.submit(0, &buffers);
        driver.kick(0);
        assert_eq!(driver.answer(0).unwrap().len, 1);
        assert_eq!(driver.bytes(*at.last().unwrap(), 1), [OK]);

        // Data and status in one descriptor, header in two.
        let head = header(VIRTIO_BLK_T_IN, 2);
        let (_, at) = driver.submit_indirect(
            0,
            &[Buffer::Read(head[..5].into()), Buffer::Read(head[5..].into()), Buffer::Write(513)],
        );
        driver.kick(0);
        assert_eq!(driver.answer(0).unwrap().len, 513);
        assert_eq!(driver.bytes(at[2], 513), [&[0xcd; 512][..], &[OK]].concat());
    });
}

#[test]
fn the_edge_of_the_disk_is_exact() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        assert!(read(&mut driver, IMAGE_SECTORS - 1, 512).is_ok());
        assert_eq!(read(&mut driver, IMAGE_SECTORS - 1, 1024), Err(IO_ERROR));
        assert_eq!(read(&mut driver, IMAGE_SECTORS, 512), Err(IO_ERROR));
        assert_eq!(read(&mut driver, u64::MAX, 512), Err(IO_ERROR));
        assert_eq!(read(&mut driver, 1 << 55, 512), Err(IO_ERROR));
        assert_eq!(read(&mut driver, 0, 100), Err(IO_ERROR), "not whole sectors");
        assert_eq!(write(&mut driver, IMAGE_SECTORS, &[1; 512]), IO_ERROR);
        assert_eq!(image.as_file().metadata().unwrap().len(), IMAGE_SECTORS * SECTOR_BYTES);
    });
}

#[test]
fn a_read_only_disk_says_so_and_is_never_written() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { read_only: true, engine, ..options(&image) });
        let features = driver.offered_features();
        assert_ne!(features & (1 << VIRTIO_BLK_F_RO), 0);
        assert_eq!(features & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
        assert_eq!(write(&mut driver, 0, &[9; 512]), IO_ERROR);
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            let ranges = Buffer::Read(range(0, 1, 0));
            assert_eq!(request(&mut driver, kind, 0, &[ranges]).0, IO_ERROR);
        }
        assert_eq!(read(&mut driver, 0, 512).unwrap(), pattern(0));
    });
}

#[test]
fn zeroes_are_written_with_and_without_freeing_space() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        for (sector, flags) in [(8, 0), (24, 1)] {
            let ranges = [Buffer::Read(range(sector, 8, flags))];
            assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &ranges).0, OK);
            assert_eq!(read(&mut driver, sector, 4096).unwrap(), [0; 4096]);
            assert_eq!(read(&mut driver, sector - 1, 512).unwrap(), pattern(sector - 1));
            assert_eq!(read(&mut driver, sector + 8, 512).unwrap(), pattern(sector + 8));
        }
        assert_eq!(image.as_file().metadata().unwrap().len(), IMAGE_SECTORS * SECTOR_BYTES);
    });
}

#[test]
fn discarded_ranges_leave_the_rest_alone() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        let ranges = [range(8, 8, 0), range(40, 8, 0), range(0, 0, 0)].concat();
        let (status, ..) = request(&mut driver, VIRTIO_BLK_T_DISCARD, 0, &[Buffer::Read(ranges)]);
        assert_eq!(status, OK);
        for sector in [7, 16, 39, 48] {
            assert_eq!(read(&mut driver, sector, 512).unwrap(), pattern(sector));
        }
    });
}

#[test]
fn impossible_ranges_are_refused_as_a_whole() {
    let image = image();
    let mut driver = started(&options(&image));
    let good = range(0, 1, 0);
    for (kind, ranges, expected) in [
        (VIRTIO_BLK_T_DISCARD, vec![], IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, vec![0; 15], IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, good.repeat(MAX_DISCARD_RANGES + 1), IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, range(0, 1, 1), UNSUPPORTED),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), UNSUPPORTED),
        (VIRTIO_BLK_T_WRITE_ZEROES, good.repeat(2), IO_ERROR),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(0, MAX_WRITE_ZEROES_SECTORS + 1, 0), IO_ERROR),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(u64::MAX, 1, 0), IO_ERROR),
        (VIRTIO_BLK_T_DISCARD, [good.clone(), range(63, 2, 0)].concat(), IO_ERROR),
    ] {
        let (status, ..) = request(&mut driver, kind, 0, &[Buffer::Read(ranges.clone())]);
        assert_eq!(status, expected, "{kind} {ranges:?}");
    }
    assert_eq!(read(&mut driver, 0, 512).unwrap(), pattern(0));
}

#[test]
fn the_serial_number_is_the_drive_id() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        let (status, used, at) =
            request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[Buffer::Write(ID_BYTES as u32)]);
        assert_eq!((status, used), (OK, 21));
        assert_eq!(driver.bytes(at, 20), b"rootfs\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let (status, _, at) = request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[Buffer::Write(4)]);
        assert_eq!((status, driver.bytes(at, 4)), (OK, b"root".to_vec()));
    });
}

#[test]
fn wrong_requests_get_a_status_and_the_device_goes_on() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        assert_eq!(request(&mut driver, 0xbad, 0, &[]).0, UNSUPPORTED);

        // A header cut short, no place for a status, and memory that is not there.
        let outside = RAM_BASE + RAM_BYTES as u64;
        let (_, at) = driver.submit(0, &[Buffer::Read(vec![0; 15]), Buffer::Write(1)]);
        driver.submit(0, &[Buffer::Read(header(VIRTIO_BLK_T_FLUSH, 0))]);
        driver.submit(
            0,
            &[
                Buffer::Read(header(VIRTIO_BLK_T_FLUSH, 0)),
                Buffer::At { address: outside, len: 1, write: true },
            ],
        );
        driver.kick(0);
        let lengths: Vec<_> = (0..3).map(|_| driver.answer(0).unwrap().len).collect();
        assert_eq!(lengths, [1, 0, 0]);
        assert_eq!(driver.bytes(at[1], 1), [IO_ERROR]);

        let away = Buffer::At { address: outside - 512, len: 1024, write: true };
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[away]).0, IO_ERROR);
        let away = Buffer::At { address: outside, len: 512, write: false };
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[away]).0, IO_ERROR);
        assert_eq!(read(&mut driver, 0, 512).unwrap(), pattern(0));
    });
}

#[test]
fn a_disk_that_shrinks_gives_errors_never_zeroes_and_never_grows_back() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, ..options(&image) });
        image.as_file().set_len(10 * SECTOR_BYTES + 100).unwrap();
        assert_eq!(read(&mut driver, 9, 512).unwrap(), pattern(9));
        assert_eq!(read(&mut driver, 9, 1024), Err(IO_ERROR), "its second half is gone");
        assert_eq!(read(&mut driver, 40, 512), Err(IO_ERROR));
        assert_eq!(write(&mut driver, 40, &[1; 512]), IO_ERROR);
        let ranges = [Buffer::Read(range(40, 1, 0))];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, &ranges).0, IO_ERROR);
        assert_eq!(image.as_file().metadata().unwrap().len(), 10 * SECTOR_BYTES + 100);
        assert_eq!(write(&mut driver, 5, &[1; 512]), OK, "what is there can still be written");
    });
}

#[test]
fn configuration_space_tells_size_and_limits() {
    let image = image();
    image.as_file().set_len(IMAGE_SECTORS * SECTOR_BYTES + 511).unwrap();
    let driver = started(&options(&image));
    assert_eq!(driver.config(0, 8), IMAGE_SECTORS.to_le_bytes(), "whole sectors only");
    assert_eq!(driver.config(12, 4), 254_u32.to_le_bytes());
    assert_eq!(driver.config(56, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn flush_is_offered_only_where_it_does_something() {
    with_each_engine(|engine| {
        let image = image();
        let offered = |cache| {
            let driver = started(&Options { cache, engine, ..options(&image) });
            driver.offered_features() & (1 << VIRTIO_BLK_F_FLUSH) != 0
        };
        assert!(offered(Cache::Writeback));
        assert!(!offered(Cache::Unsafe));
        let mut driver = started(&Options { cache: Cache::Unsafe, engine, ..options(&image) });
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
    });
}

#[test]
fn an_image_that_cannot_be_a_disk_is_refused_by_name_and_reason() {
    let image = image();
    let directory = tempfile::tempdir().unwrap();
    let refused = |path: &std::path::Path| {
        let options = Options { path: path.into(), ..options(&image) };
        let error = Block::open(&options).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        error
    };
    let missing = directory.path().join("missing");
    assert!(refused(&missing).starts_with("open disk image"));
    assert!(refused(directory.path()).contains("is a directory"));
    assert!(refused(std::path::Path::new("/dev/null")).contains("neither a file nor a device"));

    let empty = NamedTempFile::new().unwrap();
    assert!(refused(empty.path()).contains("has 0 bytes"));
    let permissions = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(image.path(), permissions).unwrap();
    let error = refused(image.path());
    assert!(error.contains("is read-only, but drive \"rootfs\" is not"), "{error}");
    assert!(Block::open(&Options { read_only: true, ..options(&image) }).is_ok());
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let image = image();
    let read_only = Options { read_only: true, ..options(&image) };
    let writer = Block::open(&options(&image)).unwrap();
    for second in [&options(&image), &read_only] {
        let error = Block::open(second).unwrap_err();
        assert!(matches!(error, BlockError::InUse { .. }), "{error}");
    }
    drop(writer);
    let _readers = [Block::open(&read_only).unwrap(), Block::open(&read_only).unwrap()];
    let error = Block::open(&options(&image)).unwrap_err().to_string();
    assert!(error.contains("is being used by another"), "{error}");
}

#[test]
fn a_saved_disk_goes_on_only_with_one_of_its_size_and_access() {
    let image = image();
    let options = Options { read_only: true, ..options(&image) };
    let state = Block::open(&options).unwrap().save();
    let other = Options { id: "another".into(), ..options.clone() };
    let mut copy = Block::open(&other).unwrap();
    copy.load(state.clone()).unwrap();
    assert_eq!(copy.save(), state, "the guest's serial number stays");

    let error = copy.load(State { read_only: false, ..state.clone() }).unwrap_err().to_string();
    assert!(error.contains("is_read_only"), "{error}");
    let error = copy.load(State { capacity_sectors: 1, ..state }).unwrap_err().to_string();
    assert!(error.contains("capacity_sectors = 1"), "{error}");
}

#[test]
fn every_queue_of_several_serves_requests() {
    with_each_engine(|engine| {
        let image = image();
        let mut driver = started(&Options { engine, queue_count: 4, ..options(&image) });
        assert_ne!(driver.offered_features() & (1 << VIRTIO_BLK_F_MQ), 0);
        assert_eq!(driver.config(34, 2), 4_u16.to_le_bytes());
        for queue in 0..4 {
            let head = Buffer::Read(header(VIRTIO_BLK_T_IN, queue as u64));
            driver.submit(queue, &[head, Buffer::Write(512), Buffer::Write(1)]);
        }
        // One eventfd serves them all.
        driver.kick(0);
        for queue in 0..4 {
            assert_eq!(driver.answer(queue).unwrap().len, 513, "queue {queue}");
        }
    });
}

#[test]
fn one_queue_is_no_news_to_a_driver_and_too_many_are_not_made() {
    let image = image();
    let driver = started(&options(&image));
    assert_eq!(driver.offered_features() & (1 << VIRTIO_BLK_F_MQ), 0);
    drop(driver);
    for (asked, made) in [(0, 1), (17, 16), (u16::MAX, 16)] {
        let block = Block::open(&Options { queue_count: asked, ..options(&image) }).unwrap();
        assert_eq!(block.queue_sizes().len(), made);
    }
}

#[test]
fn a_saved_disk_does_not_go_on_with_another_number_of_queues() {
    let image = image();
    let options = Options { read_only: true, ..options(&image) };
    let state = started(&Options { queue_count: 2, ..options.clone() }).transport.save();
    let other = started(&Options { queue_count: 4, ..options });
    let error = other.transport.load(&state).unwrap_err().to_string();
    assert!(error.contains("another number of queues"), "{error}");
}

#[test]
fn machines_share_a_base_and_each_has_what_it_wrote() {
    let image = image();
    image.as_file().set_permissions(std::fs::Permissions::from_mode(0o444)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let overlay = |name: &str| directory.path().join(name);
    let with = |name| Options { overlay: Some(overlay(name)), ..options(&image) };
    let mut drivers = [started(&with("a")), started(&with("b"))];
    for (driver, byte) in drivers.iter_mut().zip([0xa, 0xb]) {
        assert_eq!(driver.offered_features() & (1 << VIRTIO_BLK_F_RO), 0);
        assert_eq!(write(driver, 5, &[byte; 512]), OK);
    }
    for (driver, byte) in drivers.iter_mut().zip([0xa, 0xb]) {
        assert_eq!(read(driver, 4, 1024).unwrap(), [pattern(4), [byte; 512]].concat());
    }
    let error = Block::open(&with("a")).unwrap_err().to_string();
    assert!(error.contains("is being used by another"), "{error}");
    assert!(Block::open(&options(&image)).is_err(), "nobody writes what others read");
    let mut bytes = [0; 512];
    image.as_file().read_exact_at(&mut bytes, 5 * 512).unwrap();
    assert_eq!(bytes, pattern(5), "the base");
}

#[test]
fn a_drained_overlay_is_in_its_file() {
    let image = image();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("overlay");
    let block = Block::open(&Options { overlay: Some(path), ..options(&image) }).unwrap();
    let file = block.overlay_file().unwrap().unwrap();
    let mut driver = TestDriver::started(Box::new(block));
    assert_eq!(write(&mut driver, 9, &[1; 512]), OK);
    assert!(matches!(file.freeze(), Err(OverlayError::Behind { .. })), "before the drain");
    driver.transport.drain();
    let frozen = file.freeze().unwrap();
    let mut data = PageSet::EMPTY;
    data.insert(1);
    let pages = Pages { data, zero: PageSet::EMPTY };
    assert_eq!(frozen.blocks().into_iter().collect::<Vec<_>>(), [(BlockIndex(0), pages)]);
    let mut page = [0; 4096];
    frozen.read(BlockIndex(0), &data, &mut page).unwrap();
    assert_eq!(page[..1024], [pattern(8), [1; 512]].concat());
}

#[test]
fn an_overlay_and_io_uring_do_not_go_together() {
    let image = image();
    let overlay = Some("overlay".into());
    let options = Options { overlay, engine: Engine::Async, ..options(&image) };
    let error = Block::open(&options).unwrap_err().to_string();
    assert!(error.contains("rootfs") && error.contains("Sync"), "{error}");
    assert!(!std::path::Path::new("overlay").exists());
}
