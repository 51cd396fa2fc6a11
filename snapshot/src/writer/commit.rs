//! The end of a snapshot's writing: records, then the manifest, then its name.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::cpu::CpuFeature;
use crate::id::{Digest, SnapshotId};
use crate::layout::BlockIndex;
use crate::manifest::{
    Architecture, BlockEntry, ImageIndex, Layer, Layers, MachineSection, Manifest, MemoryRegion,
    Metadata, PageRun,
};
use crate::record::{self, Piece, layer_bit};
use crate::storage::{Storage, directory_of};

use super::error::{WriteError, storage};
use super::pack_file::PackFile;
use super::{ImageWriter, Statistics, Writer};

/// What a snapshot says of itself beside its images.
#[derive(Debug, Clone)]
pub struct Description {
    /// Of the guest.
    pub architecture: Architecture,
    /// Milliseconds since 1970, UTC.
    pub created_unix_ms: u64,
    /// Free text without control characters.
    pub label: String,
    /// Where RAM is in the guest; together as long as the image of RAM.
    pub memory_regions: Vec<MemoryRegion>,
    /// What the guest has seen of its CPU.
    pub cpu_features: Vec<CpuFeature>,
    /// The pages of RAM that the guest needs first, in order.
    pub working_set: Vec<PageRun>,
    /// The state of the machine's parts.
    pub machine: Vec<MachineSection>,
}

impl Description {
    /// What a snapshot says of itself, for another one that says the same.
    pub fn of(manifest: &Manifest) -> Self {
        let manifest = manifest.clone();
        Self {
            architecture: manifest.architecture,
            created_unix_ms: manifest.metadata.created_unix_ms,
            label: manifest.metadata.label,
            memory_regions: manifest.memory_regions,
            cpu_features: manifest.cpu_features,
            working_set: manifest.working_set,
            machine: manifest.machine,
        }
    }
}

/// A snapshot that exists.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its name.
    pub id: SnapshotId,
    /// What it consists of.
    pub manifest: Manifest,
    /// Bytes of the manifest's file.
    pub manifest_bytes: u64,
    /// Bytes of the new pack.
    pub pack_bytes: u64,
    /// What happened to the pages.
    pub statistics: Statistics,
}

impl Writer {
    /// Ends the snapshot and gives it a name in the file system, in place of a manifest that had
    /// it. When this returns, the snapshot survives a power cut.
    ///
    /// # Errors
    /// Then there is no new snapshot and its pack is removed; with [`WriteError::NotDurable`] as
    /// the only exception.
    pub fn commit(
        mut self,
        manifest_path: &Path,
        description: Description,
    ) -> Result<Committed, WriteError> {
        let mut known = HashMap::new();
        let mut images = Vec::new();
        for writer in std::mem::take(&mut self.images) {
            images.push(index(writer, self.layers.own, &mut known, &mut self.pack)?);
        }
        let pack_bytes = self.pack.sync()?;
        let mut manifest = Manifest {
            architecture: description.architecture,
            metadata: Metadata {
                created_unix_ms: description.created_unix_ms,
                parent: self.parent,
                label: description.label,
            },
            layers: Layers { slots: Vec::new(), own: self.layers.own },
            memory_regions: description.memory_regions,
            images,
            cpu_features: description.cpu_features,
            working_set: description.working_set,
            machine: description.machine,
        };
        manifest.layers.slots = used_slots(&self.layers, &manifest.images, pack_bytes);
        let (bytes, id) = manifest.encode()?;
        let temporary = Temporary::write(self.storage.as_ref(), manifest_path, &bytes)?;
        temporary.rename()?;
        self.pack.keep();
        sync_name(self.storage.as_ref(), manifest_path)?;
        let (manifest_bytes, statistics) = (bytes.len() as u64, self.chunks.statistics);
        Ok(Committed { id, manifest, manifest_bytes, pack_bytes, statistics })
    }
}

/// Writes a manifest whose content exists already, such as one with another working set, in place
/// of a manifest that had this path. When this returns, it survives a power cut.
///
/// # Errors
/// The host refuses, or no reader would accept the manifest.
pub fn commit_manifest(
    storage: &dyn Storage,
    path: &Path,
    manifest: &Manifest,
) -> Result<SnapshotId, WriteError> {
    let (bytes, id) = manifest.encode()?;
    Temporary::write(storage, path, &bytes)?.rename()?;
    sync_name(storage, path)?;
    Ok(id)
}

/// The index of an image: entries of the parent, and new ones for blocks that have changed.
fn index(
    writer: ImageWriter,
    own: u8,
    known: &mut HashMap<Digest, u64>,
    pack: &mut PackFile,
) -> Result<ImageIndex, WriteError> {
    let inherited = writer.base.as_ref().map(|base| base.index().blocks.as_slice());
    let mut entries: BTreeMap<BlockIndex, BlockEntry> =
        inherited.unwrap_or_default().iter().map(|entry| (entry.block, *entry)).collect();
    for (block, mut pieces) in writer.changed {
        let bytes = record::encode(&mut pieces);
        let digest = Digest::of(&bytes);
        if pieces.is_empty() {
            entries.remove(&block);
        } else if entries.get(&block).is_none_or(|entry| entry.digest != digest) {
            let record_offset = match known.get(&digest) {
                Some(offset) => *offset,
                None => pack.append(&bytes)?,
            };
            known.insert(digest, record_offset);
            let place = (record_offset, own);
            entries.insert(block, entry(block, &pieces, bytes.len(), digest, place));
        }
    }
    Ok(ImageIndex { image: writer.image, blocks: entries.into_values().collect() })
}

fn entry(
    block: BlockIndex,
    pieces: &[Piece],
    record_bytes: usize,
    digest: Digest,
    (record_offset, record_layer): (u64, u8),
) -> BlockEntry {
    BlockEntry {
        block,
        layers: record::layers(pieces),
        record_offset,
        // A record has at most 512 pieces, and a block as many pages.
        record_bytes: record_bytes as u32,
        page_count: record::pages(pieces).count() as u16,
        record_layer,
        digest,
    }
}

/// The slots that blocks still refer to, and the new pack's. A slot that becomes empty is free for
/// the next snapshot, because no record that lives names it.
fn used_slots(layers: &Layers, images: &[ImageIndex], pack_bytes: u64) -> Vec<Option<Layer>> {
    let entries = images.iter().flat_map(|index| &index.blocks);
    let used = entries.fold(layer_bit(layers.own), |mask, entry| mask | entry.needed_layers());
    let mut slots = layers.slots.clone();
    for (slot, place) in (0_u8..).zip(&mut slots) {
        if used & layer_bit(slot) == 0 {
            *place = None;
        } else if slot == layers.own {
            *place = place.map(|layer| Layer { pack_bytes, ..layer });
        }
    }
    while slots.last().is_some_and(Option::is_none) {
        slots.pop();
    }
    slots
}

/// A manifest under a name that nobody looks at.
struct Temporary<'a> {
    storage: &'a dyn Storage,
    path: &'a Path,
    temporary: PathBuf,
}

impl<'a> Temporary<'a> {
    fn write(host: &'a dyn Storage, path: &'a Path, bytes: &[u8]) -> Result<Self, WriteError> {
        let temporary = temporary_name(path);
        // What a process left that died here; usually there is nothing.
        let _ = host.remove(&temporary);
        let attempt = "create the manifest";
        let mut file = host.create(&temporary).map_err(storage(attempt, &temporary))?;
        let made = Self { storage: host, path, temporary };
        let written = file
            .append(bytes)
            .map_err(storage("write the manifest", &made.temporary))
            .and_then(|()| file.sync().map_err(storage("sync the manifest", &made.temporary)));
        written.inspect_err(|_| made.remove())?;
        Ok(made)
    }

    /// The moment from which the snapshot exists.
    fn rename(self) -> Result<(), WriteError> {
        let renamed = self.storage.rename(&self.temporary, self.path);
        renamed.map_err(storage("rename the manifest to", self.path)).inspect_err(|_| self.remove())
    }

    fn remove(&self) {
        // If this fails too, the next attempt removes it.
        let _ = self.storage.remove(&self.temporary);
    }
}

/// The same for every attempt, so that what a dead process left is found again.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

fn sync_name(storage: &dyn Storage, path: &Path) -> Result<(), WriteError> {
    storage
        .sync_directory(directory_of(path))
        .map_err(|source| WriteError::NotDurable { path: path.into(), source })
}
