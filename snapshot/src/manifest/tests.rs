//! A manifest that no writer writes is refused by what is wrong with it.
#![allow(clippy::arithmetic_side_effects)]

use super::header::seal;
use super::*;
use crate::cpu::CpuRule;
use crate::record::PIECE_ENTRY_BYTES;

fn manifest() -> Manifest {
    let name = |text: &str| Name::new(text).unwrap();
    let entry = |block: u32| BlockEntry {
        block: BlockIndex(block),
        layers: 0b100,
        record_offset: 4096,
        record_bytes: 2 * PIECE_ENTRY_BYTES as u32,
        page_count: 2,
        record_layer: 2,
        digest: Digest([3; 32]),
    };
    let layer = Layer { pack: PackId([7; 16]), pack_bytes: 1 << 20 };
    let tag = Tag { kind: *b"VBLK", version: 1 };
    Manifest {
        architecture: Architecture::Aarch64,
        metadata: Metadata {
            created_unix_ms: 5,
            parent: Some(SnapshotId(Digest([4; 32]))),
            label: "größer".into(),
        },
        layers: Layers { slots: vec![None, None, Some(layer)], own: 2 },
        memory_regions: vec![MemoryRegion { guest_address: 1 << 31, bytes: 8 << 20 }],
        images: vec![ImageIndex {
            image: Image { kind: ImageKind::Memory, name: name("ram"), bytes: 8 << 20 },
            blocks: vec![entry(0), entry(3)],
        }],
        cpu_features: vec![CpuFeature { name: name("SVE"), value: 3, rule: CpuRule::Bits }],
        working_set: vec![PageRun { first_page: 2047, page_count: 1, written: false }],
        machine: vec![MachineSection { name: name("rootfs"), tag, bytes: vec![1; 300] }],
    }
}

/// What a changed manifest is refused for, when written and when read.
fn refusal(change: impl FnOnce(&mut Manifest)) -> String {
    let mut changed = manifest();
    change(&mut changed);
    let written = changed.encode().unwrap_err().to_string();
    let (bytes, _) = encode::encode(&changed).unwrap();
    let read = Manifest::decode(&bytes).unwrap_err().to_string();
    assert_eq!(written, read);
    read
}

/// What bytes are refused for, after the digest was made right again.
fn refusal_of_bytes(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (mut bytes, _) = manifest().encode().unwrap();
    change(&mut bytes);
    let total_bytes = bytes.len() as u64;
    bytes[24..32].copy_from_slice(&total_bytes.to_le_bytes());
    seal(&mut bytes);
    Manifest::decode(&bytes).unwrap_err().to_string()
}

fn find(bytes: &[u8], text: &[u8]) -> usize {
    bytes.windows(text.len()).position(|window| window == text).unwrap()
}

#[test]
fn a_manifest_comes_back_as_it_was() {
    let (bytes, id) = manifest().encode().unwrap();
    assert_eq!(Manifest::decode(&bytes).unwrap(), (manifest(), id));
    assert_eq!(Header::decode(&bytes[..HEADER_BYTES]).unwrap().section_count, 7);
}

#[test]
fn a_page_of_ram_has_a_place_in_the_guest() {
    let mut manifest = manifest();
    manifest.memory_regions.push(MemoryRegion { guest_address: 1 << 32, bytes: 8192 });
    let address = |page| manifest.guest_address(PageIndex(page));
    assert_eq!(address(0), Some(1 << 31));
    assert_eq!(address(2047), Some((1 << 31) + (8 << 20) - 4096));
    assert_eq!((address(2048), address(2049)), (Some(1 << 32), Some((1 << 32) + 4096)));
    assert_eq!(address(2050), None);
}

#[test]
fn the_header_is_refused_before_anything_else_is_read() {
    let (good, _) = manifest().encode().unwrap();
    let header = |at: usize, value: u8| {
        let mut bytes = good[..HEADER_BYTES].to_vec();
        bytes[at] = value;
        Header::decode(&bytes).unwrap_err().to_string()
    };
    assert!(header(0, b'X').starts_with("this is no snapshot manifest"));
    assert_eq!(header(8, 2), "the manifest has format version 2, and this program reads 1");
    assert_eq!(header(12, 9), "the manifest is for architecture 9, which is unknown");
    assert!(header(17, 0x40).starts_with("the manifest counts in pages of 16384 bytes"));
    assert!(header(30, 1).contains("is larger than 67108864 bytes"));
    assert!(Header::decode(&good[..95]).is_err());
    let mut other = good;
    other[HEADER_BYTES - 1] ^= 1;
    assert!(matches!(Manifest::decode(&other), Err(ManifestError::Digest { .. })));
}

#[test]
fn sections_that_nobody_knows_or_that_are_missing_are_refused_by_name() {
    let change = |from: &[u8], to: &[u8]| {
        refusal_of_bytes(|bytes| {
            let at = find(bytes, from);
            bytes[at..at + to.len()].copy_from_slice(to);
        })
    };
    assert_eq!(
        change(b"WSET", b"XSET"),
        "the manifest has section XSET v1 of group 1 where WSET v1 should be"
    );
    assert!(change(b"LAYR\x01", b"LAYR\x02").contains("LAYR v2 of group 1 where LAYR v1"));
    assert!(change(b"VBLK\x01\0\x02", b"VBLK\x01\0\x03").contains("VBLK v1 of group 3"));
    assert!(change(b"META\x01\0\x01\x00", b"META\x01\0\x01\x01").contains("of the manifest"));
    let fewer = refusal_of_bytes(|bytes| bytes[20] = 6);
    assert!(fewer.starts_with("the list of sections of the manifest has"), "{fewer}");
    let more = refusal_of_bytes(|bytes| bytes[20] = 8);
    assert_eq!(more, "read the list of sections of the manifest");
    assert!(refusal_of_bytes(|bytes| bytes[22] = 8).contains("section_count = 524295"));
    assert!(refusal_of_bytes(|bytes| bytes.push(0)).contains("has 1 bytes too many"));
    assert!(refusal_of_bytes(|bytes| bytes[40] ^= 1).starts_with("the CPU features have digest"));
}

#[test]
fn lists_that_are_too_long_are_refused_before_they_are_read() {
    let longer = |what: &[u8], bytes: u32| {
        refusal_of_bytes(|manifest| {
            let at = find(manifest, what);
            let name_bytes = usize::from(manifest[at + 7]);
            let body_bytes = u32::from_le_bytes(manifest[at + 8..at + 12].try_into().unwrap());
            manifest[at + 8..at + 12].copy_from_slice(&(body_bytes + bytes).to_le_bytes());
            let end = at + 12 + name_bytes + body_bytes as usize;
            manifest.splice(end..end, std::iter::repeat_n(0, bytes as usize));
        })
    };
    assert!(longer(b"LAYR\x01", 24 * 30).contains("entries = 32"));
    assert!(longer(b"MEMR\x01", 16 * 64).contains("entries = 64"));
    assert!(longer(b"IMGX\x01", 56 * 16384).contains("entries = 16384"));
    assert!(longer(b"WSET\x01", 12 << 18).contains("entries = 262144"));
}

#[test]
fn numbers_that_do_not_fit_each_other_are_refused_by_field() {
    let refuses = |change: fn(&mut Manifest), expected: &str| {
        let text = refusal(change);
        assert!(text.contains(expected), "{text:?} does not have {expected:?}");
    };
    refuses(|it| it.metadata.label = "x".repeat(257), "META of the manifest: label = 257");
    refuses(|it| it.metadata.label = "a\nb".into(), "no control characters");
    refuses(|it| it.layers.own = 1, "own = 1");
    refuses(|it| it.layers.slots.push(None), "the last slot has a layer");
    refuses(|it| it.layers.slots[0] = it.layers.slots[2], "no pack is in two slots");
    refuses(|it| it.layers.slots[2].as_mut().unwrap().pack_bytes = 4095, "pack_bytes = 4095");
    refuses(|it| it.memory_regions[0].bytes = 4 << 20, "bytes of all = 4194304");
    refuses(|it| it.memory_regions[0].guest_address = u64::MAX - 4095, "the address space");
    refuses(|it| it.memory_regions[0].guest_address = 5, "whole pages");
    refuses(|it| it.memory_regions.push(it.memory_regions[0]), "ascending, no overlap");
    refuses(|it| it.images[0].image.bytes = (32 << 30) + 1, "at most 32 GiB");
    refuses(|it| it.images.push(it.images[0].clone()), "no name twice");
    refuses(|it| it.images[0].blocks[1].block = BlockIndex(0), "blocks ascend");
    refuses(|it| it.images[0].blocks[1].block = BlockIndex(4), "inside of the image");
    refuses(|it| it.images[0].blocks[0].layers = 1, "only slots that have a layer");
    refuses(|it| it.images[0].blocks[0].layers = 0, "only slots that have a layer");
    refuses(|it| it.images[0].blocks[0].page_count = 513, "page_count = 513");
    refuses(|it| it.images[0].blocks[0].record_bytes = 53, "record_bytes = 53");
    refuses(|it| it.images[0].blocks[0].record_offset = 4095, "record_offset = 4095");
    refuses(|it| it.images[0].blocks[0].record_offset = u64::MAX, "inside of its pack");
    refuses(|it| it.images[0].blocks[0].record_layer = 0, "inside of its pack");
    refuses(|it| it.working_set[0].page_count = 2, "pages of the RAM");
    refuses(|it| it.working_set[0].page_count = 0, "pages of the RAM");
    refuses(
        |it| it.working_set = vec![PageRun { first_page: 0, page_count: 2048, written: true }; 3],
        "a page is read once and written once",
    );
    refuses(|it| it.machine.push(it.machine[0].clone()), "no section is there twice");
    refuses(|it| it.machine[0].bytes = vec![0; (8 << 20) + 1], "VBLK v1 of rootfs");
    refuses(|it| it.cpu_features.push(it.cpu_features[0].clone()), "no name twice");
}

#[test]
fn any_cut_body_is_refused() {
    let (bytes, _) = manifest().encode().unwrap();
    for at in HEADER_BYTES..bytes.len() {
        let text = refusal_of_bytes(|bytes| {
            bytes.remove(at);
        });
        assert!(!text.is_empty());
    }
}
