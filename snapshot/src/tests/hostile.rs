//! A snapshot whose digests are all right, written with evil intent: refused, by what is wrong.

use std::sync::Arc;

use super::machine::*;
use crate::layout::{CHUNK_BYTES, PAGE_BYTES};
use crate::record::{self, PIECE_ENTRY_BYTES};
use crate::*;

/// A snapshot of two pages, whose manifest, pieces and pack an attacker changes at will.
struct Attack {
    manifest: Manifest,
    pieces: Vec<Piece>,
    pack: Vec<u8>,
}

impl Attack {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = Model([(3, 1), (9, 2)].map(|(page, it)| (("ram", page), it)).into());
        let (snapshot, committed) = write(directory.path(), options(1), None, &model, &[]);
        let pieces = snapshot.memory().unwrap().pieces(BlockIndex(0)).unwrap().to_vec();
        let pack = std::fs::read(directory.path().join(options(1).pack.file_name())).unwrap();
        Self { manifest: committed.manifest, pieces, pack }
    }

    /// Stores other content for the first piece, compressed or not, with the right digest.
    fn store(&mut self, codec: Codec, content: &[u8]) {
        let piece = &mut self.pieces[0];
        piece.codec = codec;
        piece.offset = self.pack.len() as u64;
        piece.stored_bytes = content.len() as u32;
        piece.digest = Digest::of(content);
        self.pack.extend_from_slice(content);
    }

    /// The snapshot, with all digests and lengths right again.
    fn snapshot(mut self) -> Snapshot {
        let record = record::encode(&mut self.pieces);
        let entry = &mut self.manifest.images[0].blocks[0];
        entry.record_offset = self.pack.len() as u64;
        entry.record_bytes = record.len() as u32;
        entry.digest = Digest::of(&record);
        self.pack.extend_from_slice(&record);
        self.manifest.layers.slots[0].as_mut().unwrap().pack_bytes = self.pack.len() as u64;
        let (bytes, _) = self.manifest.encode().unwrap();
        let search = PackSearch::new().content("pack", Arc::new(self.pack));
        Snapshot::from_bytes("attack", &bytes, &search).unwrap()
    }

    /// What loading the chunk says.
    fn fault(self) -> String {
        let snapshot = self.snapshot();
        let mut out = [1; CHUNK_BYTES];
        let error = snapshot.memory().unwrap().load_chunk(ChunkIndex(0), &mut out).unwrap_err();
        assert!(out.iter().all(|byte| *byte == 0), "unverified content was handed out");
        assert!(!verify(&snapshot, |_| {}).is_intact());
        let cause = std::error::Error::source(&*error.fault);
        format!("{}: {}", error.fault, cause.map(ToString::to_string).unwrap_or_default())
    }
}

fn fault(change: impl FnOnce(&mut Attack)) -> String {
    let mut attack = Attack::new();
    change(&mut attack);
    attack.fault()
}

#[test]
fn a_record_that_does_not_fit_its_entry_is_refused() {
    let refuses = |change: fn(&mut Attack), expected: &str| {
        let text = fault(change);
        assert!(text.contains(expected), "{text:?} does not have {expected:?}");
    };
    refuses(|it| it.manifest.images[0].blocks[0].page_count = 1, "pages = 2");
    refuses(|it| it.pieces[0].used = 1 << 3, "pages = 1");
    refuses(|it| it.pieces[0].layer = 4, "layers = 16");
    refuses(|it| it.pieces[0].offset = 4095, "offset = 4095");
    refuses(|it| it.pieces[0].offset = 1 << 41, "offset = 2199023255552");
    refuses(|it| it.pieces[0].offset = it.pack.len() as u64 - 1, "inside of its pack");
    refuses(|it| it.pieces[0].chunk = 32, "chunk = 32");
    refuses(|it| it.pieces.push(it.pieces[0]), "sorted");
    refuses(
        |it| {
            it.manifest.images[0].image.bytes = 9 * PAGE_BYTES as u64;
            it.manifest.memory_regions.truncate(1);
            it.manifest.memory_regions[0].bytes = 9 * PAGE_BYTES as u64;
            it.manifest.working_set.clear();
        },
        "no page is behind the end of the image",
    );
}

#[test]
fn pages_that_do_not_decompress_to_their_length_are_refused() {
    let frame = |bytes: usize| zstd::bulk::compress(&vec![7; bytes], 1).unwrap();
    let text = fault(|it| it.store(Codec::Zstd, &frame(PAGE_BYTES)));
    assert!(text.starts_with("the content decompresses to 4096 bytes instead of 8192"), "{text}");
    // A frame that says it is larger: the output has its length already, and no more.
    let text = fault(|it| it.store(Codec::Zstd, &frame(16 << 20)));
    assert!(text.starts_with("decompress the content"), "{text}");
    let text = fault(|it| it.store(Codec::Zstd, &[0x28, 0xb5, 0x2f, 0xfd, 0xff]));
    assert!(text.starts_with("decompress the content"), "{text}");
    let text = fault(|it| it.store(Codec::Zstd, b"no frame"));
    assert!(text.starts_with("decompress the content"), "{text}");
}

#[test]
fn a_block_of_the_most_pieces_there_can_be_is_loaded() {
    let mut attack = Attack::new();
    let one = Piece { stored: 1, used: 1, stored_bytes: PAGE_BYTES as u32, ..attack.pieces[0] };
    let digest = Digest::of(&attack.pack[one.offset as usize..][..PAGE_BYTES]);
    let pages = (0..layout::PAGES_PER_BLOCK).map(|page| Piece {
        chunk: (page / 16) as u8,
        stored: 1 << (page % 16),
        used: 1 << (page % 16),
        digest,
        ..one
    });
    attack.pieces = pages.collect();
    let record = record::encode(&mut attack.pieces);
    assert_eq!(record.len(), layout::PAGES_PER_BLOCK * PIECE_ENTRY_BYTES);
    attack.manifest.images[0].blocks[0].page_count = 512;
    let snapshot = attack.snapshot();
    assert!(verify(&snapshot, |_| {}).is_intact());
    let mut out: Box<[u8; layout::BLOCK_BYTES]> = vec![0; layout::BLOCK_BYTES].try_into().unwrap();
    let pages = snapshot.memory().unwrap().load_block(BlockIndex(0), &mut out).unwrap();
    assert_eq!(pages, PageSet::FULL);
    assert!(out.chunks_exact(PAGE_BYTES).all(|page| page == content(1)));
}
