//! A model of a machine's images, its snapshots in memory, and both compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::layout::{BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK};
use crate::*;

pub const RAM_BYTES: u64 = 3 * BLOCK_BYTES as u64 + 5 * PAGE_BYTES as u64;
pub const DISK_BYTES: u64 = BLOCK_BYTES as u64 + 700;

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn images() -> Vec<Image> {
    vec![
        Image { kind: ImageKind::Memory, name: name("ram"), bytes: RAM_BYTES },
        Image { kind: ImageKind::Disk, name: name("rootfs"), bytes: DISK_BYTES },
    ]
}

/// What the images hold: the pages that are there, by image and page, each filled with a number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model(pub BTreeMap<(&'static str, u32), u64>);

impl Model {
    /// A page of the image.
    pub fn page(&self, image: &'static str, page: u32) -> [u8; PAGE_BYTES] {
        self.0.get(&(image, page)).map_or([0; PAGE_BYTES], |seed| content(*seed))
    }
}

/// The number of a page of zeroes that is there all the same, as it may be on a disk.
pub const ZEROES: u64 = u64::MAX;

/// The content of a page: different for each number, and not zero but for [`ZEROES`].
pub fn content(seed: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    if seed == ZEROES {
        return page;
    }
    for (place, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 + place as u64 / 64).to_le_bytes();
    }
    page
}

pub fn description(label: &str) -> Description {
    let tag = Tag { kind: *b"VBLK", version: 3 };
    Description {
        architecture: Architecture::Aarch64,
        created_unix_ms: 1_700_000_000_000,
        label: label.into(),
        memory_regions: vec![
            MemoryRegion { guest_address: 0x8000_0000, bytes: BLOCK_BYTES as u64 },
            MemoryRegion { guest_address: 1 << 32, bytes: RAM_BYTES - BLOCK_BYTES as u64 },
        ],
        cpu_features: vec![CpuFeature {
            name: name("ID_AA64PFR0_EL1.SVE"),
            value: 1,
            rule: CpuRule::AtLeast,
        }],
        working_set: vec![
            PageRun { first_page: 7, page_count: 2, written: true },
            PageRun { first_page: 0, page_count: 1, written: false },
        ],
        machine: vec![MachineSection { name: name("rootfs"), tag, bytes: vec![1, 2, 3] }],
    }
}

pub fn options(pack: u8) -> Options {
    Options { pack: PackId([pack; 16]), compression: None, compare: Compare::Pages }
}

/// Writes a snapshot into a directory: the pages that differ between two states of the model, and
/// these pages, whether they differ or not.
pub fn write(
    directory: &Path,
    options: Options,
    parent: Option<(&Snapshot, &Model)>,
    model: &Model,
    also: &[(&'static str, u32)],
) -> (Snapshot, Committed) {
    let pack_path = directory.join(options.pack.file_name());
    let base = parent.map(|(snapshot, _)| snapshot);
    let mut writer =
        Writer::create(Arc::new(HostStorage), &pack_path, options, images(), base).unwrap();
    let before = parent.map(|(_, model)| model.clone()).unwrap_or_default();
    put_changes(&mut writer, &before, model, also).unwrap();
    let path = directory.join("manifest");
    let committed = writer.commit(&path, description("test")).unwrap();
    let search = PackSearch::new().directory(directory);
    (Snapshot::open(&path, &search).unwrap(), committed)
}

/// Gives a writer the pages that differ, block by block.
pub fn put_changes(
    writer: &mut Writer,
    before: &Model,
    after: &Model,
    also: &[(&'static str, u32)],
) -> Result<(), WriteError> {
    let mut blocks: BTreeMap<(&'static str, u32), PageSet> = BTreeMap::new();
    let keys = before.0.keys().chain(after.0.keys());
    for key in keys.filter(|key| before.0.get(key) != after.0.get(key)).chain(also) {
        let (image, page) = *key;
        let block = PageIndex(page).block().0;
        blocks.entry((image, block)).or_default().insert(PageIndex(page).in_block());
    }
    for ((image, block), pages) in blocks {
        let first = BlockIndex(block).first_page().0;
        let content: Vec<u8> =
            pages.pages().flat_map(|page| after.page(image, first + page as u32)).collect();
        writer.put_block(&name(image), BlockIndex(block), &pages, &content)?;
    }
    Ok(())
}

/// Reads both images, in every way there is, and compares every byte.
pub fn assert_holds(snapshot: &Snapshot, model: &Model) {
    let verification = verify(snapshot, |_| {});
    assert!(verification.is_intact(), "{:?}", verification.faults);
    assert_eq!(verification.pages, model.0.len() as u64);
    for image in ["ram", "rootfs"] {
        let mut reader = snapshot.image(&name(image)).unwrap();
        let blocks = layout::block_count(reader.image_bytes());
        for block in (0..blocks).map(BlockIndex) {
            assert_block_holds(&mut reader, model, image, block);
        }
        assert!(reader.pages(BlockIndex(blocks)).is_err());
    }
}

fn assert_block_holds(
    reader: &mut ImageReader,
    model: &Model,
    image: &'static str,
    block: BlockIndex,
) {
    let mut out: Box<[u8; BLOCK_BYTES]> = vec![0xaa; BLOCK_BYTES].try_into().unwrap();
    let pages = reader.load_block(block, &mut out).unwrap();
    assert_eq!(pages, reader.pages(block).unwrap());
    for page in 0..PAGES_PER_BLOCK {
        let number = block.first_page().0 + page as u32;
        let place = page * PAGE_BYTES;
        assert!(
            out[place..place + PAGE_BYTES] == model.page(image, number),
            "page {number} of {image}"
        );
        assert_eq!(pages.contains(page), model.0.contains_key(&(image, number)));
    }
    let mut chunk = [0xbb; layout::CHUNK_BYTES];
    for number in 0..layout::CHUNKS_PER_BLOCK {
        let mask = reader.load_chunk(block.chunk(number), &mut chunk).unwrap();
        let place = number * layout::CHUNK_BYTES;
        assert!(chunk == out[place..place + layout::CHUNK_BYTES], "chunk {number} of {block}");
        assert_eq!(mask, pages.chunk(number));
    }
}
