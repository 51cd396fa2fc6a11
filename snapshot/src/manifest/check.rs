//! What the numbers of a manifest must be to one another, when read and when written.

use std::collections::BTreeSet;

use crate::layout::{
    CPU_FEATURES_MAX, IMAGE_BYTES_MAX, IMAGES_MAX, LABEL_BYTES_MAX, LAYERS_MAX,
    MACHINE_SECTION_BYTES_MAX, MACHINE_SECTIONS_MAX, MEMORY_REGIONS_MAX, PACK_BYTES_MAX,
    PAGE_BYTES, PAGES_PER_BLOCK, WORKING_SET_RUNS_MAX, block_count, page_count,
};
use crate::pack::PACK_HEADER_BYTES;
use crate::record::{PIECE_ENTRY_BYTES, RECORD_BYTES_MAX};

use super::{BlockEntry, ImageIndex, ImageKind, Layers, Manifest, ManifestError};

pub(super) fn check(manifest: &Manifest) -> Result<(), ManifestError> {
    metadata(manifest)?;
    layers(&manifest.layers)?;
    images(manifest)?;
    memory(manifest)?;
    working_set(manifest)?;
    machine(manifest)?;
    let features = &manifest.cpu_features;
    at_most("CPUF", "features", features.len(), CPU_FEATURES_MAX)?;
    let names = || features.iter().map(|feature| &feature.name);
    // As they are written, which is quicker to see than to count.
    let ascend = names().is_sorted_by(|name, next| name < next);
    let once = ascend || names().collect::<BTreeSet<_>>().len() == features.len();
    require(once, "CPUF", "features", features.len(), "no name twice")
}

fn metadata(manifest: &Manifest) -> Result<(), ManifestError> {
    let label = &manifest.metadata.label;
    at_most("META", "label", label.len(), LABEL_BYTES_MAX)?;
    let printable = !label.chars().any(char::is_control);
    require(printable, "META", "label", label.len(), "it has no control characters")
}

fn layers(layers: &Layers) -> Result<(), ManifestError> {
    at_most("LAYR", "layers", layers.slots.len(), LAYERS_MAX)?;
    let own = layers.get(layers.own).is_some();
    require(own, "LAYR", "own", usize::from(layers.own), "the slot of a layer")?;
    let mut packs = BTreeSet::new();
    for (slot, layer) in layers.iter() {
        let fresh = packs.insert(layer.pack);
        require(fresh, "LAYR", "slot", usize::from(slot), "no pack is in two slots")?;
        let possible = (PACK_HEADER_BYTES as u64..=PACK_BYTES_MAX).contains(&layer.pack_bytes);
        require_u64(possible, "LAYR", "pack_bytes", layer.pack_bytes, "4 KiB to 4 TiB")?;
    }
    // One encoding for one manifest: no empty slots behind the last layer.
    let tight = layers.slots.last().is_some_and(Option::is_some);
    require(tight, "LAYR", "slots", layers.slots.len(), "the last slot has a layer")
}

fn images(manifest: &Manifest) -> Result<(), ManifestError> {
    let images = &manifest.images;
    at_most("IMGX", "images", images.len(), IMAGES_MAX)?;
    let names: BTreeSet<_> = images.iter().map(|index| &index.image.name).collect();
    require(names.len() == images.len(), "IMGX", "images", images.len(), "no name twice")?;
    let memories = images.iter().filter(|index| index.image.kind == ImageKind::Memory).count();
    require(memories <= 1, "IMGX", "memories", memories, "at most one image is RAM")?;
    images.iter().try_for_each(|index| image(index, &manifest.layers))
}

fn image(index: &ImageIndex, layers: &Layers) -> Result<(), ManifestError> {
    let bytes = index.image.bytes;
    require_u64(bytes <= IMAGE_BYTES_MAX, "IMGX", "bytes", bytes, "at most 32 GiB")?;
    let mut next = 0;
    for entry in &index.blocks {
        let block = entry.block.0;
        require(block >= next, "IMGX", "block", block as usize, "blocks ascend")?;
        let inside = block < block_count(bytes);
        require(inside, "IMGX", "block", block as usize, "inside of the image")?;
        next = block.saturating_add(1);
        block_entry(entry, layers)?;
    }
    Ok(())
}

fn block_entry(entry: &BlockEntry, layers: &Layers) -> Result<(), ManifestError> {
    let known = entry.layers != 0 && entry.layers & !layers.mask() == 0;
    require_u64(known, "IMGX", "layers", entry.layers.into(), "only slots that have a layer")?;
    let pages = usize::from(entry.page_count);
    let possible = (1..=PAGES_PER_BLOCK).contains(&pages);
    require(possible, "IMGX", "page_count", pages, "1 to 512")?;
    let record_bytes = entry.record_bytes as usize;
    let possible = (1..=RECORD_BYTES_MAX).contains(&record_bytes)
        && record_bytes.is_multiple_of(PIECE_ENTRY_BYTES);
    require(possible, "IMGX", "record_bytes", record_bytes, "1 to 512 pieces")?;
    let end = entry.record_offset.checked_add(record_bytes as u64);
    let inside = layers.get(entry.record_layer).is_some_and(|layer| {
        entry.record_offset >= PACK_HEADER_BYTES as u64
            && end.is_some_and(|end| end <= layer.pack_bytes)
    });
    require_u64(inside, "IMGX", "record_offset", entry.record_offset, "inside of its pack")
}

fn memory(manifest: &Manifest) -> Result<(), ManifestError> {
    let regions = &manifest.memory_regions;
    at_most("MEMR", "regions", regions.len(), MEMORY_REGIONS_MAX)?;
    let (mut next, mut total) = (0_u64, 0_u64);
    for region in regions {
        let address = region.guest_address;
        require_u64(address >= next, "MEMR", "guest_address", address, "ascending, no overlap")?;
        let whole = region.bytes != 0
            && [address, region.bytes].iter().all(|it| it.is_multiple_of(PAGE_BYTES as u64));
        require_u64(whole, "MEMR", "bytes", region.bytes, "whole pages, at least one")?;
        let end = address.checked_add(region.bytes).ok_or_else(|| {
            refusal("MEMR", "bytes", region.bytes, "the region ends inside of the address space")
        })?;
        next = end;
        total = total.saturating_add(region.bytes);
    }
    let ram_bytes = manifest.memory().map_or(0, |index| index.image.bytes);
    require_u64(total == ram_bytes, "MEMR", "bytes of all", total, "as many as the RAM has")
}

fn working_set(manifest: &Manifest) -> Result<(), ManifestError> {
    let runs = &manifest.working_set;
    at_most("WSET", "runs", runs.len(), WORKING_SET_RUNS_MAX)?;
    let pages = page_count(manifest.memory().map_or(0, |index| index.image.bytes));
    let mut total = 0_u64;
    for run in runs {
        let end = run.first_page.checked_add(run.page_count);
        let inside = run.page_count != 0 && end.is_some_and(|end| end <= pages);
        require(inside, "WSET", "first_page", run.first_page as usize, "pages of the RAM")?;
        total = total.saturating_add(run.page_count.into());
    }
    // Whoever walks through the runs visits no page for ever.
    let limit = u64::from(pages).saturating_mul(2);
    require_u64(total <= limit, "WSET", "pages", total, "a page is read once and written once")
}

fn machine(manifest: &Manifest) -> Result<(), ManifestError> {
    at_most("the machine", "sections", manifest.machine.len(), MACHINE_SECTIONS_MAX)?;
    let mut seen = BTreeSet::new();
    for section in &manifest.machine {
        let bytes = section.bytes.len();
        let refused = |reason| {
            let what = format!("{} of {}", section.tag, section.name);
            Err(refusal(&what, "bytes", bytes as u64, reason))
        };
        if bytes > MACHINE_SECTION_BYTES_MAX {
            return refused("more than the format allows");
        }
        if !seen.insert((&section.name, section.tag.kind)) {
            return refused("no section is there twice");
        }
    }
    Ok(())
}

fn at_most(
    section: &str,
    field: &'static str,
    count: usize,
    limit: usize,
) -> Result<(), ManifestError> {
    require(count <= limit, section, field, count, "more than the format allows")
}

fn require(
    holds: bool,
    section: &str,
    field: &'static str,
    value: usize,
    reason: &'static str,
) -> Result<(), ManifestError> {
    require_u64(holds, section, field, value as u64, reason)
}

fn require_u64(
    holds: bool,
    section: &str,
    field: &'static str,
    value: u64,
    reason: &'static str,
) -> Result<(), ManifestError> {
    if holds { Ok(()) } else { Err(refusal(section, field, value, reason)) }
}

fn refusal(section: &str, field: &'static str, value: u64, reason: &'static str) -> ManifestError {
    ManifestError::Invalid { section: section.into(), field, value, reason }
}
