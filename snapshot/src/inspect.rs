//! What is in a snapshot, to be shown: as text, or as JSON.

use std::fmt;

use serde::Serialize;

use crate::cpu::CpuFeature;
use crate::disk_base::DiskBase;
use crate::id::{Digest, PackId, SnapshotId};
use crate::layout::PAGE_BYTES;
use crate::manifest::{
    Architecture, FORMAT_VERSION, ImageIndex, ImageKind, Manifest, MemoryRegion, PageRun,
};
use crate::name::Name;
use crate::record::layer_bit;
use crate::snapshot::Snapshot;
use crate::source::SourceError;

/// Runs of the working set that the text shows; JSON has them all.
const RUNS_SHOWN_MAX: usize = 8;

/// What is in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Its name.
    pub snapshot: SnapshotId,
    /// The version of the format.
    pub format_version: u32,
    /// Of the guest.
    pub architecture: Architecture,
    /// Milliseconds since 1970, UTC.
    pub created_unix_ms: u64,
    /// Free text.
    pub label: String,
    /// The snapshot that it was written on top of.
    pub parent: Option<SnapshotId>,
    /// The packs that it consists of.
    pub layers: Vec<LayerInspection>,
    /// Where RAM is in the guest.
    pub memory_regions: Vec<MemoryRegion>,
    /// RAM and disks.
    pub images: Vec<ImageInspection>,
    /// What the guest has seen of its CPU.
    pub cpu_features: Vec<CpuFeature>,
    /// The pages that the guest needs first, in order.
    pub working_set: Vec<PageRun>,
    /// The states of the machine's parts.
    pub machine: Vec<SectionInspection>,
}

/// One pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerInspection {
    /// Its number among the layers.
    pub slot: u8,
    /// Its name.
    pub pack: PackId,
    /// Its length.
    pub pack_bytes: u64,
    /// Whether it was written for this snapshot.
    pub own: bool,
    /// Blocks that have pages from it.
    pub block_count: u64,
    /// Pages that come from it; none if the records were not read.
    pub page_count: Option<u64>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInspection {
    /// What it is called.
    pub name: Name,
    /// RAM or a disk.
    pub kind: ImageKind,
    /// Its length.
    pub bytes: u64,
    /// Blocks that it has pages of.
    pub block_count: u64,
    /// Pages that it has: in RAM those that are not zero, on a disk those that are not its base's.
    pub page_count: u64,
    /// The fingerprint of a disk's base; none if the snapshot does not say it.
    pub base: Option<Digest>,
}

/// The state of one part of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionInspection {
    /// Which instance.
    pub name: Name,
    /// Kind and version.
    pub tag: String,
    /// Its length.
    pub bytes: u64,
}

impl Inspection {
    /// What a manifest says. No pack is needed for it.
    pub fn of_manifest(manifest: &Manifest, snapshot: SnapshotId) -> Self {
        let machine = manifest.machine.iter().map(|section| SectionInspection {
            name: section.name.clone(),
            tag: section.tag.to_string(),
            bytes: section.bytes.len() as u64,
        });
        Self {
            snapshot,
            format_version: FORMAT_VERSION,
            architecture: manifest.architecture,
            created_unix_ms: manifest.metadata.created_unix_ms,
            label: manifest.metadata.label.clone(),
            parent: manifest.metadata.parent,
            layers: layers(manifest),
            memory_regions: manifest.memory_regions.clone(),
            images: manifest.images.iter().map(|index| image(manifest, index)).collect(),
            cpu_features: manifest.cpu_features.clone(),
            working_set: manifest.working_set.clone(),
            machine: machine.collect(),
        }
    }

    /// The same, and how many pages come from which layer: reads the record of every block.
    ///
    /// # Errors
    /// A record cannot be read or is not what it should be.
    pub fn of_snapshot(snapshot: &Snapshot) -> Result<Self, SourceError> {
        let mut inspection = Self::of_manifest(snapshot.manifest(), snapshot.id());
        for layer in &mut inspection.layers {
            layer.page_count = Some(0);
        }
        for index in &snapshot.manifest().images {
            let Ok(mut reader) = snapshot.image(&index.image.name) else { continue };
            for entry in &index.blocks {
                for piece in reader.pieces(entry.block)? {
                    inspection.count(piece.layer, piece.used);
                }
            }
        }
        Ok(inspection)
    }

    fn count(&mut self, slot: u8, pages: u16) {
        let layer = self.layers.iter_mut().find(|layer| layer.slot == slot);
        if let Some(count) = layer.and_then(|layer| layer.page_count.as_mut()) {
            *count = count.saturating_add(pages.count_ones().into());
        }
    }
}

fn layers(manifest: &Manifest) -> Vec<LayerInspection> {
    let entries = || manifest.images.iter().flat_map(|index| &index.blocks);
    let layers = manifest.layers.iter().map(|(slot, layer)| LayerInspection {
        slot,
        pack: layer.pack,
        pack_bytes: layer.pack_bytes,
        own: slot == manifest.layers.own,
        block_count: entries().filter(|entry| entry.layers & layer_bit(slot) != 0).count() as u64,
        page_count: None,
    });
    layers.collect()
}

fn image(manifest: &Manifest, index: &ImageIndex) -> ImageInspection {
    let base = manifest.disk_base(&index.image.name);
    ImageInspection {
        name: index.image.name.clone(),
        kind: index.image.kind,
        bytes: index.image.bytes,
        block_count: index.blocks.len() as u64,
        page_count: index.blocks.iter().map(|entry| u64::from(entry.page_count)).sum(),
        base: base.and_then(|section| Some(DiskBase::decode(section).ok()?.fingerprint)),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "snapshot     {}", self.snapshot)?;
        writeln!(f, "format       {}, {:?}", self.format_version, self.architecture)?;
        writeln!(f, "created      {} ms since 1970", self.created_unix_ms)?;
        writeln!(f, "label        {}", self.label)?;
        match self.parent {
            Some(parent) => writeln!(f, "parent       {parent}")?,
            None => writeln!(f, "parent       none")?,
        }
        for layer in &self.layers {
            write!(f, "layer {:<6} {layer}", layer.slot)?;
        }
        for region in &self.memory_regions {
            let MemoryRegion { guest_address, bytes } = region;
            writeln!(f, "memory       {} at {guest_address:#x}", Bytes(*bytes))?;
        }
        for image in &self.images {
            writeln!(f, "image        {image}")?;
        }
        self.write_working_set(f)?;
        for section in &self.machine {
            let SectionInspection { name, tag, bytes } = section;
            writeln!(f, "machine      {tag} of {name}, {bytes} bytes")?;
        }
        for CpuFeature { name, value, rule } in &self.cpu_features {
            writeln!(f, "cpu          {name} = {value:#x} ({rule:?})")?;
        }
        Ok(())
    }
}

impl Inspection {
    fn write_working_set(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pages = |written: bool| -> u64 {
            let runs = self.working_set.iter().filter(|run| !written || run.written);
            runs.map(|run| u64::from(run.page_count)).sum()
        };
        let runs = self.working_set.len();
        writeln!(f, "working set  {} pages, {} written, {runs} runs", pages(false), pages(true))?;
        for run in self.working_set.iter().take(RUNS_SHOWN_MAX) {
            let how = if run.written { "written" } else { "read" };
            writeln!(f, "             page {} + {}, {how}", run.first_page, run.page_count)?;
        }
        if runs > RUNS_SHOWN_MAX {
            writeln!(f, "             ...")?;
        }
        Ok(())
    }
}

impl fmt::Display for LayerInspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pack {}, {}, {} blocks", self.pack, Bytes(self.pack_bytes), self.block_count)?;
        if let Some(pages) = self.page_count {
            write!(f, ", {pages} pages")?;
        }
        writeln!(f, "{}", if self.own { ", its own" } else { "" })
    }
}

impl fmt::Display for ImageInspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, bytes, block_count, page_count, base } = self;
        let data = Bytes(page_count.saturating_mul(PAGE_BYTES as u64));
        let over = match kind {
            ImageKind::Memory => "not zero",
            ImageKind::Disk => "over its base",
        };
        write!(f, "{name} ({kind:?}), {}, of it {data} {over}", Bytes(*bytes))?;
        write!(f, " in {block_count} blocks")?;
        base.map_or(Ok(()), |base| write!(f, ", base {base}"))
    }
}

/// A length as people read it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = self;
        match bytes {
            0x100000.. => write!(f, "{:.1} MiB", *bytes as f64 / f64::from(1 << 20)),
            0x400.. => write!(f, "{:.1} KiB", *bytes as f64 / f64::from(1 << 10)),
            _ => write!(f, "{bytes} bytes"),
        }
    }
}
