//! What `COPY` and `ADD` take from the archive.

use super::{Item, ItemContent};
use crate::archive::{Context, Entry, Kind};
use flate2::read::GzDecoder;
use rotifer_build_worker::glob;
use rotifer_build_worker::protocol::Compression;
use std::io::Read;

/// Where a tar has its magic.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;
const TAR_BLOCK_BYTES: usize = 512;

/// What sources mean.
pub struct Selection {
    /// What is copied.
    pub items: Vec<Item>,
    /// Whether it can only go into a directory.
    pub needs_directory: bool,
    /// How many sources there were, with those that patterns found.
    pub source_count: usize,
}

/// Finds what sources mean. A directory stands for its content.
///
/// # Errors
/// A source that is not there, for people.
pub fn select(context: &Context, sources: &[String]) -> Result<Selection, String> {
    let mut selection = Selection { items: Vec::new(), needs_directory: false, source_count: 0 };
    for source in sources {
        let path = glob::clean(source);
        let found = if glob::is_pattern(&path) { search(context, &path)? } else { vec![path] };
        if found.is_empty() {
            return Err(format!("nothing in the archive matches {source:?}"));
        }
        for path in found {
            selection.source_count += 1;
            take(context, source, &path, &mut selection)?;
        }
    }
    Ok(selection)
}

fn search(context: &Context, pattern: &str) -> Result<Vec<String>, String> {
    let matcher = glob::pattern(pattern)?;
    let names = context.visible().map(|(name, _)| name);
    Ok(names.filter(|name| matcher.is_match(name)).map(str::to_owned).collect())
}

fn take(
    context: &Context,
    source: &str,
    path: &str,
    selection: &mut Selection,
) -> Result<(), String> {
    if path.is_empty() {
        return take_directory(context, "", selection);
    }
    if context.get(path).is_none() {
        return Err(match context.follow(path) {
            Some(_) => format!("{source:?} is hidden by .dockerignore"),
            None => format!("{source:?} is not in the archive"),
        });
    }
    let real = context.follow(path).unwrap_or_default();
    let Some(entry) = context.get(&real) else {
        return Err(format!("{source:?} is a link to {real:?}, which is not in the archive"));
    };
    if entry.kind == Kind::Directory {
        return take_directory(context, &real, selection);
    }
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    selection.items.push(item(&real, name, entry));
    Ok(())
}

fn take_directory(
    context: &Context,
    directory: &str,
    selection: &mut Selection,
) -> Result<(), String> {
    selection.needs_directory = true;
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    for (path, entry) in context.visible() {
        if let Some(name) = path.strip_prefix(&prefix) {
            selection.items.push(item(path, name.to_owned(), entry));
        }
    }
    Ok(())
}

fn item(path: &str, name: String, entry: &Entry) -> Item {
    let content = match &entry.kind {
        Kind::Directory => ItemContent::Directory,
        Kind::File { size_bytes, digest, .. } => ItemContent::File(*digest, *size_bytes),
        Kind::Link { target } => ItemContent::Link(target.clone()),
    };
    Item { path: path.to_owned(), name, mode: entry.mode, content }
}

/// Whether `ADD` would unpack a file, and how.
///
/// # Errors
/// It is packed in a way that is not supported.
pub fn archive_kind(context: &Context, path: &str) -> Result<Option<Compression>, String> {
    let head = context.head(path).map_err(|error| error.to_string())?;
    if is_tar(&head) {
        return Ok(Some(Compression::None));
    }
    let other = [(&b"BZh"[..], "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];
    if let Some((_, name)) = other.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(format!(
            "ADD of a file compressed with {name} is not supported; COPY it and unpack it with RUN"
        ));
    }
    let mut block = Vec::new();
    let unpacked = GzDecoder::new(&head[..]).take(TAR_BLOCK_BYTES as u64).read_to_end(&mut block);
    // The head may end in the middle: what came out of it before counts.
    drop(unpacked);
    Ok(is_tar(&block).then_some(Compression::Gzip))
}

fn is_tar(head: &[u8]) -> bool {
    head.get(TAR_MAGIC) == Some(b"ustar")
}
