//! Writing a snapshot of a machine that stands still.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rotifer_devices::GuestMemory;
use rotifer_snapshot::layout::{BLOCK_BYTES, BlockIndex, LAYERS_MAX, PAGE_BYTES, block_count};
use rotifer_snapshot::{
    Architecture, Compare, CpuFeature, CpuRule, Description, HostStorage, Image, ImageKind,
    MachineSection, MemoryRegion, Name, Options, PageSet, PageSource, Snapshot, Writer,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::disks::DiskImage;
use super::host_file::absolute;
use super::origin::pack_path;
use super::own_pages::Pagemap;
use super::{HostFile, Origin, RAM, SnapshotError};
use crate::api::{SnapshotCreate, SnapshotKind};
use crate::arch::aarch64::layout::RAM_START;
use crate::config::Config;
use crate::machine_state::{Feature, MachineState};
use crate::table::DiskOverlay;

/// A machine that stands still.
pub struct Still<'a> {
    /// Its RAM.
    pub memory: &'a GuestMemory,
    /// What it knew when it was saved, before its RAM is read.
    pub state: MachineState,
    /// Its disks, as far as they have overlays.
    pub overlays: &'a [DiskOverlay],
}

/// Writes a snapshot: pages to `mem_file_path`, everything else to `snapshot_path`, and beside that
/// the host file. `origin` is what the machine comes from, or its last snapshot; what is not resident
/// of it is taken over.
///
/// Returns the new snapshot, which is durable by then.
///
/// # Errors
/// See [`SnapshotError`]; an older snapshot at `snapshot_path` is as it was.
pub fn create(
    request: &SnapshotCreate,
    machine: Still<'_>,
    origin: Option<&Origin>,
    config: &Config,
) -> Result<Origin, SnapshotError> {
    let Still { memory, state, overlays } = machine;
    let storage = Arc::new(HostStorage);
    let parent = match request.snapshot_type {
        SnapshotKind::Full => None,
        SnapshotKind::Diff => Some(&origin.ok_or(SnapshotError::NoParent)?.snapshot),
    };
    // No snapshot consists of more packs. One that has everything differs from the parent in all that
    // has changed, too.
    let parent = parent.filter(|parent| parent.manifest().layers.iter().count() < LAYERS_MAX);
    let name = Name::new(RAM)?;
    let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    let image = Image { kind: ImageKind::Memory, name: name.clone(), bytes };
    let before = origin.map(|origin| &origin.snapshot);
    let disks = overlays.iter().map(|overlay| DiskImage::of(overlay, before));
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    let images = [image].into_iter().chain(disks.iter().map(DiskImage::image)).collect();
    let is_shared = origin.is_some_and(|origin| origin.is_shared);
    // What was written has probably changed: to read the parent's pages as well would not pay.
    let compare = if is_shared { Compare::Digests } else { Compare::Pages };
    let options = Options { compare, ..Options::new().map_err(SnapshotError::Resident)? };
    let pack_path = pack_path(&request.mem_file_path, options.pack);
    let mut writer = Writer::create(storage.clone(), &pack_path, options, images, parent)?;
    let only_in_image = before.filter(|_| parent.is_none());
    let ram = Ram { memory, bytes };
    ram.write(&mut writer, &name, only_in_image)?;
    for disk in &disks {
        disk.write_own(&mut writer)?;
        only_in_image.map_or(Ok(()), |image| disk.write_inherited(&mut writer, image))?;
    }

    let mut packs = origin.map(|origin| origin.packs.clone()).unwrap_or_default();
    packs.insert(options.pack.to_string(), absolute(pack_path.clone()));
    HostFile::of(config, packs.clone()).write(storage.as_ref(), &request.snapshot_path)?;
    let mut description = describe(state, bytes)?;
    description.machine.extend(disks.iter().map(DiskImage::section));
    let committed = writer.commit(&request.snapshot_path, description)?;
    tracing::info!(
        snapshot = %committed.id,
        pack_bytes = committed.pack_bytes,
        manifest_bytes = committed.manifest_bytes,
        "a snapshot is written"
    );
    let layers = &committed.manifest.layers;
    packs.retain(|pack, _| layers.iter().any(|(_, layer)| layer.pack.to_string() == *pack));
    let host = HostFile { packs, ..HostFile::default() };
    let created = Origin::open(&request.snapshot_path, Some(&pack_path), &host)?;
    Ok(Origin { is_shared, ..created })
}

/// Guest RAM.
struct Ram<'a> {
    memory: &'a GuestMemory,
    bytes: u64,
}

impl Ram<'_> {
    /// Gives the writer every page that is the machine's own, and all that `image` has.
    fn write(
        &self,
        writer: &mut Writer,
        name: &Name,
        image: Option<&Snapshot>,
    ) -> Result<(), SnapshotError> {
        let mut pagemap = Pagemap::open().map_err(SnapshotError::Resident)?;
        let image = image.map(Snapshot::memory).transpose().map_err(super::OriginError::from)?;
        let mut content = vec![0; BLOCK_BYTES];
        for block in (0..block_count(self.bytes)).map(BlockIndex) {
            let bytes = (self.bytes - block.offset_bytes()).min(BLOCK_BYTES as u64) as usize;
            let start = GuestAddress(RAM_START.0 + block.offset_bytes());
            let address = self.memory.get_host_address(start)? as usize;
            let mut pages = pagemap.own(address, bytes).map_err(SnapshotError::Resident)?;
            if image.as_ref().is_some_and(|image| image.has_data(block)) {
                pages = PageSet::first(bytes / PAGE_BYTES);
            }
            if pages.is_empty() {
                continue;
            }
            let mut places = content.chunks_exact_mut(PAGE_BYTES);
            for (page, place) in pages.pages().zip(&mut places) {
                let address = GuestAddress(start.0 + (page * PAGE_BYTES) as u64);
                self.memory.read_slice(place, address)?;
            }
            writer.put_block(name, block, &pages, &content[..pages.count() * PAGE_BYTES])?;
        }
        Ok(())
    }
}

fn describe(state: MachineState, ram_bytes: u64) -> Result<Description, SnapshotError> {
    let features = state.cpu_features()?;
    let sections = state.sections.into_iter().map(|section| {
        let name = Name::new(&section.name)?;
        Ok(MachineSection { name, tag: section.tag, bytes: section.bytes })
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Description {
        architecture: Architecture::Aarch64,
        created_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        label: String::new(),
        memory_regions: vec![MemoryRegion { guest_address: RAM_START.0, bytes: ram_bytes }],
        cpu_features: features.into_iter().map(feature).collect::<Result<_, _>>()?,
        working_set: Vec::new(),
        machine: sections.collect::<Result<_, SnapshotError>>()?,
    })
}

fn feature(Feature { name, value, grows }: Feature) -> Result<CpuFeature, SnapshotError> {
    let rule = if grows { CpuRule::AtLeast } else { CpuRule::Equal };
    Ok(CpuFeature { name: Name::new(&name)?, value, rule })
}
