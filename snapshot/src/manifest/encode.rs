//! From a manifest to its bytes. Equal manifests give equal bytes.

use crate::cpu::CpuFeature;
use crate::id::{Digest, PackId, SnapshotId};
use crate::layout::MANIFEST_BYTES_MAX;
use crate::section::Tag;
use crate::wire::Put;

use super::decode::{GROUP_FORMAT, GROUP_MACHINE, kind};
use super::header::{HEADER_BYTES, Header, seal};
use super::{BLOCK_ENTRY_BYTES, BlockEntry, ImageIndex, ImageKind, Manifest, ManifestError};

pub(super) fn encode(manifest: &Manifest) -> Result<(Vec<u8>, SnapshotId), ManifestError> {
    let mut sections = Sections::default();
    sections.add(kind::METADATA, "", &metadata(manifest));
    sections.add(kind::LAYERS, "", &layers(manifest));
    sections.add(kind::MEMORY_REGIONS, "", &memory_regions(manifest));
    for index in &manifest.images {
        sections.add(kind::IMAGE, index.image.name.as_str(), &image(index));
    }
    let features = cpu_features(&manifest.cpu_features);
    sections.add(kind::CPU_FEATURES, "", &features);
    sections.add(kind::WORKING_SET, "", &working_set(manifest));
    for section in &manifest.machine {
        let Tag { kind, version } = section.tag;
        sections.add_to(GROUP_MACHINE, kind, version, section.name.as_str(), &section.bytes);
    }
    let total_bytes = (HEADER_BYTES as u64).saturating_add(sections.bytes.len() as u64);
    if total_bytes > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge { bytes: total_bytes, limit: MANIFEST_BYTES_MAX });
    }
    let header = Header {
        architecture: manifest.architecture,
        section_count: sections.count,
        total_bytes,
        cpu_digest: Digest::of(&features),
        digest: Digest([0; 32]),
    };
    let mut out = Vec::new();
    header.encode(&mut out);
    out.put(&sections.bytes);
    let digest = seal(&mut out);
    Ok((out, SnapshotId(digest)))
}

#[derive(Default)]
struct Sections {
    bytes: Vec<u8>,
    count: u32,
}

impl Sections {
    fn add(&mut self, kind: [u8; 4], name: &str, body: &[u8]) {
        self.add_to(GROUP_FORMAT, kind, 1, name, body);
    }

    /// Lengths that do not fit have been refused by `check`.
    fn add_to(&mut self, group: u8, kind: [u8; 4], version: u16, name: &str, body: &[u8]) {
        self.count = self.count.saturating_add(1);
        self.bytes.put(&kind);
        self.bytes.put_u16(version);
        self.bytes.put_u8(group);
        self.bytes.put_u8(name.len() as u8);
        self.bytes.put_u32(body.len() as u32);
        self.bytes.put(name.as_bytes());
        self.bytes.put(body);
    }
}

fn metadata(manifest: &Manifest) -> Vec<u8> {
    let metadata = &manifest.metadata;
    let mut out = Vec::new();
    out.put_u64(metadata.created_unix_ms);
    out.put(&metadata.parent.map_or([0; 32], |parent| parent.0.0));
    out.put(metadata.label.as_bytes());
    out
}

fn layers(manifest: &Manifest) -> Vec<u8> {
    let layers = &manifest.layers;
    let mut out = Vec::new();
    out.put_u8(layers.own);
    for slot in &layers.slots {
        out.put(&slot.map_or(PackId::NIL, |layer| layer.pack).0);
        out.put_u64(slot.map_or(0, |layer| layer.pack_bytes));
    }
    out
}

fn memory_regions(manifest: &Manifest) -> Vec<u8> {
    let mut out = Vec::new();
    for region in &manifest.memory_regions {
        out.put_u64(region.guest_address);
        out.put_u64(region.bytes);
    }
    out
}

fn image(index: &ImageIndex) -> Vec<u8> {
    let mut out = Vec::with_capacity(index.blocks.len().saturating_mul(BLOCK_ENTRY_BYTES));
    out.put_u8(match index.image.kind {
        ImageKind::Memory => 0,
        ImageKind::Disk => 1,
    });
    out.put_u64(index.image.bytes);
    index.blocks.iter().for_each(|entry| block_entry(entry, &mut out));
    out
}

fn block_entry(entry: &BlockEntry, out: &mut Vec<u8>) {
    out.put(&entry.digest.0);
    out.put_u64(entry.record_offset);
    out.put_u32(entry.record_bytes);
    out.put_u32(entry.block.0);
    out.put_u32(entry.layers);
    out.put_u16(entry.page_count);
    out.put_u8(entry.record_layer);
    out.put_u8(0);
}

fn cpu_features(features: &[CpuFeature]) -> Vec<u8> {
    let mut out = Vec::new();
    for feature in features {
        out.put_u64(feature.value);
        out.put_u8(feature.rule.number());
        out.put_u8(feature.name.as_str().len() as u8);
        out.put(feature.name.as_str().as_bytes());
    }
    out
}

fn working_set(manifest: &Manifest) -> Vec<u8> {
    let mut out = Vec::new();
    for run in &manifest.working_set {
        out.put_u32(run.first_page);
        out.put_u32(run.page_count);
        out.put_u32(run.written.into());
    }
    out
}
