//! A snapshot from a hostile store, and one from a hostile author, whose digests are all right:
//! opened, loaded, verified, shown, compared, and used as the parent of another one.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rotifer_snapshot::layout::{BLOCK_BYTES, CHUNK_BYTES, CHUNKS_PER_BLOCK};
use rotifer_snapshot::storage::in_memory::MemoryStorage;
use rotifer_snapshot::{
    BlockIndex, Compare, Description, Digest, DiskBase, ImageReader, Inspection, MachineSection,
    Manifest, Options, PackId, PackSearch, PageSet, PageSource, Snapshot, Writer, diff, verify,
};

/// Three snapshots of a chain; the last one has a compressed piece.
const MANIFESTS: [&[u8]; 3] = [
    include_bytes!("../../golden/snapshot-v1/base.manifest"),
    include_bytes!("../../golden/snapshot-v1/child.manifest"),
    include_bytes!("../../golden/snapshot-v1/cold.manifest"),
];
const PACKS: [&[u8]; 3] = [
    include_bytes!("../../golden/snapshot-v1/base.pack"),
    include_bytes!("../../golden/snapshot-v1/child.pack"),
    include_bytes!("../../golden/snapshot-v1/cold.pack"),
];
const HEADER_BYTES: usize = 96;
const PIECE_BYTES: usize = 52;
/// Blocks that are loaded of each image: an image may well have 16 384.
const BLOCKS_MAX: usize = 8;

#[derive(Debug, Arbitrary)]
struct Input {
    snapshot: u8,
    /// All of the manifest, out of nowhere, if given.
    manifest: Option<Vec<u8>>,
    /// Bytes of the manifest that become others: near the header, anywhere, or inserted.
    manifest_changes: Vec<(u16, u8)>,
    insertions: Vec<(u16, Vec<u8>)>,
    /// Bytes of packs that become others: pieces, from the front; records, from the back.
    piece_changes: Vec<(u8, u16, u8)>,
    record_changes: Vec<(u8, u16, u8)>,
    cut_pack: Option<(u8, u16)>,
    /// Whether digests are made right again.
    author: bool,
}

fuzz_target!(|input: Input| {
    let mut packs = PACKS.map(<[u8]>::to_vec);
    change_packs(&input, &mut packs);
    let mut manifest = change_manifest(&input);
    if input.author {
        seal(&mut manifest);
        if let Ok((decoded, _)) = Manifest::decode(&manifest) {
            manifest = mend(decoded, &mut packs);
        }
    }
    let search = search(&packs);
    if let Ok(snapshot) = Snapshot::from_bytes("fuzz", &manifest, &search) {
        exercise(&snapshot);
        bear_a_child(&snapshot, &packs);
    }
});

fn search(packs: &[Vec<u8>]) -> PackSearch {
    packs
        .iter()
        .fold(PackSearch::new(), |search, pack| search.content("pack", Arc::new(pack.clone())))
}

fn change_manifest(input: &Input) -> Vec<u8> {
    let golden = MANIFESTS[usize::from(input.snapshot) % MANIFESTS.len()];
    let mut manifest = input.manifest.clone().unwrap_or_else(|| golden.to_vec());
    for (at, value) in &input.manifest_changes {
        let len = manifest.len().max(1);
        if let Some(byte) = manifest.get_mut(usize::from(*at) % len) {
            *byte = *value;
        }
    }
    for (at, bytes) in input.insertions.iter().take(4) {
        let at = usize::from(*at) % (manifest.len() + 1);
        manifest.splice(at..at, bytes.iter().copied());
    }
    manifest
}

fn change_packs(input: &Input, packs: &mut [Vec<u8>; 3]) {
    for (pack, at, value) in &input.piece_changes {
        let pack = &mut packs[usize::from(*pack) % PACKS.len()];
        let len = pack.len();
        pack[usize::from(*at) % len] = *value;
    }
    for (pack, at, value) in &input.record_changes {
        let pack = &mut packs[usize::from(*pack) % PACKS.len()];
        let last = pack.len() - 1;
        pack[last - usize::from(*at) % (8 * PIECE_BYTES)] = *value;
    }
    if let Some((pack, len)) = input.cut_pack {
        packs[usize::from(pack) % PACKS.len()].truncate(len.into());
    }
}

/// Puts the length and the digest into a manifest's header.
fn seal(manifest: &mut [u8]) {
    if manifest.len() < HEADER_BYTES {
        return;
    }
    let total_bytes = manifest.len() as u64;
    manifest[24..32].copy_from_slice(&total_bytes.to_le_bytes());
    let digest = Digest::of_parts(&[&manifest[..64], &manifest[HEADER_BYTES..]]);
    manifest[64..HEADER_BYTES].copy_from_slice(&digest.0);
}

/// Makes all digests right, as far as what they cover is there.
fn mend(mut manifest: Manifest, packs: &mut [Vec<u8>; 3]) -> Vec<u8> {
    let layers = manifest.layers.clone();
    let number = |slot: u8| {
        let pack = layers.get(slot)?.pack;
        PACKS.iter().position(|golden| golden[16..32] == pack.0)
    };
    for slot in &mut manifest.layers.slots {
        let Some(layer) = slot else { continue };
        let Some(at) = PACKS.iter().position(|golden| golden[16..32] == layer.pack.0) else {
            continue;
        };
        layer.pack_bytes = packs[at].len() as u64;
    }
    for entry in manifest.images.iter_mut().flat_map(|index| &mut index.blocks).take(64) {
        let Some(pack) = number(entry.record_layer) else { continue };
        let Some(range) = range(entry.record_offset, entry.record_bytes, &packs[pack]) else {
            continue;
        };
        for piece in range.clone().step_by(PIECE_BYTES) {
            let header = &packs[pack][piece..piece + PIECE_BYTES];
            let offset = u64::from_le_bytes(header[32..40].try_into().expect("eight bytes"));
            let bytes = u32::from_le_bytes(header[40..44].try_into().expect("four bytes"));
            let Some(place) = number(header[49]) else { continue };
            let Some(stored) = self::range(offset, bytes, &packs[place]) else { continue };
            let digest = Digest::of(&packs[place][stored]);
            packs[pack][piece..piece + 32].copy_from_slice(&digest.0);
        }
        entry.digest = Digest::of(&packs[pack][range]);
    }
    manifest.encode().map(|(bytes, _)| bytes).unwrap_or_default()
}

fn range(offset: u64, bytes: u32, pack: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(bytes as usize)?;
    pack.get(start..end)?;
    Some(start..end)
}

/// Everything that reads a snapshot.
fn exercise(snapshot: &Snapshot) {
    let (bytes, id) = snapshot.manifest().encode().expect("what was read can be written");
    assert_eq!(Manifest::decode(&bytes).expect("and read again").1, id);
    assert_eq!(id, snapshot.id(), "a manifest has one encoding");
    let shown = Inspection::of_manifest(snapshot.manifest(), id).to_string();
    assert!(!shown.is_empty());
    let blocks = snapshot.manifest().images.iter().map(|index| index.blocks.len());
    let few_blocks = blocks.sum::<usize>() <= BLOCKS_MAX;
    let intact = few_blocks && verify(snapshot, |_| {}).is_intact();
    for index in &snapshot.manifest().images {
        let mut reader = snapshot.image(&index.image.name).expect("the image exists");
        for entry in index.blocks.iter().take(BLOCKS_MAX) {
            load(&mut reader, entry.block, intact);
        }
        let _ = reader.pages(BlockIndex(u32::MAX)).expect_err("no image has this block");
    }
    for section in &snapshot.manifest().machine {
        // Whatever it is, as if it were about the base of a disk.
        let section = MachineSection { tag: DiskBase::TAG, ..section.clone() };
        if let Ok(base) = DiskBase::decode(&section) {
            let again = DiskBase::decode(&base.section(section.name));
            assert_eq!(again.expect("what was read can be written"), base);
        }
    }
    if intact {
        Inspection::of_snapshot(snapshot).expect("all records can be read");
        assert!(diff(snapshot, snapshot).expect("all content can be read").is_empty());
    }
}

/// Loads a block in both ways; both must find the same.
fn load(reader: &mut ImageReader, block: BlockIndex, intact: bool) {
    let mut whole: Box<[u8; BLOCK_BYTES]> =
        vec![1; BLOCK_BYTES].try_into().expect("it has that length");
    let result = reader.load_block(block, &mut whole);
    assert!(result.is_ok() || !intact, "what was verified can be loaded");
    let Ok(pages) = result else {
        assert!(whole.iter().all(|byte| *byte == 0), "unverified content was handed out");
        return;
    };
    let mut out = [2; CHUNK_BYTES];
    for (number, expected) in (0..CHUNKS_PER_BLOCK).zip(whole.chunks_exact(CHUNK_BYTES)) {
        let mask = reader.load_chunk(block.chunk(number), &mut out).expect("the block was loaded");
        assert!(mask == pages.chunk(number) && out == expected);
    }
}

/// Writes a snapshot on top of this one. If its parent can be read, so can it.
fn bear_a_child(parent: &Snapshot, packs: &[Vec<u8>]) {
    let options = Options { pack: PackId([0xee; 16]), compression: None, compare: Compare::Pages };
    let images: Vec<_> = parent.manifest().images.iter().map(|index| index.image.clone()).collect();
    let storage = MemoryStorage::default();
    let (pack, path) = (Path::new("child.pack"), Path::new("child"));
    let host = Arc::new(storage.clone());
    let Ok(mut writer) = Writer::create(host, pack, options, images, Some(parent)) else { return };
    for index in &parent.manifest().images {
        let pages = PageSet::first(3);
        let content = [[0; 4096], [7; 4096], [8; 4096]].concat();
        // The image may end before, or the parent be broken.
        let _ = writer.put_block(&index.image.name, BlockIndex(0), &pages, &content);
    }
    let Ok(committed) = writer.commit(path, Description::of(parent.manifest())) else { return };
    let files = storage.files();
    let search = search(packs).content("child", Arc::new(files[pack].clone()));
    let child = Snapshot::from_bytes("child", &files[path], &search).expect("it was committed");
    assert_eq!(child.id(), committed.id);
}
