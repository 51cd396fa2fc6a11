//! From bytes to a manifest. The sections have one order, so that a manifest has one encoding;
//! lists take no memory that their bytes in the file do not justify.

use std::iter::Peekable;
use std::vec::IntoIter;

use crate::cpu::{CpuFeature, CpuRule};
use crate::id::{Digest, PackId, SnapshotId};
use crate::layout::{
    BLOCKS_MAX, BlockIndex, CPU_FEATURES_MAX, IMAGES_MAX, LAYERS_MAX, MACHINE_SECTIONS_MAX,
    MEMORY_REGIONS_MAX, WORKING_SET_RUNS_MAX,
};
use crate::name::{Name, NameError};
use crate::section::Tag;
use crate::wire::{Cursor, Truncated};

use super::header::{HEADER_BYTES, Header};
use super::{
    BlockEntry, Image, ImageIndex, ImageKind, Layer, Layers, MachineSection, Manifest,
    ManifestError, MemoryRegion, Metadata, PageRun,
};

/// Sections that this page of the format describes.
pub(super) const GROUP_FORMAT: u8 = 1;
/// Sections of the machine's parts.
pub(super) const GROUP_MACHINE: u8 = 2;

pub(super) mod kind {
    pub const METADATA: [u8; 4] = *b"META";
    pub const LAYERS: [u8; 4] = *b"LAYR";
    pub const MEMORY_REGIONS: [u8; 4] = *b"MEMR";
    pub const IMAGE: [u8; 4] = *b"IMGX";
    pub const CPU_FEATURES: [u8; 4] = *b"CPUF";
    pub const WORKING_SET: [u8; 4] = *b"WSET";
}

/// More sections than these no manifest has.
const SECTIONS_MAX: usize = 5 + IMAGES_MAX + MACHINE_SECTIONS_MAX;

pub(super) fn decode(header: &Header, bytes: &[u8]) -> Result<Manifest, ManifestError> {
    let mut sections = split(header, bytes)?.into_iter().peekable();
    let metadata = take(&mut sections, kind::METADATA, "META v1")?.read(metadata)?;
    let layers = take(&mut sections, kind::LAYERS, "LAYR v1")?.read(layers)?;
    let memory_regions =
        take(&mut sections, kind::MEMORY_REGIONS, "MEMR v1")?.read(memory_regions)?;
    let mut images = Vec::new();
    while sections.peek().is_some_and(|section| section.is(kind::IMAGE)) {
        images.push(take_named(&mut sections, kind::IMAGE, "IMGX v1")?.image()?);
    }
    let features = take(&mut sections, kind::CPU_FEATURES, "CPUF v1")?;
    let (expected, found) = (header.cpu_digest, Digest::of(features.body));
    if expected != found {
        return Err(ManifestError::CpuDigest { expected, found });
    }
    let cpu_features = features.cpu_features()?;
    let working_set = take(&mut sections, kind::WORKING_SET, "WSET v1")?.read(working_set)?;
    let machine = sections.map(RawSection::machine).collect::<Result<_, _>>()?;
    let architecture = header.architecture;
    Ok(Manifest {
        architecture,
        metadata,
        layers,
        memory_regions,
        images,
        cpu_features,
        working_set,
        machine,
    })
}

/// A section whose content is not looked at yet.
struct RawSection<'a> {
    group: u8,
    tag: Tag,
    name: &'a [u8],
    body: &'a [u8],
}

/// The sections, and nothing behind the last one.
fn split<'a>(header: &Header, bytes: &'a [u8]) -> Result<Vec<RawSection<'a>>, ManifestError> {
    let count = header.section_count as usize;
    if count > SECTIONS_MAX {
        let reason = "no more than 5 + 32 images + 1024 of the machine";
        return Err(invalid("the header", "section_count", count as u64, reason));
    }
    let mut cursor = Cursor::new(bytes.get(HEADER_BYTES..).unwrap_or_default());
    let sections = (0..count).map(|_| section(&mut cursor)).collect::<Result<Vec<_>, _>>();
    let sections = sections.map_err(|source| ManifestError::Truncated {
        section: "the list of sections".into(),
        source,
    })?;
    match cursor.left() {
        0 => Ok(sections),
        count => Err(ManifestError::LeftOver { section: "the list of sections".into(), count }),
    }
}

fn section<'a>(cursor: &mut Cursor<'a>) -> Result<RawSection<'a>, Truncated> {
    let kind = cursor.array()?;
    let version = cursor.u16()?;
    let group = cursor.u8()?;
    let name_bytes = cursor.u8()?;
    let body_bytes = cursor.u32()?;
    let name = cursor.take(name_bytes.into())?;
    let body = cursor.take(body_bytes as usize)?;
    Ok(RawSection { group, tag: Tag { kind, version }, name, body })
}

type Sections<'a> = Peekable<IntoIter<RawSection<'a>>>;

/// The next section, which must be this one and have no name.
fn take<'a>(
    sections: &mut Sections<'a>,
    kind: [u8; 4],
    expected: &'static str,
) -> Result<RawSection<'a>, ManifestError> {
    let section = take_named(sections, kind, expected)?;
    match section.name.len() {
        0 => Ok(section),
        count => Err(invalid(&section.what(), "name_bytes", count as u64, "it has no name")),
    }
}

fn take_named<'a>(
    sections: &mut Sections<'a>,
    kind: [u8; 4],
    expected: &'static str,
) -> Result<RawSection<'a>, ManifestError> {
    let found = match sections.next() {
        Some(section) if section.is(kind) && section.tag.version == 1 => return Ok(section),
        Some(section) => section.what(),
        None => "nothing".into(),
    };
    Err(ManifestError::Unknown { found, expected })
}

impl<'a> RawSection<'a> {
    fn is(&self, kind: [u8; 4]) -> bool {
        self.group == GROUP_FORMAT && self.tag.kind == kind
    }

    fn what(&self) -> String {
        format!("{} of group {}", self.tag, self.group)
    }

    /// Reads the body with one of the functions below; all of it has to be consumed.
    fn read<T>(
        &self,
        decode: impl FnOnce(&mut Cursor<'a>) -> Result<T, Refusal>,
    ) -> Result<T, ManifestError> {
        let mut cursor = Cursor::new(self.body);
        let value = decode(&mut cursor).map_err(|refusal| refusal.of(&self.what()))?;
        match cursor.left() {
            0 => Ok(value),
            count => Err(ManifestError::LeftOver { section: self.what(), count }),
        }
    }

    fn name(&self) -> Result<Name, ManifestError> {
        let refused = |source| ManifestError::Name { section: self.what(), source };
        Name::from_bytes(self.name).map_err(refused)
    }

    fn image(&self) -> Result<ImageIndex, ManifestError> {
        let name = self.name()?;
        self.read(|cursor| image(cursor, name))
    }

    fn cpu_features(&self) -> Result<Vec<CpuFeature>, ManifestError> {
        self.read(|cursor| many(cursor, CPU_FEATURES_MAX, cpu_feature))
    }

    fn machine(self) -> Result<MachineSection, ManifestError> {
        if self.group != GROUP_MACHINE {
            let expected = "a section of the machine";
            return Err(ManifestError::Unknown { found: self.what(), expected });
        }
        Ok(MachineSection { name: self.name()?, tag: self.tag, bytes: self.body.to_vec() })
    }
}

fn metadata(cursor: &mut Cursor<'_>) -> Result<Metadata, Refusal> {
    let created_unix_ms = cursor.u64()?;
    let parent: [u8; 32] = cursor.array()?;
    let parent = (parent != [0; 32]).then_some(SnapshotId(Digest(parent)));
    let label = cursor.take(cursor.left())?;
    let label = std::str::from_utf8(label)
        .map_err(|_| Refusal::Field("label", label.len() as u64, "it is UTF-8"))?;
    Ok(Metadata { created_unix_ms, parent, label: label.into() })
}

fn layers(cursor: &mut Cursor<'_>) -> Result<Layers, Refusal> {
    let own = cursor.u8()?;
    let slots = many(cursor, LAYERS_MAX, |cursor| {
        let layer = Layer { pack: PackId(cursor.array()?), pack_bytes: cursor.u64()? };
        if layer.pack == PackId::NIL && layer.pack_bytes != 0 {
            return Err(Refusal::Field("pack_bytes", layer.pack_bytes, "0 in an empty slot"));
        }
        Ok((layer.pack != PackId::NIL).then_some(layer))
    })?;
    Ok(Layers { slots, own })
}

fn memory_regions(cursor: &mut Cursor<'_>) -> Result<Vec<MemoryRegion>, Refusal> {
    many(cursor, MEMORY_REGIONS_MAX, |cursor| {
        Ok(MemoryRegion { guest_address: cursor.u64()?, bytes: cursor.u64()? })
    })
}

fn image(cursor: &mut Cursor<'_>, name: Name) -> Result<ImageIndex, Refusal> {
    let kind = match cursor.u8()? {
        0 => ImageKind::Memory,
        1 => ImageKind::Disk,
        other => return Err(Refusal::Field("kind", other.into(), "0 (memory) or 1 (disk)")),
    };
    let image = Image { kind, name, bytes: cursor.u64()? };
    Ok(ImageIndex { image, blocks: many(cursor, BLOCKS_MAX, block_entry)? })
}

fn block_entry(cursor: &mut Cursor<'_>) -> Result<BlockEntry, Refusal> {
    let entry = BlockEntry {
        digest: Digest(cursor.array()?),
        record_offset: cursor.u64()?,
        record_bytes: cursor.u32()?,
        block: BlockIndex(cursor.u32()?),
        layers: cursor.u32()?,
        page_count: cursor.u16()?,
        record_layer: cursor.u8()?,
    };
    match cursor.u8()? {
        0 => Ok(entry),
        other => Err(Refusal::Field("reserved", other.into(), "0")),
    }
}

fn cpu_feature(cursor: &mut Cursor<'_>) -> Result<CpuFeature, Refusal> {
    let value = cursor.u64()?;
    let rule = cursor.u8()?;
    let rule = CpuRule::from_number(rule).ok_or(Refusal::Field(
        "rule",
        rule.into(),
        "0 (at least), 1 (equal) or 2 (bits)",
    ))?;
    let name_bytes = cursor.u8()?;
    let name = Name::from_bytes(cursor.take(name_bytes.into())?)?;
    Ok(CpuFeature { name, value, rule })
}

fn working_set(cursor: &mut Cursor<'_>) -> Result<Vec<PageRun>, Refusal> {
    many(cursor, WORKING_SET_RUNS_MAX, |cursor| {
        let (first_page, page_count, flags) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        match flags {
            0 | 1 => Ok(PageRun { first_page, page_count, written: flags == 1 }),
            other => Err(Refusal::Field("flags", other.into(), "0 (read) or 1 (written)")),
        }
    })
}

/// Entries up to the end of the section, but no more than there may be.
fn many<'a, T>(
    cursor: &mut Cursor<'a>,
    limit: usize,
    mut entry: impl FnMut(&mut Cursor<'a>) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    let mut entries = Vec::new();
    while cursor.left() > 0 {
        if entries.len() >= limit {
            return Err(Refusal::Field("entries", entries.len() as u64, "there are more"));
        }
        entries.push(entry(cursor)?);
    }
    Ok(entries)
}

/// What is wrong, before it is known where.
enum Refusal {
    Truncated(Truncated),
    Name(NameError),
    Field(&'static str, u64, &'static str),
}

impl Refusal {
    fn of(self, section: &str) -> ManifestError {
        match self {
            Self::Truncated(source) => ManifestError::Truncated { section: section.into(), source },
            Self::Name(source) => ManifestError::Name { section: section.into(), source },
            Self::Field(field, value, reason) => invalid(section, field, value, reason),
        }
    }
}

impl From<Truncated> for Refusal {
    fn from(truncated: Truncated) -> Self {
        Self::Truncated(truncated)
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

fn invalid(section: &str, field: &'static str, value: u64, reason: &'static str) -> ManifestError {
    ManifestError::Invalid { section: section.into(), field, value, reason }
}
