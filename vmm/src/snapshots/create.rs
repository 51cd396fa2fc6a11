//! Writing what was taken of a machine.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rotifer_snapshot::layout::LAYERS_MAX;
use rotifer_snapshot::{
    Architecture, Compare, CpuFeature, CpuRule, Description, HostStorage, Image, ImageKind,
    MachineSection, MemoryRegion, Name, Options, Snapshot, Storage, Writer,
};

use super::disks::DiskImage;
use super::host_file::absolute;
use super::origin::pack_path;
use super::{HostFile, Origin, RAM, SnapshotError, Taken};
use crate::api::{SnapshotCreate, SnapshotKind};
use crate::arch::aarch64::layout::RAM_START;
use crate::config::Config;
use crate::machine_state::Feature;

/// Writes a snapshot: pages to `mem_file_path`, everything else to `snapshot_path`, and beside that
/// the host file. `origin` is what the machine comes from, or its last snapshot; what is not its own
/// is taken over from there.
///
/// Returns the new snapshot, which is durable by then.
///
/// # Errors
/// See [`SnapshotError`]; an older snapshot at `snapshot_path` is as it was.
pub fn create(
    request: &SnapshotCreate,
    taken: Taken<'_>,
    origin: Option<&Origin>,
    config: &Config,
) -> Result<Origin, SnapshotError> {
    let storage = Arc::new(HostStorage);
    let parent = match request.snapshot_type {
        SnapshotKind::Full => None,
        SnapshotKind::Diff => {
            let parent = &origin.ok_or(SnapshotError::NoParent)?.snapshot;
            // One that has everything differs from the parent in all that has changed, too.
            parent.is_durable().map_err(SnapshotError::Durable)?.then_some(parent)
        }
    };
    let options = options(origin)?;
    let pack_path = pack_path(&request.mem_file_path, options.pack);
    let writer = begin(&taken, storage.clone(), &pack_path, options, origin, parent)?;

    let parents = origin.filter(|_| parent.is_some());
    let mut packs = parents.map(|origin| origin.packs.clone()).unwrap_or_default();
    packs.insert(options.pack.to_string(), absolute(pack_path.clone()));
    HostFile::of(config, packs.clone()).write(storage.as_ref(), &request.snapshot_path)?;
    let committed = writer.commit(&request.snapshot_path, describe(taken)?)?;
    tracing::info!(
        snapshot = %committed.id,
        pack_bytes = committed.pack_bytes,
        manifest_bytes = committed.manifest_bytes,
        "a snapshot is written"
    );
    let layers = &committed.manifest.layers;
    packs.retain(|pack, _| layers.iter().any(|(_, layer)| layer.pack.to_string() == *pack));
    let host = HostFile { packs, ..HostFile::default() };
    let is_shared = origin.is_some_and(|origin| origin.is_shared);
    let created = Origin::open(&request.snapshot_path, Some(&pack_path), &host)?;
    Ok(Origin { is_shared, ..created })
}

/// How to write a snapshot of a machine that comes from `origin`.
pub(super) fn options(origin: Option<&Origin>) -> Result<Options, SnapshotError> {
    let is_shared = origin.is_some_and(|origin| origin.is_shared);
    // What was written has probably changed: to read the parent's pages as well would not pay.
    let compare = if is_shared { Compare::Digests } else { Compare::Pages };
    Ok(Options { compare, ..Options::new().map_err(SnapshotError::Resident)? })
}

/// Writes all pages, those that `parent` has left out. What the machine has of `origin` is written
/// as well if there is no parent, or it may have no child.
pub(super) fn begin(
    taken: &Taken<'_>,
    storage: Arc<dyn Storage>,
    pack_path: &Path,
    options: Options,
    origin: Option<&Origin>,
    parent: Option<&Snapshot>,
) -> Result<Writer, SnapshotError> {
    // No snapshot consists of more packs.
    let parent = parent.filter(|parent| parent.manifest().layers.iter().count() < LAYERS_MAX);
    let ram = Image { kind: ImageKind::Memory, name: Name::new(RAM)?, bytes: taken.ram_bytes };
    let images = [ram].into_iter().chain(taken.disks.iter().map(DiskImage::image)).collect();
    let mut writer = Writer::create(storage, pack_path, options, images, parent)?;
    let only_in_image = match parent {
        None => origin.map(|origin| &origin.snapshot),
        Some(_) => None,
    };
    taken.write(&mut writer, only_in_image)?;
    Ok(writer)
}

/// What a snapshot says beside its images.
pub(super) fn describe(taken: Taken<'_>) -> Result<Description, SnapshotError> {
    let Taken { state, ram_bytes, disks, .. } = taken;
    let mut features = state.cpu_features()?;
    // So that a restore sees at a glance that none is there twice.
    features.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let parts = state.sections.into_iter().map(|section| {
        let name = Name::new(&section.name)?;
        Ok(MachineSection { name, tag: section.tag, bytes: section.bytes })
    });
    let bases = disks.iter().map(|disk| Ok(disk.section()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Description {
        architecture: Architecture::Aarch64,
        created_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        label: String::new(),
        memory_regions: vec![MemoryRegion { guest_address: RAM_START.0, bytes: ram_bytes }],
        cpu_features: features.into_iter().map(feature).collect::<Result<_, _>>()?,
        working_set: Vec::new(),
        machine: parts.chain(bases).collect::<Result<_, SnapshotError>>()?,
    })
}

fn feature(Feature { name, value, grows }: Feature) -> Result<CpuFeature, SnapshotError> {
    let rule = if grows { CpuRule::AtLeast } else { CpuRule::Equal };
    Ok(CpuFeature { name: Name::new(&name)?, value, rule })
}
