//! One chunk of a block that changes: which of its pages have to be written, and which stay.

use std::collections::HashMap;

use zstd::bulk::Compressor;

use crate::id::Digest;
use crate::image_reader::ImageReader;
use crate::layout::{CHUNK_BYTES, ChunkIndex, PAGE_BYTES, PAGES_PER_CHUNK};
use crate::page_set::bits;
use crate::record::{Codec, Piece};
use crate::source::PageSource;

use super::pack_file::PackFile;
use super::{Compare, Options, WriteError};

/// Pieces of one chunk, above which a change rewrites them as one: it bounds how much is read for
/// a fault, and costs a chunk now and then.
const PIECES_PER_CHUNK_LIKED: usize = 4;

/// What happened to the pages that a writer was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Pages that were given.
    pub given_pages: u64,
    /// Of these, pages that are zero.
    pub zero_pages: u64,
    /// Of these, pages that are as they were in the parent.
    pub same_pages: u64,
    /// Pages whose content was in the new pack already.
    pub repeated_pages: u64,
    /// Pages that were written, with those taken along to keep chunks in few pieces.
    pub written_pages: u64,
}

/// New content for pages of a chunk.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    /// Which chunk of the image.
    pub chunk: ChunkIndex,
    /// Which pages.
    pub pages: u16,
    /// The pages, one after the other; none if they become zero.
    pub content: Option<&'a [u8]>,
    /// Whether pages of zeroes are content as any other, because a page that is not there is not
    /// zero.
    pub keeps_zeroes: bool,
}

pub(super) struct ChunkWriter {
    /// The slot of the pack.
    layer: u8,
    compare: Compare,
    compressor: Option<Compressor<'static>>,
    /// What the pack has already, by the digest of the content.
    known: HashMap<Digest, Stored>,
    /// Digests of so many pages of zeroes: a disk may have been trimmed by the gigabyte.
    zero_digests: [Option<Digest>; PAGES_PER_CHUNK + 1],
    base: Box<Pages>,
    gathered: Vec<u8>,
    pub(super) statistics: Statistics,
}

type Page = [u8; PAGE_BYTES];
type Pages = [Page; PAGES_PER_CHUNK];

static ZEROES: Pages = [[0; PAGE_BYTES]; PAGES_PER_CHUNK];

#[derive(Clone, Copy)]
struct Stored {
    codec: Codec,
    offset: u64,
    bytes: u32,
    digest: Digest,
}

impl ChunkWriter {
    pub(super) fn new(layer: u8, options: Options) -> Result<Self, WriteError> {
        let compressor =
            options.compression.map(Compressor::new).transpose().map_err(WriteError::Compress)?;
        Ok(Self {
            layer,
            compare: options.compare,
            compressor,
            known: HashMap::new(),
            zero_digests: [None; PAGES_PER_CHUNK + 1],
            base: Box::new([[0; PAGE_BYTES]; PAGES_PER_CHUNK]),
            gathered: Vec::with_capacity(CHUNK_BYTES),
            statistics: Statistics::default(),
        })
    }

    /// Changes the pieces of one chunk. `base` is the parent's image, which has the content of
    /// those pieces that are not of the new pack.
    pub(super) fn change(
        &mut self,
        pieces: &mut Vec<Piece>,
        change: Change<'_>,
        base: Option<&mut ImageReader>,
        pack: &mut PackFile,
    ) -> Result<(), WriteError> {
        let given = given_pages(change);
        let mut fresh = if change.keeps_zeroes { change.pages } else { pages_with_data(&given) };
        let zero = change.pages & !fresh;
        self.count(change.pages, zero);
        let of_base = used(pieces, |piece| piece.layer != self.layer);
        let base = base.filter(|_| of_base != 0);
        let compared = self.compare_with_one(pieces, fresh, change);
        if let Some(Compared { is_same: true, .. }) = compared {
            self.statistics.same_pages = add(self.statistics.same_pages, fresh);
            fresh = 0;
        }
        let mut loaded = false;
        if let Some(base) = base {
            let compare = self.compare == Compare::Pages && of_base & fresh != 0;
            let many = fresh != 0 && pieces.len() >= PIECES_PER_CHUNK_LIKED;
            if compare || many {
                let result = base.load_chunk(change.chunk, as_chunk(&mut self.base));
                loaded = result.is_ok();
                // Putting a chunk together is a favour that a broken parent need not be done.
                result.map(|_| ()).or_else(|error| if compare { Err(error) } else { Ok(()) })?;
            }
            if compare {
                let same = same_pages(&given, &self.base) & of_base & fresh;
                self.statistics.same_pages = add(self.statistics.same_pages, same);
                fresh &= !same;
            }
        }
        remove(pieces, zero | fresh);
        if fresh == 0 {
            return Ok(());
        }
        let mut along = 0;
        if loaded && pieces.len() >= PIECES_PER_CHUNK_LIKED {
            along = used(pieces, |piece| piece.layer != self.layer);
            remove(pieces, along);
        }
        let piece = if fresh != change.pages || along != 0 {
            self.store_gathered(&given, fresh, along, pack)?
        } else {
            let digest = compared.map(|it| it.digest).unwrap_or_else(|| self.digest(change));
            self.store(content(change), digest, pack)?
        };
        let pages = fresh | along;
        let chunk = change.chunk.in_block() as u8;
        pieces.push(Piece { chunk, stored: pages, used: pages, ..piece });
        Ok(())
    }

    fn store_gathered(
        &mut self,
        given: &[Option<&Page>; PAGES_PER_CHUNK],
        fresh: u16,
        along: u16,
        pack: &mut PackFile,
    ) -> Result<Piece, WriteError> {
        let mut gathered = std::mem::take(&mut self.gathered);
        gathered.clear();
        for page in bits(fresh | along) {
            let new =
                given.get(page).copied().flatten().filter(|_| bits(fresh).any(|new| new == page));
            let page = new.or(self.base.get(page)).expect("a chunk has 16 pages");
            gathered.extend_from_slice(page);
        }
        let stored = self.store(&gathered, Digest::of(&gathered), pack);
        self.gathered = gathered;
        stored
    }

    /// Puts content with this digest into the pack, unless it is there.
    fn store(
        &mut self,
        content: &[u8],
        key: Digest,
        pack: &mut PackFile,
    ) -> Result<Piece, WriteError> {
        let page_count = (content.len() / PAGE_BYTES) as u64;
        let stored = match self.known.get(&key) {
            Some(stored) => {
                let count = &mut self.statistics.repeated_pages;
                *count = count.saturating_add(page_count);
                *stored
            }
            None => {
                let stored = self.append(content, key, pack)?;
                self.known.insert(key, stored);
                let count = &mut self.statistics.written_pages;
                *count = count.saturating_add(page_count);
                stored
            }
        };
        let Stored { codec, offset, bytes, digest } = stored;
        let (layer, stored_bytes) = (self.layer, bytes);
        Ok(Piece { chunk: 0, stored: 0, used: 0, layer, codec, offset, stored_bytes, digest })
    }

    /// `digest` is that of the content.
    fn append(
        &mut self,
        content: &[u8],
        digest: Digest,
        pack: &mut PackFile,
    ) -> Result<Stored, WriteError> {
        if let Some(compressor) = &mut self.compressor {
            let compressed = compressor.compress(content).map_err(WriteError::Compress)?;
            if compressed.len() < content.len() {
                let (offset, bytes) = (pack.append(&compressed)?, compressed.len() as u32);
                let digest = Digest::of(&compressed);
                return Ok(Stored { codec: Codec::Zstd, offset, bytes, digest });
            }
        }
        let (offset, bytes) = (pack.append(content)?, content.len() as u32);
        Ok(Stored { codec: Codec::Raw, offset, bytes, digest })
    }

    /// Whether the pages that have data are just what one of the pieces has, by its digest; none if
    /// no piece has the same pages. (The digest of a compressed piece says nothing of its pages.)
    fn compare_with_one(
        &mut self,
        pieces: &[Piece],
        fresh: u16,
        change: Change<'_>,
    ) -> Option<Compared> {
        let whole = |piece: &&Piece| {
            piece.codec == Codec::Raw && piece.stored == fresh && piece.used == fresh
        };
        let piece = pieces.iter().find(whole)?;
        // Pages with zeroes among them that do not count are compared one by one instead.
        let digest = (change.pages == fresh).then(|| self.digest(change))?;
        Some(Compared { is_same: digest == piece.digest, digest })
    }

    /// The digest of what was given, which is most of the work.
    fn digest(&mut self, change: Change<'_>) -> Digest {
        let bytes = content(change);
        let count = bytes.len() / PAGE_BYTES;
        match self.zero_digests.get_mut(count).filter(|_| change.content.is_none()) {
            Some(digest) => *digest.get_or_insert_with(|| Digest::of(bytes)),
            None => Digest::of(bytes),
        }
    }

    fn count(&mut self, given: u16, zero: u16) {
        let statistics = &mut self.statistics;
        statistics.given_pages = add(statistics.given_pages, given);
        statistics.zero_pages = add(statistics.zero_pages, zero);
    }
}

/// Given pages beside those of a piece.
#[derive(Clone, Copy)]
struct Compared {
    is_same: bool,
    /// Of what was given.
    digest: Digest,
}

/// What was given, one page after the other.
fn content(change: Change<'_>) -> &[u8] {
    let count = change.pages.count_ones() as usize;
    let zeroes = || ZEROES.get(..count).unwrap_or(&ZEROES).as_flattened();
    change.content.unwrap_or_else(zeroes)
}

/// The given pages by their place in the chunk.
fn given_pages(change: Change<'_>) -> [Option<&Page>; PAGES_PER_CHUNK] {
    let mut given = [None; PAGES_PER_CHUNK];
    let (pages, _) = content(change).as_chunks::<PAGE_BYTES>();
    for (place, page) in bits(change.pages).zip(pages) {
        if let Some(given) = given.get_mut(place) {
            *given = Some(page);
        }
    }
    given
}

fn pages_with_data(given: &[Option<&Page>; PAGES_PER_CHUNK]) -> u16 {
    let has_data = |page: &Option<&Page>| page.is_some_and(|page| *page != [0; PAGE_BYTES]);
    mask(given.iter().map(has_data))
}

fn same_pages(given: &[Option<&Page>; PAGES_PER_CHUNK], base: &Pages) -> u16 {
    mask(given.iter().zip(base).map(|(page, base)| page.is_some_and(|page| page == base)))
}

/// A bit for each of 16 answers.
fn mask(answers: impl Iterator<Item = bool>) -> u16 {
    answers
        .zip(0_u32..)
        .fold(0, |mask, (answer, place)| mask | u16::from(answer).checked_shl(place).unwrap_or(0))
}

/// The pages that come from some of the pieces.
fn used(pieces: &[Piece], wanted: impl Fn(&Piece) -> bool) -> u16 {
    pieces.iter().filter(|piece| wanted(piece)).fold(0, |pages, piece| pages | piece.used)
}

/// Takes pages from whatever pieces they come from.
fn remove(pieces: &mut Vec<Piece>, pages: u16) {
    pieces.iter_mut().for_each(|piece| piece.used &= !pages);
    pieces.retain(|piece| piece.used != 0);
}

fn as_chunk(pages: &mut Pages) -> &mut [u8; CHUNK_BYTES] {
    pages.as_flattened_mut().try_into().expect("16 pages of 4 KiB are 64 KiB")
}

fn add(count: u64, pages: u16) -> u64 {
    count.saturating_add(pages.count_ones().into())
}
