//! Compaction: the same snapshot in fewer packs.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::id::PackId;
use crate::image_reader::ImageReader;
use crate::layout::{BLOCK_BYTES, BlockIndex, PAGE_BYTES};
use crate::name::Name;
use crate::record::{self, Piece};
use crate::snapshot::Snapshot;
use crate::source::PageSource;
use crate::storage::Storage;
use crate::writer::{Committed, Description, Options, WriteError, Writer};

/// Where a compacted snapshot goes.
#[derive(Debug, Clone)]
pub struct Compaction<'a> {
    /// The new pack.
    pub pack_path: &'a Path,
    /// The new manifest; the old one's path to replace it.
    pub manifest_path: &'a Path,
    /// How to write; a level of zstd makes a snapshot fit for cold storage.
    pub options: Options,
    /// Packs that stay, such as that of a base which other snapshots share. All that comes from
    /// other packs is copied into the new one.
    pub keep: BTreeSet<PackId>,
}

/// Writes a snapshot again, with all that it has in packs not to be kept in one new pack. Blocks
/// become easy to read: one piece for each chunk, in order.
///
/// # Errors
/// The old snapshot cannot be read, or the new one not be written; the old one is as it was.
pub fn compact(
    snapshot: &Snapshot,
    storage: Arc<dyn Storage>,
    compaction: &Compaction<'_>,
) -> Result<Committed, WriteError> {
    let Compaction { pack_path, manifest_path, options, keep } = compaction;
    let mut writer = Writer::create_again(storage, pack_path, *options, snapshot, keep)?;
    let mut content = Vec::with_capacity(BLOCK_BYTES);
    for index in &snapshot.manifest().images {
        let name = &index.image.name;
        // The manifest was checked when the snapshot was opened: it has this image.
        let Ok(mut reader) = snapshot.image(name) else { continue };
        for entry in &index.blocks {
            copy_block(&mut reader, &mut writer, name, entry.block, &mut content)?;
        }
    }
    writer.commit(manifest_path, Description::of(snapshot.manifest()))
}

fn copy_block(
    reader: &mut ImageReader,
    writer: &mut Writer,
    name: &Name,
    block: BlockIndex,
    content: &mut Vec<u8>,
) -> Result<(), WriteError> {
    let pieces = reader.pieces(block)?;
    let kept: Vec<Piece> =
        pieces.iter().filter(|piece| writer.has_layer(piece.layer)).copied().collect();
    let moved = record::pages(pieces).minus(&record::pages(&kept));
    writer.adopt(name, block, kept)?;
    content.clear();
    let mut chunk = [0; crate::layout::CHUNK_BYTES];
    for (number, pages) in moved.chunks() {
        reader.load_chunk(block.chunk(number), &mut chunk)?;
        let (all, _) = chunk.as_chunks::<PAGE_BYTES>();
        let moved = crate::page_set::bits(pages).filter_map(|page| all.get(page));
        moved.for_each(|page| content.extend_from_slice(page));
    }
    writer.put_block(name, block, &moved, content)
}
