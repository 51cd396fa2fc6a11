//! Which pages a machine needed, and which it wrote, from its restore until now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rotifer_devices::GuestMemory;
use rotifer_snapshot::layout::{CHUNK_BYTES, PAGE_BYTES, PAGES_PER_CHUNK};
use rotifer_snapshot::pager::{Pager, Touch};
use rotifer_snapshot::{HostStorage, PageRun, PageSource, commit_manifest};
use vm_memory::{Bytes, GuestAddress};

use super::{HostFile, Origin, OriginError, SnapshotError};
use crate::arch::aarch64::layout::RAM_START;
use crate::config::Config;

/// Writes the snapshot that the machine comes from once more, to `path`, with what its memory was
/// touched for since then; nobody changes `memory` meanwhile. The packs stay as they are.
///
/// # Errors
/// See [`SnapshotError`]; what is at `path` is as it was.
pub fn record(
    memory: &GuestMemory,
    pager: &Pager,
    origin: &Origin,
    config: &Config,
    path: &Path,
) -> Result<(), SnapshotError> {
    if !origin.snapshot.is_durable().map_err(SnapshotError::Durable)? {
        return Err(SnapshotError::NotDurable);
    }
    let mut source = origin.snapshot.memory().map_err(OriginError::from)?;
    let mut manifest = origin.snapshot.manifest().clone();
    manifest.working_set = runs(&pager.touches(), memory, &mut source)?;
    let packs: BTreeMap<String, PathBuf> = origin.packs.clone();
    HostFile::of(config, packs).write(&HostStorage, path)?;
    let id = commit_manifest(&HostStorage, path, &manifest)?;
    let runs = manifest.working_set.len();
    tracing::info!(snapshot = %id, runs, "a snapshot has a working set");
    Ok(())
}

/// The pages of these chunks, in the same order: those that differ from the image were written.
fn runs(
    touches: &[Touch],
    memory: &GuestMemory,
    source: &mut dyn PageSource,
) -> Result<Vec<PageRun>, SnapshotError> {
    let mut runs: Vec<PageRun> = Vec::new();
    let mut saved = Box::new([0; CHUNK_BYTES]);
    let mut now = vec![0; CHUNK_BYTES];
    for Touch { chunk, .. } in touches {
        source.load_chunk(*chunk, &mut saved).map_err(SnapshotError::Source)?;
        let first = chunk.first_page();
        memory.read_slice(&mut now, GuestAddress(RAM_START.0 + first.offset_bytes()))?;
        let pages = saved.chunks_exact(PAGE_BYTES).zip(now.chunks_exact(PAGE_BYTES));
        for (number, (saved, now)) in (0..PAGES_PER_CHUNK as u32).zip(pages) {
            let (page, written) = (first.0 + number, saved != now);
            let follows = |run: &&mut PageRun| {
                run.written == written && run.first_page + run.page_count == page
            };
            match runs.last_mut().filter(follows) {
                Some(run) => run.page_count += 1,
                None => runs.push(PageRun { first_page: page, page_count: 1, written }),
            }
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use rotifer_snapshot::layout::{ChunkIndex, PageIndex};
    use rotifer_snapshot::{MemorySource, Name};
    use vm_memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn pages_that_differ_from_the_image_were_written() {
        const CHUNKS: usize = 4;
        let memory = GuestMemoryMmap::from_ranges(&[(RAM_START, CHUNKS * CHUNK_BYTES)]).unwrap();
        let mut source =
            MemorySource::new(Name::new("ram").unwrap(), vec![0; CHUNKS * CHUNK_BYTES]);
        let write = |page: u32| {
            let offset = PageIndex(page).offset_bytes();
            memory.write_obj(7_u64, GuestAddress(RAM_START.0 + offset + 100)).unwrap();
        };
        [33, 34, 0].into_iter().for_each(write);
        let touch = |chunk| Touch { chunk: ChunkIndex(chunk), is_write: false };
        let found = runs(&[touch(2), touch(3), touch(0)], &memory, &mut source).unwrap();
        let found: Vec<_> =
            found.iter().map(|run| (run.first_page, run.page_count, run.written)).collect();
        let expected =
            [(32, 1, false), (33, 2, true), (35, 29, false), (0, 1, true), (1, 15, false)];
        assert_eq!(found, expected);
    }
}
