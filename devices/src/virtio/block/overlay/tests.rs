mod layered;

use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::super::{Engine, Options, SECTOR_BYTES};
use super::backing::Deed;
use super::table::UNIT_BYTES;
use super::*;
use crate::GuestMemory;

/// Eleven blocks and a part of one.
const SECTORS: u64 = 11 * SECTORS_PER_BLOCK + 3;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;
const DATA_AT: u64 = 0x1000;

fn options() -> Options {
    Options {
        id: "layered".into(),
        path: "base".into(),
        read_only: true,
        cache: Cache::Writeback,
        engine: Engine::Sync,
        queue_count: 1,
        overlay: None,
    }
}

/// What the base has in a sector: one byte repeated, never zero.
fn base_byte(sector: u64) -> u8 {
    0x80 | sector as u8
}

fn base_image(sectors: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    for sector in 0..sectors {
        let bytes = [base_byte(sector); SECTOR_BYTES as usize];
        file.write_all_at(&bytes, sector * SECTOR_BYTES).unwrap();
    }
    file
}

fn base(image: &File) -> Disk {
    Disk::with_file(image.try_clone().unwrap(), &options()).unwrap()
}

/// An overlay and the memory of its guest.
struct Rig {
    overlay: Overlay,
    memory: GuestMemory,
}

impl Rig {
    fn new(image: &File, file: &File, cache: Cache) -> Self {
        Self::of(with_file(image, file, cache).unwrap())
    }

    fn of(overlay: Overlay) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Self { overlay, memory }
    }

    /// Bytes in guest memory in two pieces, cut at an odd place.
    fn segments(len: u64) -> [Segment; 2] {
        let first = len.min(777) as u32;
        [(DATA_AT, first), (DATA_AT + u64::from(first), len as u32 - first)]
            .map(|(address, len)| Segment { address: GuestAddress(address), len })
    }

    fn write(&mut self, sectors: Range, byte: u8) {
        let extent = sectors.extent();
        self.memory.write_slice(&vec![byte; extent.len as usize], GuestAddress(DATA_AT)).unwrap();
        self.overlay.write(&self.memory, &Self::segments(extent.len), 0, extent).unwrap();
    }

    fn read(&mut self, sectors: Range) -> Vec<u8> {
        let extent = sectors.extent();
        self.memory.write_slice(&vec![0x77; extent.len as usize], GuestAddress(DATA_AT)).unwrap();
        self.overlay.read(&self.memory, &Self::segments(extent.len), 0, extent).unwrap();
        let mut bytes = vec![0; extent.len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(DATA_AT)).unwrap();
        bytes
    }

    /// One byte for each sector, each of which is all of that byte.
    fn read_all(&mut self, sectors: u64) -> Vec<u8> {
        let bytes = self.read(Range { first: 0, count: sectors });
        let sectors = bytes.chunks(SECTOR_BYTES as usize);
        sectors.map(|sector| uniform(sector).expect("one byte repeated")).collect()
    }
}

fn uniform(sector: &[u8]) -> Option<u8> {
    sector.iter().all(|byte| *byte == sector[0]).then_some(sector[0])
}

fn with_file(image: &File, file: &File, cache: Cache) -> Result<Overlay, OverlayError> {
    Overlay::with_file(base(image), file.try_clone().unwrap(), Path::new("overlay"), cache)
}

fn refusal(image: &File, file: &File) -> Damage {
    match with_file(image, file, Cache::Writeback).unwrap_err() {
        OverlayError::Damaged { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[derive(Debug, Clone, Copy)]
struct Range {
    first: u64,
    count: u64,
}

impl Range {
    fn extent(self) -> Extent {
        Extent { offset: self.first * SECTOR_BYTES, len: self.count * SECTOR_BYTES }
    }

    fn sectors(self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }

    /// Of these, the ones in blocks that are in it as a whole.
    fn in_whole_blocks(self) -> std::ops::Range<u64> {
        let start = self.first.next_multiple_of(SECTORS_PER_BLOCK);
        let end = (self.first + self.count) / SECTORS_PER_BLOCK * SECTORS_PER_BLOCK;
        start..end.max(start)
    }
}

#[derive(Debug, Clone)]
enum Deal {
    Write(Range, u8),
    Zeroes(Range),
    Discard(Range),
    Flush,
}

fn ranges() -> impl Strategy<Value = Range> {
    (0..SECTORS, 1..30_u64)
        .prop_map(|(first, count)| Range { first, count: count.min(SECTORS - first) })
}

fn deals() -> impl Strategy<Value = Vec<Deal>> {
    let deal = prop_oneof![
        6 => (ranges(), 1..0x80_u8).prop_map(|(range, byte)| Deal::Write(range, byte)),
        2 => ranges().prop_map(Deal::Zeroes),
        2 => ranges().prop_map(Deal::Discard),
        2 => Just(Deal::Flush),
    ];
    prop::collection::vec(deal, 1..20)
}

/// What each sector may hold if everything ended now: what was flushed, and all that came since;
/// the last is what it holds now.
type Model = Vec<Vec<u8>>;

fn fresh_model() -> Model {
    (0..SECTORS).map(|sector| vec![base_byte(sector)]).collect()
}

fn deal(rig: &mut Rig, model: &mut Model, deal: &Deal) {
    let mut put = |sectors: std::ops::Range<u64>, byte| {
        sectors.for_each(|sector| model[sector as usize].push(byte));
    };
    match deal {
        Deal::Write(range, byte) => {
            rig.write(*range, *byte);
            put(range.sectors(), *byte);
        }
        Deal::Zeroes(range) => {
            rig.overlay.write_zeroes(range.extent()).unwrap();
            put(range.sectors(), 0);
        }
        Deal::Discard(range) => {
            rig.overlay.discard(range.extent()).unwrap();
            put(range.in_whole_blocks(), 0);
        }
        Deal::Flush => {
            rig.overlay.flush().unwrap();
            for values in model {
                values.drain(..values.len() - 1);
            }
        }
    }
}

fn now(model: &Model) -> Vec<u8> {
    model.iter().map(|values| *values.last().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_is_a_disk_and_its_base_is_never_written(deals in deals(), reopen in any::<u32>()) {
        let (image, file) = (base_image(SECTORS), tempfile::tempfile().unwrap());
        for cache in [Cache::Writeback, Cache::Unsafe] {
            file.set_len(0).unwrap();
            let mut rig = Rig::new(&image, &file, cache);
            let mut model = fresh_model();
            for (index, one) in deals.iter().enumerate() {
                deal(&mut rig, &mut model, one);
                prop_assert_eq!(rig.read_all(SECTORS), now(&model));
                if reopen >> (index % 32) & 1 == 1 {
                    if cache == Cache::Writeback {
                        rig.overlay.flush().unwrap();
                    }
                    rig = Rig::new(&image, &file, cache);
                    prop_assert_eq!(rig.read_all(SECTORS), now(&model));
                }
            }
        }
        let mut untouched = Rig::new(&image, &tempfile::tempfile().unwrap(), Cache::Unsafe);
        prop_assert_eq!(untouched.read_all(SECTORS), now(&fresh_model()));
    }
}

/// What the host's disk has if it loses power when `deeds` were done: what was synced, and of the
/// rest any sectors.
fn wreck(deeds: &[Deed], file_bytes: u64, mut dice: u64) -> Vec<u8> {
    let synced = deeds.iter().rposition(|deed| matches!(deed, Deed::Sync)).unwrap_or(0);
    let mut bytes = vec![0; file_bytes as usize];
    for (index, deed) in deeds.iter().enumerate() {
        let (at, data) = match deed {
            Deed::Write(at, data) => (*at as usize, data.clone()),
            Deed::Punch(extent) => (extent.offset as usize, vec![0; extent.len as usize]),
            Deed::Sync | Deed::Length(_) => continue,
        };
        for (number, sector) in data.chunks(SECTOR_BYTES as usize).enumerate() {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            if index < synced || dice.is_multiple_of(2) {
                let at = at + number * SECTOR_BYTES as usize;
                bytes[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_write_leaves_what_was_flushed_or_written_since(
        deals in deals(),
        seed in 1..u64::MAX,
    ) {
        let (image, file) = (base_image(SECTORS), tempfile::tempfile().unwrap());
        let mut rig = Rig::new(&image, &file, Cache::Writeback);
        let count = |rig: &Rig| rig.overlay.backing.record.lock().unwrap().len();
        let made = count(&rig);
        let mut model = fresh_model();
        let file_bytes = file.metadata().unwrap().len();
        for one in &deals {
            let (start, before) = (count(&rig), model.clone());
            deal(&mut rig, &mut model, one);
            let end = count(&rig);
            for crash in start + 1..=end {
                // Half done, a flush has promised nothing; anything else may be there.
                let half = crash < end && matches!(one, Deal::Flush);
                let allowed = if half { &before } else { &model };
                let deeds = rig.overlay.backing.record.lock().unwrap()[..crash].to_vec();
                let wreck = wreck(&deeds, file_bytes, seed.wrapping_add(crash as u64).max(1));
                let found = tempfile::tempfile().unwrap();
                found.write_all_at(&wreck, 0).unwrap();
                let found = Rig::new(&image, &found, Cache::Writeback).read_all(SECTORS);
                for (sector, byte) in found.iter().enumerate() {
                    let allowed = &allowed[sector];
                    prop_assert!(
                        allowed.contains(byte),
                        "sector {sector} is {byte:#x}, not one of {allowed:x?}, after {crash} deeds"
                    );
                }
            }
        }
        prop_assert!(made > 0);
    }
}

#[test]
fn an_overlay_whose_making_was_cut_off_is_refused() {
    let (image, file) = (base_image(SECTORS), tempfile::tempfile().unwrap());
    let rig = Rig::new(&image, &file, Cache::Writeback);
    let deeds = rig.overlay.backing.record.lock().unwrap().clone();
    let file_bytes = file.metadata().unwrap().len();
    let header = deeds.iter().rposition(|deed| matches!(deed, Deed::Write(0, _))).unwrap();
    let cut_off = tempfile::tempfile().unwrap();
    cut_off.write_all_at(&wreck(&deeds[..header], file_bytes, 1), 0).unwrap();
    assert_eq!(refusal(&image, &cut_off), Damage::NotAnOverlay);
    assert!(deeds[..header].iter().any(|deed| matches!(deed, Deed::Sync)), "the table first");
}

#[test]
fn every_flipped_bit_of_header_and_table_is_found() {
    let (image, file) = (base_image(SECTORS), tempfile::tempfile().unwrap());
    let mut rig = Rig::new(&image, &file, Cache::Writeback);
    rig.write(Range { first: 3, count: 9 }, 5);
    rig.overlay.flush().unwrap();
    for at in (0..512).chain(TABLE_START..TABLE_START + 512) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        for bit in 0..8 {
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            refusal(&image, &file);
        }
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(with_file(&image, &file, Cache::Writeback).is_ok());
}

#[test]
fn a_table_with_a_right_checksum_and_wrong_states_is_refused() {
    for (block, bits) in [(0, 0b11), (SECTORS.div_ceil(SECTORS_PER_BLOCK), 0b01)] {
        let mut unit = [0; UNIT_BYTES];
        unit[8 + block as usize / 4] = bits << (block % 4 * 2);
        let sum = table::checksum(0, &unit[8..]);
        unit[..8].copy_from_slice(&sum);
        let (image, file) = (base_image(SECTORS), tempfile::tempfile().unwrap());
        drop(Rig::new(&image, &file, Cache::Writeback));
        file.write_all_at(&unit, TABLE_START).unwrap();
        assert_eq!(refusal(&image, &file), Damage::Table { unit: 0 });
    }
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let (image, file) = (base_image(SECTORS), tempfile::tempfile().unwrap());
    drop(Rig::new(&image, &file, Cache::Writeback));
    let overlay_bytes = SECTORS * SECTOR_BYTES;
    let other = base_image(SECTORS + 1);
    let disk_bytes = overlay_bytes + SECTOR_BYTES;
    assert_eq!(refusal(&other, &file), Damage::OtherDisk { overlay_bytes, disk_bytes });

    let expected_bytes = file.metadata().unwrap().len();
    for found_bytes in [expected_bytes - 1, expected_bytes + 1] {
        file.set_len(found_bytes).unwrap();
        assert_eq!(refusal(&image, &file), Damage::Length { found_bytes, expected_bytes });
    }
    file.set_len(expected_bytes).unwrap();
    file.write_all_at(&3_u32.to_le_bytes(), 8).unwrap();
    assert_eq!(refusal(&image, &file), Damage::Version { version: 3 });
    assert_eq!(refusal(&image, &base_image(20)), Damage::NotAnOverlay);

    let named = NamedTempFile::new().unwrap();
    let _first = Overlay::open(base(&image), named.path(), Cache::Unsafe).unwrap();
    let error = Overlay::open(base(&image), named.path(), Cache::Unsafe).unwrap_err();
    assert!(matches!(error, OverlayError::InUse { .. }), "{error}");
    let error = Overlay::open(base(&image), Path::new("/dev/null"), Cache::Unsafe).unwrap_err();
    assert!(error.to_string().contains("/dev/null"), "{error}");
}

#[test]
fn what_is_discarded_takes_no_space() {
    use std::os::unix::fs::MetadataExt;
    let sectors = 4096;
    let (image, file) = (base_image(sectors), tempfile::tempfile().unwrap());
    let mut rig = Rig::new(&image, &file, Cache::Writeback);
    let empty = file.metadata().unwrap().blocks();
    let range = Range { first: 0, count: 1024 };
    rig.write(range, 7);
    let full = file.metadata().unwrap().blocks();
    assert!(full >= empty + range.count, "{empty} {full}");
    rig.overlay.discard(range.extent()).unwrap();
    rig.overlay.flush().unwrap();
    assert!(file.metadata().unwrap().blocks() <= empty + 16);
    assert_eq!(rig.read_all(1025)[1024], base_byte(1024));
    assert_eq!(rig.read_all(1024), [0; 1024]);
}

#[test]
fn an_overlay_that_shrinks_gives_errors_and_never_grows_back() {
    let (image, file) = (base_image(SECTORS), tempfile::tempfile().unwrap());
    let mut rig = Rig::new(&image, &file, Cache::Writeback);
    rig.write(Range { first: 80, count: 8 }, 7);
    let shorter = file.metadata().unwrap().len() - 2 * BLOCK_BYTES;
    file.set_len(shorter).unwrap();
    let extent = Range { first: 80, count: 8 }.extent();
    let segments = Rig::segments(extent.len);
    assert!(rig.overlay.read(&rig.memory, &segments, 0, extent).is_err());
    assert!(rig.overlay.write(&rig.memory, &segments, 0, extent).is_err());
    assert!(rig.overlay.write_zeroes(extent).is_err());
    assert_eq!(file.metadata().unwrap().len(), shorter);
}

#[test]
fn blocks_of_all_units_are_remembered() {
    let sectors = (table::BLOCKS_PER_UNIT + 3) * SECTORS_PER_BLOCK;
    let (image, file) = (base_image(sectors), tempfile::tempfile().unwrap());
    let mut rig = Rig::new(&image, &file, Cache::Writeback);
    let edge = Range { first: sectors - 5 * SECTORS_PER_BLOCK, count: 4 * SECTORS_PER_BLOCK };
    rig.write(edge, 9);
    rig.overlay.flush().unwrap();
    let mut rig = Rig::new(&image, &file, Cache::Writeback);
    assert!(rig.read(edge).iter().all(|byte| *byte == 9));
    let after = Range { first: sectors - SECTORS_PER_BLOCK, count: 1 };
    assert_eq!(uniform(&rig.read(after)), Some(base_byte(after.first)));
}
