//! Every byte of a snapshot counts: a change is found at open, or when the page is loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::machine::*;
use crate::layout::{CHUNK_BYTES, PAGE_BYTES};
use crate::*;

/// A base, and a small snapshot on top of it with every kind of piece: plain chunks, pages alone,
/// compressed ones, and some that are used in part.
struct Small {
    directory: tempfile::TempDir,
    base: Written,
    child: Written,
    packs: [Arc<Vec<u8>>; 2],
}

/// What a snapshot's manifest is, and what its images hold.
struct Written {
    manifest: Vec<u8>,
    pages: Pages,
}

type Pages = BTreeMap<(&'static str, u32), [u8; PAGE_BYTES]>;

fn small() -> Small {
    let directory = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    let written = |model: &Model| Written {
        manifest: read("manifest"),
        pages: model.0.iter().map(|(key, seed)| (*key, content(*seed))).collect(),
    };
    let pages = (16..32).chain([40, 41, 1538]).map(|page| (("ram", page), u64::from(page)));
    let base = Model(pages.collect());
    let (parent, _) = write(directory.path(), options(1), None, &base, &[]);
    let mut child = base.clone();
    let base = written(&base);
    child.0.extend([(("ram", 40), 77), (("ram", 18), 78), (("rootfs", 1), 79)]);
    let cold = Options { compression: Some(1), ..options(2) };
    let before = Model(base.pages.keys().map(|key| (*key, key.1.into())).collect());
    write(directory.path(), cold, Some((&parent, &before)), &child, &[]);
    let child = written(&child);
    let packs = [1, 2].map(|id| Arc::new(read(&PackId([id; 16]).file_name())));
    Small { directory, base, child, packs }
}

/// A pack with one changed bit.
struct Flipped {
    pack: Arc<Vec<u8>>,
    at: usize,
}

impl ReadAt for Flipped {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.pack.read_exact_at(buffer, offset)?;
        let place = self.at.checked_sub(offset as usize).and_then(|at| buffer.get_mut(at));
        if let Some(byte) = place {
            *byte ^= 1 << (self.at % 8);
        }
        Ok(())
    }

    fn len_bytes(&self) -> std::io::Result<u64> {
        self.pack.len_bytes()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn open(manifest: &[u8], packs: &[Arc<dyn ReadAt>]) -> Result<Snapshot, OpenError> {
    let add = |search: PackSearch, pack: &Arc<dyn ReadAt>| search.content("pack", Arc::clone(pack));
    Snapshot::from_bytes("manifest", manifest, &packs.iter().fold(PackSearch::new(), add))
}

impl Small {
    fn packs(&self) -> [Arc<dyn ReadAt>; 2] {
        self.packs.clone().map(|pack| pack as Arc<dyn ReadAt>)
    }
}

impl Written {
    /// Whether the snapshot opens and all of its pages are loaded. What is loaded must be right.
    fn loads(&self, packs: &[Arc<dyn ReadAt>]) -> bool {
        let Ok(snapshot) = open(&self.manifest, packs) else { return false };
        let chunks = self.pages.keys().map(|(image, page)| (*image, PageIndex(*page).chunk()));
        let chunks: BTreeSet<_> = chunks.collect();
        let mut readers =
            ["ram", "rootfs"].map(|image| (image, snapshot.image(&name(image)).unwrap()));
        let mut all = true;
        for (image, chunk) in chunks {
            let (_, reader) = readers.iter_mut().find(|(of, _)| *of == image).unwrap();
            let mut out = [0xcc; CHUNK_BYTES];
            if reader.load_chunk(chunk, &mut out).is_err() {
                assert!(out.iter().all(|byte| *byte == 0), "unverified content was handed out");
                all = false;
                continue;
            }
            for (page, content) in (chunk.first_page().0..).zip(out.as_chunks().0) {
                let expected = self.pages.get(&(image, page)).unwrap_or(&[0; PAGE_BYTES]);
                assert!(content == expected, "page {page} of {image}");
            }
        }
        all
    }
}

#[test]
fn any_flipped_bit_of_a_manifest_is_found_at_open() {
    let small = small();
    assert!(small.child.loads(&small.packs()));
    for at in 0..small.child.manifest.len() {
        for bit in 0..8 {
            let mut changed = small.child.manifest.clone();
            changed[at] ^= 1 << bit;
            assert!(open(&changed, &small.packs()).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn any_flipped_byte_of_a_pack_is_found_at_open_or_when_it_is_loaded() {
    let small = small();
    for pack in 0..2 {
        for at in 0..small.packs[pack].len() {
            let mut packs = small.packs();
            packs[pack] = Arc::new(Flipped { pack: Arc::clone(&small.packs[pack]), at });
            // The base's pack also has what the child replaced, which is only the base's concern.
            let found = !small.child.loads(&packs) || !small.base.loads(&packs);
            assert!(found, "byte {at} of pack {pack}");
        }
    }
}

#[test]
fn a_cut_or_longer_file_is_refused_at_open() {
    let small = small();
    let manifest = &small.child.manifest;
    for len in 0..manifest.len() {
        assert!(open(&manifest[..len], &small.packs()).is_err(), "{len} bytes");
    }
    let longer = [manifest.as_slice(), &[0]].concat();
    let error = open(&longer, &small.packs()).unwrap_err();
    assert!(matches!(error, OpenError::Manifest { source: ManifestError::Length { .. }, .. }));
    for pack in 0..2 {
        for len in [0, 4095, 4096, small.packs[pack].len() - 1] {
            let mut packs = small.packs();
            packs[pack] = Arc::new(small.packs[pack][..len].to_vec());
            assert!(open(manifest, &packs).is_err(), "{len} bytes of pack {pack}");
        }
    }
}

#[test]
fn a_missing_pack_is_refused_by_name() {
    let small = small();
    let error = open(&small.child.manifest, &small.packs()[1..]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("the pack {} of snapshot", PackId([1; 16]))), "{error}");
}

#[test]
fn a_fault_says_which_page_of_which_layer_it_was() {
    let small = small();
    let mut packs = small.packs();
    packs[0] = Arc::new(Flipped { pack: Arc::clone(&small.packs[0]), at: 4096 + 5 });
    let snapshot = open(&small.child.manifest, &packs).unwrap();
    let mut reader = snapshot.memory().unwrap();
    let mut out = [0; CHUNK_BYTES];
    let error = reader.load_chunk(PageIndex(20).chunk(), &mut out).unwrap_err();
    let pack = PackId([1; 16]);
    assert_eq!(
        error.to_string(),
        format!(
            "load page 16 of image ram of snapshot {} from layer 0 (pack {pack}), 65536 bytes at 4096",
            snapshot.id()
        )
    );
    assert!(matches!(*error.fault, Fault::Digest { .. }));
    // Other pages are none the worse for it.
    assert_eq!(reader.load_chunk(PageIndex(40).chunk(), &mut out).unwrap(), 0b11 << 8);
    let verification = verify(&snapshot, |_| {});
    assert_eq!((verification.fault_count, verification.faults[0].page), (1, PageIndex(16)));
}

#[test]
fn a_broken_parent_can_still_be_written_over() {
    let small = small();
    let mut packs = small.packs();
    packs[0] = Arc::new(Flipped { pack: Arc::clone(&small.packs[0]), at: 4096 + 5 });
    let parent = open(&small.child.manifest, &packs).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (pack, path) = (directory.path().join("new.pack"), directory.path().join("new"));
    let write = |compare| {
        let (storage, options) = (Arc::new(HostStorage), Options { compare, ..options(3) });
        let mut writer = Writer::create(storage, &pack, options, images(), Some(&parent))?;
        let mut pages = PageSet::EMPTY;
        pages.insert_chunk(1, u16::MAX);
        let chunk: Vec<_> = (0..16).flat_map(content).collect();
        writer.put_block(&name("ram"), BlockIndex(0), &pages, &chunk)?;
        writer.commit(&path, description("new"))
    };
    assert!(matches!(write(Compare::Pages), Err(WriteError::Parent(_))));
    assert!(!pack.exists() && !path.exists());
    write(Compare::Digests).unwrap();
    let search = packs
        .into_iter()
        .fold(PackSearch::new().file(&pack), |search, pack| search.content("pack", pack));
    assert!(verify(&Snapshot::open(&path, &search).unwrap(), |_| {}).is_intact());
}

#[test]
fn a_pack_that_is_cut_after_it_was_opened_is_an_error_and_no_signal() {
    let small = small();
    let path = small.directory.path().join("manifest");
    let search = PackSearch::new().directory(small.directory.path());
    let snapshot = Snapshot::open(&path, &search).unwrap();
    let pack = small.directory.path().join(PackId([1; 16]).file_name());
    std::fs::File::options().write(true).open(pack).unwrap().set_len(4096).unwrap();
    let error = snapshot.memory().unwrap().load_chunk(ChunkIndex(1), &mut [0; CHUNK_BYTES]);
    assert!(matches!(*error.unwrap_err().fault, Fault::Read(_)));
}
