//! Writing a snapshot: content first, manifest last, and nothing of an older snapshot touched.
//!
//! ```text
//!  put_block: pages ─▶ zero? equal to the parent's? stored already? ─▶ piece ─▶ pack
//!  commit:    records ─▶ pack ─▶ fsync pack, its directory ─▶ manifest under a temporary name
//!             ─▶ fsync ─▶ rename ─▶ fsync of the directory
//! ```
//! Until the rename, the snapshot does not exist; from then on it is complete. A writer that is
//! dropped before removes what it has written.

mod chunk;
mod commit;
mod error;
mod pack_file;
mod staging;

pub use chunk::Statistics;
pub use commit::{Committed, Description, commit_manifest};
pub use error::WriteError;
pub use staging::Staging;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::id::{PackId, SnapshotId};
use crate::image_reader::{ImageReader, of_chunk};
use crate::layout::{BlockIndex, LAYERS_MAX, PAGE_BYTES, PAGES_PER_BLOCK, page_count};
use crate::manifest::{Image, ImageKind, Layer, Layers};
use crate::name::Name;
use crate::page_set::PageSet;
use crate::record::Piece;
use crate::snapshot::Snapshot;
use crate::storage::Storage;

use chunk::{Change, ChunkWriter};
use pack_file::PackFile;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What the new pack is called.
    pub pack: PackId,
    /// The level of zstd; none to store pages as they are, which is what a fast resume wants.
    pub compression: Option<i32>,
    /// How to find pages that were given but have not changed.
    pub compare: Compare,
}

/// How a writer finds pages that were given but are the same as in the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// By digest, if all pages of one of the parent's pieces are given. Reads from the parent only
    /// to put a chunk together that has become many pieces.
    Digests,
    /// Page by page: reads from the parent every chunk of which pages are given.
    Pages,
}

/// Writes one snapshot.
pub struct Writer {
    storage: Arc<dyn Storage>,
    layers: Layers,
    parent: Option<SnapshotId>,
    images: Vec<ImageWriter>,
    chunks: ChunkWriter,
    pack: PackFile,
}

/// An image of the new snapshot.
struct ImageWriter {
    image: Image,
    /// The same image in the parent.
    base: Option<ImageReader>,
    /// Blocks that were put, with all their pieces, sorted by chunk.
    changed: BTreeMap<BlockIndex, Vec<Piece>>,
}

impl Options {
    /// A pack with a new name; nothing is compressed, and pages are compared with the parent's.
    ///
    /// # Errors
    /// The host has no random numbers.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { pack: PackId::random()?, compression: None, compare: Compare::Pages })
    }
}

impl Writer {
    /// Begins a snapshot with these images and creates its pack. What is not put is taken over
    /// from the images of the same name of the parent; otherwise it is zero in RAM, and as in its
    /// base on a disk.
    ///
    /// # Errors
    /// The pack cannot be created (nothing may be called that yet), an image has another length
    /// than in the parent, or the parent consists of [`LAYERS_MAX`] packs and has to be compacted
    /// first.
    pub fn create(
        storage: Arc<dyn Storage>,
        pack_path: &Path,
        options: Options,
        images: Vec<Image>,
        parent: Option<&Snapshot>,
    ) -> Result<Self, WriteError> {
        let slots = parent.map(|parent| parent.manifest().layers.slots.clone());
        let images = images
            .into_iter()
            .map(|image| ImageWriter::new(image, parent))
            .collect::<Result<Vec<_>, _>>()?;
        let parent = parent.map(Snapshot::id);
        Self::with_layers(storage, pack_path, options, images, slots.unwrap_or_default(), parent)
    }

    /// Begins the same snapshot again, with nothing in it yet but the layers to be kept.
    pub(crate) fn create_again(
        storage: Arc<dyn Storage>,
        pack_path: &Path,
        options: Options,
        snapshot: &Snapshot,
        keep: &BTreeSet<PackId>,
    ) -> Result<Self, WriteError> {
        let manifest = snapshot.manifest();
        let kept = |slot: &Option<Layer>| slot.filter(|layer| keep.contains(&layer.pack));
        let slots = manifest.layers.slots.iter().map(kept).collect();
        let images = manifest.images.iter();
        let images = images.map(|index| ImageWriter::empty(index.image.clone())).collect();
        Self::with_layers(storage, pack_path, options, images, slots, manifest.metadata.parent)
    }

    fn with_layers(
        storage: Arc<dyn Storage>,
        pack_path: &Path,
        options: Options,
        images: Vec<ImageWriter>,
        slots: Vec<Option<Layer>>,
        parent: Option<SnapshotId>,
    ) -> Result<Self, WriteError> {
        let layers = add_own(slots, options.pack)?;
        let chunks = ChunkWriter::new(layers.own, options)?;
        let pack = PackFile::create(Arc::clone(&storage), pack_path, options.pack)?;
        Ok(Self { storage, layers, parent, images, chunks, pack })
    }

    /// Gives pages of a block: `content` has those of `pages`, one after the other. The other
    /// pages stay as they were. A block that is put again is changed again.
    ///
    /// # Errors
    /// There is no such block, or the number of bytes does not fit: nothing has changed. Or the
    /// parent cannot be read, or the pack not be written: the block stays as it was, and after a
    /// failed write no snapshot comes of this any more.
    pub fn put_block(
        &mut self,
        image: &Name,
        block: BlockIndex,
        pages: &PageSet,
        content: &[u8],
    ) -> Result<(), WriteError> {
        let expected = pages.count().saturating_mul(PAGE_BYTES);
        if content.len() != expected {
            return Err(WriteError::ContentBytes { block, expected, found: content.len() });
        }
        self.put(image, block, pages, Some(content))
    }

    /// Makes pages of a block zero, whatever they were.
    ///
    /// # Errors
    /// As [`Self::put_block`].
    pub fn put_zero(
        &mut self,
        image: &Name,
        block: BlockIndex,
        pages: &PageSet,
    ) -> Result<(), WriteError> {
        self.put(image, block, pages, None)
    }

    /// Gives all pages that were copied aside.
    ///
    /// # Errors
    /// As [`Self::put_block`].
    pub fn put_staged(&mut self, staging: &Staging) -> Result<(), WriteError> {
        staging.blocks().try_for_each(|(image, block, pages, content)| {
            self.put_block(image, block, pages, content)
        })
    }

    /// Whether pieces of this slot's pack are pieces of the new snapshot, too.
    pub(crate) fn has_layer(&self, slot: u8) -> bool {
        slot != self.layers.own && self.layers.get(slot).is_some()
    }

    /// Lets a block consist of these pieces.
    pub(crate) fn adopt(
        &mut self,
        image: &Name,
        block: BlockIndex,
        pieces: Vec<Piece>,
    ) -> Result<(), WriteError> {
        find(&mut self.images, image)?.changed.insert(block, pieces);
        Ok(())
    }

    fn put(
        &mut self,
        image: &Name,
        block: BlockIndex,
        pages: &PageSet,
        mut content: Option<&[u8]>,
    ) -> Result<(), WriteError> {
        let Self { images, chunks, pack, .. } = self;
        let writer = find(images, image)?;
        writer.check(block, pages)?;
        let old = writer.pieces(block)?;
        let mut new = Vec::with_capacity(old.len());
        for number in 0..crate::layout::CHUNKS_PER_BLOCK {
            let mut pieces = of_chunk(&old, number).to_vec();
            let pages = pages.chunk(number);
            if pages != 0 {
                let bytes = (pages.count_ones() as usize).saturating_mul(PAGE_BYTES);
                let split = content.and_then(|content| content.split_at_checked(bytes));
                let change = Change {
                    chunk: block.chunk(number),
                    pages,
                    content: split.map(|(this, _)| this),
                    keeps_zeroes: writer.image.kind == ImageKind::Disk,
                };
                content = split.map(|(_, rest)| rest);
                chunks.change(&mut pieces, change, writer.base.as_mut(), pack)?;
            }
            new.append(&mut pieces);
        }
        writer.changed.insert(block, new);
        Ok(())
    }
}

fn find<'a>(images: &'a mut [ImageWriter], name: &Name) -> Result<&'a mut ImageWriter, WriteError> {
    let found = images.iter_mut().find(|writer| writer.image.name == *name);
    found.ok_or_else(|| WriteError::NoImage { name: name.clone() })
}

impl ImageWriter {
    fn empty(image: Image) -> Self {
        Self { image, base: None, changed: BTreeMap::new() }
    }

    fn new(image: Image, parent: Option<&Snapshot>) -> Result<Self, WriteError> {
        let base = parent.and_then(|parent| parent.image(&image.name).ok());
        if let Some(base) = &base {
            let parent_bytes = base.index().image.bytes;
            if parent_bytes != image.bytes {
                let Image { name, bytes, .. } = image;
                return Err(WriteError::ImageBytes { name, bytes, parent_bytes });
            }
        }
        Ok(Self { base, ..Self::empty(image) })
    }

    fn check(&self, block: BlockIndex, pages: &PageSet) -> Result<(), WriteError> {
        let all = page_count(self.image.bytes) as usize;
        let first = (block.0 as usize).saturating_mul(PAGES_PER_BLOCK);
        let inside = PageSet::first(all.saturating_sub(first));
        if pages.minus(&inside).is_empty() {
            return Ok(());
        }
        Err(WriteError::OutOfImage { name: self.image.name.clone(), block })
    }

    /// What the block is made of as of now.
    fn pieces(&mut self, block: BlockIndex) -> Result<Vec<Piece>, WriteError> {
        match (self.changed.get(&block), &mut self.base) {
            (Some(pieces), _) => Ok(pieces.clone()),
            (None, Some(base)) => Ok(base.pieces(block)?.to_vec()),
            (None, None) => Ok(Vec::new()),
        }
    }
}

/// The first free slot is for the new pack.
fn add_own(mut slots: Vec<Option<Layer>>, pack: PackId) -> Result<Layers, WriteError> {
    if slots.iter().flatten().any(|layer| layer.pack == pack) {
        return Err(WriteError::PackName);
    }
    let layer = Some(Layer { pack, pack_bytes: 0 });
    let free = slots.iter().position(Option::is_none).unwrap_or(slots.len());
    if free >= LAYERS_MAX {
        return Err(WriteError::TooManyLayers);
    }
    match slots.get_mut(free) {
        Some(slot) => *slot = layer,
        None => slots.push(layer),
    }
    // Below LAYERS_MAX.
    Ok(Layers { slots, own: free as u8 })
}
