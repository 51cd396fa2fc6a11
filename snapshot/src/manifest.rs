//! The manifest: the one small file that says what a snapshot consists of.
//!
//! It is read whole and checked against its own digest before anything of it is decoded. The same
//! checks run when one is written, so no snapshot is written that could not be read.

mod check;
mod decode;
mod encode;
mod error;
mod header;

pub use error::ManifestError;
pub use header::{Architecture, FORMAT_VERSION, HEADER_BYTES, Header, MAGIC};

use crate::cpu::CpuFeature;
use crate::id::{Digest, PackId, SnapshotId};
use crate::layout::{BlockIndex, PageIndex};
use crate::name::Name;
use crate::record::layer_bit;
use crate::section::Tag;

/// Bytes of one block in the index of an image.
pub const BLOCK_ENTRY_BYTES: usize = 56;

/// Everything that a snapshot says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Of the guest.
    pub architecture: Architecture,
    /// When, from what, and what for.
    pub metadata: Metadata,
    /// The packs; pieces and index entries name them by their slot here.
    pub layers: Layers,
    /// Where RAM is in the guest. In this order the regions make up the image of RAM.
    pub memory_regions: Vec<MemoryRegion>,
    /// RAM and disks.
    pub images: Vec<ImageIndex>,
    /// What the guest has seen of its CPU.
    pub cpu_features: Vec<CpuFeature>,
    /// The pages of RAM that the guest needs first, in order.
    pub working_set: Vec<PageRun>,
    /// The state of the machine's parts.
    pub machine: Vec<MachineSection>,
}

/// When, from what, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Milliseconds since 1970, UTC.
    pub created_unix_ms: u64,
    /// The snapshot that this one was written on top of. It need not exist any more.
    pub parent: Option<SnapshotId>,
    /// Free text without control characters.
    pub label: String,
}

/// The packs of a snapshot, by slot. A slot stays what it is from a parent to its children, so that
/// a record written for the parent means the same in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The slots; none where nothing refers to a pack any more.
    pub slots: Vec<Option<Layer>>,
    /// The slot of the pack that was written for this snapshot.
    pub own: u8,
}

/// One pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Its name.
    pub pack: PackId,
    /// Its length.
    pub pack_bytes: u64,
}

/// A range of guest physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryRegion {
    /// Guest physical address; a multiple of the page size.
    pub guest_address: u64,
    /// Its length; a multiple of the page size.
    pub bytes: u64,
}

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Image {
    /// RAM or a disk.
    pub kind: ImageKind,
    /// What the machine calls it.
    pub name: Name,
    /// Its length.
    pub bytes: u64,
}

/// RAM or a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    /// Guest RAM. A snapshot has at most one such image.
    Memory,
    /// What a disk holds beside what its base has.
    Disk,
}

/// An image and its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIndex {
    /// Which image.
    pub image: Image,
    /// Its blocks that it has pages of, ascending.
    pub blocks: Vec<BlockEntry>,
}

/// Where the record of one block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEntry {
    /// The block.
    pub block: BlockIndex,
    /// Slots of the layers that its pieces come from, a bit each.
    pub layers: u32,
    /// Where the record begins in its pack.
    pub record_offset: u64,
    /// Bytes of the record.
    pub record_bytes: u32,
    /// Pages of the block that it has.
    pub page_count: u16,
    /// The slot of the layer whose pack has the record.
    pub record_layer: u8,
    /// Digest of the record.
    pub digest: Digest,
}

/// Pages that follow each other and were first touched in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PageRun {
    /// The first page of RAM.
    pub first_page: u32,
    /// How many.
    pub page_count: u32,
    /// Whether they were written, or only read.
    pub written: bool,
}

/// The state of one part of the machine, as [`crate::Section`] saves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSection {
    /// Which instance, such as the identifier of a drive.
    pub name: Name,
    /// Kind and version.
    pub tag: Tag,
    /// The encoded state.
    pub bytes: Vec<u8>,
}

impl Manifest {
    /// The bytes of the manifest's file, and the name that they give the snapshot.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] names what no reader would accept.
    pub fn encode(&self) -> Result<(Vec<u8>, SnapshotId), ManifestError> {
        check::check(self)?;
        encode::encode(self)
    }

    /// Reads a manifest from the bytes of its file.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, SnapshotId), ManifestError> {
        let header = Header::decode(bytes)?;
        header.check_digest(bytes)?;
        let manifest = decode::decode(&header, bytes)?;
        check::check(&manifest)?;
        Ok((manifest, SnapshotId(header.digest)))
    }

    /// The image of RAM.
    pub fn memory(&self) -> Option<&ImageIndex> {
        self.images.iter().find(|index| index.image.kind == ImageKind::Memory)
    }

    /// Where a page of RAM is in the guest.
    pub fn guest_address(&self, page: PageIndex) -> Option<u64> {
        let mut offset = page.offset_bytes();
        for region in &self.memory_regions {
            match offset.checked_sub(region.bytes) {
                None => return region.guest_address.checked_add(offset),
                Some(behind) => offset = behind,
            }
        }
        None
    }

    /// An image by its name.
    pub fn image(&self, name: &Name) -> Option<&ImageIndex> {
        self.images.iter().find(|index| index.image.name == *name)
    }
}

impl Layers {
    /// The layer in a slot.
    pub fn get(&self, slot: u8) -> Option<&Layer> {
        self.slots.get(usize::from(slot)).and_then(Option::as_ref)
    }

    /// The slots that are in use, and their layers.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Layer)> {
        (0_u8..).zip(&self.slots).filter_map(|(slot, layer)| Some((slot, layer.as_ref()?)))
    }

    /// The slots that are in use, a bit each.
    pub(crate) fn mask(&self) -> u32 {
        self.iter().fold(0, |mask, (slot, _)| mask | layer_bit(slot))
    }
}

impl ImageIndex {
    /// The entry of a block; none if all of it is zero.
    pub fn entry(&self, block: BlockIndex) -> Option<&BlockEntry> {
        let place = self.blocks.binary_search_by_key(&block, |entry| entry.block).ok()?;
        self.blocks.get(place)
    }
}

impl BlockEntry {
    /// Slots of the layers that are needed to load the block, a bit each.
    pub(crate) fn needed_layers(&self) -> u32 {
        self.layers | layer_bit(self.record_layer)
    }
}

#[cfg(test)]
mod tests;
