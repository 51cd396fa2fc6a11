//! What differs between two snapshots, found by digests where that is possible.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::image_reader::{ImageReader, of_chunk};
use crate::layout::{BlockIndex, CHUNK_BYTES, CHUNKS_PER_BLOCK, PAGE_BYTES};
use crate::manifest::{ImageIndex, ImageKind, Manifest};
use crate::name::Name;
use crate::page_set::PageSet;
use crate::record::{self, Piece};
use crate::snapshot::Snapshot;
use crate::source::{PageSource, SourceError};

/// What differs between two snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Facts about the machine that differ: its architecture, its memory's place, its CPU.
    pub facts: Vec<&'static str>,
    /// Images with different content, or that only one of the two has.
    pub images: Vec<ImageDifference>,
    /// States of the machine's parts that differ.
    pub machine: Vec<SectionDifference>,
}

/// What differs in one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageDifference {
    /// The image.
    pub name: Name,
    /// Whether both have it.
    pub change: Change,
    /// Blocks with pages that differ, if both have it.
    pub blocks: Vec<BlockDifference>,
}

/// What differs in one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlockDifference {
    /// The block.
    pub block: BlockIndex,
    /// Numbers in the block of the pages that differ.
    pub pages: Vec<u16>,
}

/// A state that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionDifference {
    /// Which instance.
    pub name: Name,
    /// Kind and version, in the later snapshot if it has it.
    pub tag: String,
    /// How it differs.
    pub change: Change,
}

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only the later snapshot has it.
    Added,
    /// Only the earlier snapshot has it.
    Removed,
    /// Both have it, with different content.
    Changed,
}

/// Compares two snapshots. Content is read only where digests do not tell.
///
/// # Errors
/// Content of one of them cannot be read or is not what it should be.
pub fn diff(before: &Snapshot, after: &Snapshot) -> Result<Difference, SourceError> {
    let (old, new) = (before.manifest(), after.manifest());
    let mut difference =
        Difference { facts: facts(old, new), images: Vec::new(), machine: machine(old, new) };
    let names = |manifest: &Manifest| -> BTreeSet<Name> {
        manifest.images.iter().map(|index| index.image.name.clone()).collect()
    };
    for name in names(old).union(&names(new)) {
        let found = match (before.image(name), after.image(name)) {
            (Ok(mut before), Ok(mut after)) => (Change::Changed, image(&mut before, &mut after)?),
            (Ok(_), Err(_)) => (Change::Removed, Vec::new()),
            (Err(_), _) => (Change::Added, Vec::new()),
        };
        if let (change, blocks) = found
            && (change != Change::Changed || !blocks.is_empty())
        {
            difference.images.push(ImageDifference { name: name.clone(), change, blocks });
        }
    }
    Ok(difference)
}

fn facts(old: &Manifest, new: &Manifest) -> Vec<&'static str> {
    let facts = [
        ("architecture", old.architecture != new.architecture),
        ("memory regions", old.memory_regions != new.memory_regions),
        ("CPU features", old.cpu_features != new.cpu_features),
        ("working set", old.working_set != new.working_set),
    ];
    facts.into_iter().filter(|(_, differs)| *differs).map(|(fact, _)| fact).collect()
}

fn machine(old: &Manifest, new: &Manifest) -> Vec<SectionDifference> {
    let keys: BTreeSet<_> =
        old.machine.iter().chain(&new.machine).map(|it| (&it.name, it.tag.kind)).collect();
    let mut differences = Vec::new();
    for (name, kind) in keys {
        let find = |manifest: &'_ Manifest| {
            manifest.machine.iter().find(|it| it.name == *name && it.tag.kind == kind).cloned()
        };
        let (section, change) = match (find(old), find(new)) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(_), Some(new)) => (new, Change::Changed),
            (None, Some(new)) => (new, Change::Added),
            (Some(old), None) => (old, Change::Removed),
            (None, None) => continue,
        };
        let tag = section.tag.to_string();
        differences.push(SectionDifference { name: section.name, tag, change });
    }
    differences
}

fn image(
    before: &mut ImageReader,
    after: &mut ImageReader,
) -> Result<Vec<BlockDifference>, SourceError> {
    let blocks = |index: &ImageIndex| -> BTreeSet<BlockIndex> {
        index.blocks.iter().map(|entry| entry.block).collect()
    };
    let mut differences = Vec::new();
    for block in blocks(before.index()).union(&blocks(after.index())) {
        let digest = |reader: &ImageReader| reader.index().entry(*block).map(|it| it.digest);
        // A record says what its pieces' content is by digests, whatever the layers are called.
        if digest(before) == digest(after) {
            continue;
        }
        let pages = self::block(before, after, *block)?;
        if !pages.is_empty() {
            let pages = pages.pages().map(|page| page as u16).collect();
            differences.push(BlockDifference { block: *block, pages });
        }
    }
    Ok(differences)
}

fn block(
    before: &mut ImageReader,
    after: &mut ImageReader,
    block: BlockIndex,
) -> Result<PageSet, SourceError> {
    let (old, new) = (pieces(before, block)?, pieces(after, block)?);
    let mut different = PageSet::EMPTY;
    if after.index().image.kind == ImageKind::Disk {
        // A page of zeroes is another thing than a page that is as in the base.
        let (old, new) = (record::pages(&old), record::pages(&new));
        different = old.minus(&new).union(&new.minus(&old));
    }
    for chunk in 0..CHUNKS_PER_BLOCK {
        let (old, new) = (of_chunk(&old, chunk), of_chunk(&new, chunk));
        if old.iter().map(content_key).eq(new.iter().map(content_key)) {
            continue;
        }
        let (mut one, mut other) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
        load(before, block, chunk, old, &mut one)?;
        load(after, block, chunk, new, &mut other)?;
        let pages = one.chunks_exact(PAGE_BYTES).zip(other.chunks_exact(PAGE_BYTES));
        let first = chunk.saturating_mul(crate::layout::PAGES_PER_CHUNK);
        for (page, (one, other)) in (first..).zip(pages) {
            if one != other {
                different.insert(page);
            }
        }
    }
    Ok(different)
}

/// The pieces of a block; none behind the end of an image.
fn pieces(reader: &mut ImageReader, block: BlockIndex) -> Result<Vec<Piece>, SourceError> {
    match reader.index().entry(block) {
        Some(_) => reader.pieces(block).map(<[Piece]>::to_vec),
        None => Ok(Vec::new()),
    }
}

fn load(
    reader: &mut ImageReader,
    block: BlockIndex,
    chunk: usize,
    pieces: &[Piece],
    out: &mut [u8; CHUNK_BYTES],
) -> Result<(), SourceError> {
    if pieces.is_empty() {
        return Ok(()); // all of it is zero
    }
    reader.load_chunk(block.chunk(chunk), out).map(|_| ())
}

/// What a piece's pages are, wherever they are stored.
fn content_key(piece: &Piece) -> (u16, u16, crate::record::Codec, crate::id::Digest) {
    (piece.stored, piece.used, piece.codec, piece.digest)
}

impl Difference {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty() && self.images.is_empty() && self.machine.is_empty()
    }
}

impl ImageDifference {
    /// How many pages differ.
    pub fn page_count(&self) -> usize {
        self.blocks.iter().map(|block| block.pages.len()).sum()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "no difference");
        }
        for fact in &self.facts {
            writeln!(f, "{fact} changed")?;
        }
        for image in &self.images {
            let pages = image.page_count();
            match image.change {
                Change::Changed => {
                    writeln!(f, "image {}: {pages} pages changed", image.name)?;
                }
                change => writeln!(f, "image {} {change}", image.name)?,
            }
            for block in &image.blocks {
                writeln!(f, "  block {}: {} pages", block.block, block.pages.len())?;
            }
        }
        for section in &self.machine {
            writeln!(f, "{} of {} {}", section.tag, section.name, section.change)?;
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        })
    }
}
