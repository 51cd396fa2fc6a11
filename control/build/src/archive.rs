//! The archive: a zip of unknown origin, looked at as hostile data and never unpacked on the host.
//!
//! Its directory is read with bounds, each name is checked, and each file is decompressed once to
//! learn its digest, with a count kept of what comes out. After that a [`Context`] is a list of names
//! with digests; contents are read again when a step wants them.

use crate::ignore::Ignore;
use crate::limits::{
    ARCHIVE_ENTRIES_MAX, ARCHIVE_MAX_BYTES, CONTEXT_MAX_BYTES, DOCKERFILE_MAX_BYTES, LINKS_MAX,
    NAME_MAX_BYTES, PATH_MAX_BYTES,
};
use rotifer_build_worker::glob;
use sha2::{Digest as _, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use zip::{CompressionMethod, ZipArchive};

const DOCKERFILE: &str = "Dockerfile";
const IGNORE_FILE: &str = ".dockerignore";
const COPY_BYTES: usize = 64 * 1024;
/// What begins each entry of a zip file's directory.
const ENTRY_SIGNATURE: &[u8] = b"PK\x01\x02";
/// What of a file is looked at to tell what it is.
const HEAD_BYTES: usize = 16 * 1024;
/// The file type of a Unix mode.
const TYPE_MASK: u32 = 0o170_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_LINK: u32 = 0o120_000;
const PERMISSIONS: u32 = 0o7777;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("cannot read the archive {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is no zip file, or a damaged one.
    #[error("the archive is not a valid zip file")]
    Zip(#[source] zip::result::ZipError),
    /// It is larger than anything that is built.
    #[error("the archive has {bytes} bytes; at most {ARCHIVE_MAX_BYTES} are allowed")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// It has too many entries.
    #[error("the archive has more than {ARCHIVE_ENTRIES_MAX} entries")]
    TooMany,
    /// Its files are too large when unpacked.
    #[error("the archive's files have more than {CONTEXT_MAX_BYTES} bytes when unpacked")]
    TooLargeUnpacked,
    /// An entry is not what it should be.
    #[error("the archive's entry {name:?} {reason}")]
    Entry {
        /// Its name.
        name: String,
        /// In what way.
        reason: String,
    },
    /// There is nothing to build.
    #[error("{0}")]
    NoDockerfile(String),
    /// `.dockerignore` is wrong.
    #[error("{0}")]
    Ignore(String),
}

/// What there is under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Its place in the archive.
        index: usize,
        /// Its length.
        size_bytes: u64,
        /// The SHA-256 of its content.
        digest: [u8; 32],
    },
    /// A symbolic link that stays inside.
    Link {
        /// Where it points, as written.
        target: String,
    },
}

/// A name of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its permissions.
    pub mode: u32,
}

/// The files that instructions can copy.
#[derive(Debug)]
pub struct Context {
    archive: RefCell<ZipArchive<BufReader<File>>>,
    entries: BTreeMap<String, Entry>,
    ignore: Ignore,
}

fn entry_error(name: &str, reason: impl Into<String>) -> ArchiveError {
    ArchiveError::Entry { name: name.chars().take(NAME_MAX_BYTES).collect(), reason: reason.into() }
}

impl Context {
    /// Looks at all of an archive.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let read = |source| ArchiveError::Read { path: path.into(), source };
        let file = File::open(path).map_err(read)?;
        let bytes = file.metadata().map_err(read)?.len();
        if bytes > ARCHIVE_MAX_BYTES {
            return Err(ArchiveError::TooLarge { bytes });
        }
        if !count_entries(&mut &file).map_err(read)? {
            return Err(ArchiveError::TooMany);
        }
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(ArchiveError::Zip)?;
        if archive.has_duplicate_names() {
            return Err(entry_error("", "stands in it twice"));
        }
        if archive.has_overlapping_entries().map_err(ArchiveError::Zip)? {
            return Err(entry_error("", "shares its bytes with another one"));
        }
        let mut entries = BTreeMap::new();
        let mut left_bytes = CONTEXT_MAX_BYTES;
        for index in 0..archive.len() {
            if let Some((name, entry)) = inspect(&mut archive, index, &mut left_bytes)?
                && entries.insert(name.clone(), entry).is_some()
            {
                return Err(entry_error(&name, "stands in it twice"));
            }
        }
        check_tree(&mut entries)?;
        let archive = RefCell::new(archive);
        let mut context = Self { archive, entries, ignore: Ignore::default() };
        if let Some(text) = context.text(IGNORE_FILE)? {
            context.ignore = Ignore::parse(&text).map_err(ArchiveError::Ignore)?;
        }
        Ok(context)
    }

    /// The text of the Dockerfile.
    ///
    /// # Errors
    /// There is none, or it is no text.
    pub fn dockerfile(&self) -> Result<String, ArchiveError> {
        if let Some(text) = self.text(DOCKERFILE)? {
            return Ok(text);
        }
        let deeper = self.entries.keys().find(|name| {
            name.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(DOCKERFILE))
        });
        Err(ArchiveError::NoDockerfile(match deeper {
            Some(found) => format!(
                "the archive has no file {DOCKERFILE} at its root; there is {found:?}: zip the \
                 content of its directory under that name"
            ),
            None => format!("the archive has no file {DOCKERFILE} at its root"),
        }))
    }

    fn text(&self, name: &str) -> Result<Option<String>, ArchiveError> {
        let Some(found) = self.follow(name) else { return Ok(None) };
        let Some(Entry { kind: Kind::File { size_bytes, .. }, .. }) = self.entries.get(&found)
        else {
            return Ok(None);
        };
        if *size_bytes > DOCKERFILE_MAX_BYTES {
            let reason =
                format!("has {size_bytes} bytes; at most {DOCKERFILE_MAX_BYTES} are allowed");
            return Err(entry_error(name, reason));
        }
        let mut bytes = Vec::new();
        self.read(&found, &mut bytes)?;
        // As editors of another system leave it.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes).to_vec();
        String::from_utf8(bytes).map(Some).map_err(|_| entry_error(name, "is not UTF-8 text"))
    }

    /// What instructions see of a path: not what `.dockerignore` hides.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path).filter(|_| !self.ignore.hides(path))
    }

    /// All that instructions see, in the order of the names.
    pub fn visible(&self) -> impl Iterator<Item = (&str, &Entry)> {
        let all = self.entries.iter().map(|(name, entry)| (name.as_str(), entry));
        all.filter(|(name, _)| !self.ignore.hides(name))
    }

    /// The name that links lead to, at most [`LINKS_MAX`] of them.
    #[must_use]
    pub fn follow(&self, path: &str) -> Option<String> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            match self.entries.get(&path) {
                Some(Entry { kind: Kind::Link { target }, .. }) => {
                    path = resolve_link(&path, target)?;
                }
                Some(_) => return Some(path),
                None => return None,
            }
        }
        None
    }

    /// The beginning of a file.
    ///
    /// # Errors
    /// The archive has changed.
    pub fn head(&self, path: &str) -> Result<Vec<u8>, ArchiveError> {
        let mut head = Head(Vec::new());
        match self.read(path, &mut head) {
            Err(error) if head.0.len() < HEAD_BYTES => Err(error),
            _ => Ok(head.0),
        }
    }

    /// Writes a file's content.
    ///
    /// # Errors
    /// The archive has changed, or `sink` does not take it.
    pub fn read(&self, path: &str, sink: &mut dyn Write) -> Result<(), ArchiveError> {
        self.with_file(path, |content| io::copy(content, sink).map(drop))
    }

    /// Has a file read, to its end.
    ///
    /// # Errors
    /// The archive has changed, or the reader fails.
    pub fn with_file(
        &self,
        path: &str,
        reader: impl FnOnce(&mut dyn Read) -> io::Result<()>,
    ) -> Result<(), ArchiveError> {
        let Some(Entry { kind: Kind::File { index, size_bytes, .. }, .. }) = self.entries.get(path)
        else {
            return Err(entry_error(path, "is not a file"));
        };
        let mut archive = self.archive.borrow_mut();
        let file = archive.by_index(*index).map_err(ArchiveError::Zip)?;
        let mut content = file.take(*size_bytes);
        let failed = |source| ArchiveError::Read { path: path.into(), source };
        reader(&mut content).map_err(failed)?;
        match content.limit() {
            0 => Ok(()),
            _ => Err(entry_error(path, "has changed")),
        }
    }
}

/// A sink that has enough at some point, and says so with an error.
struct Head(Vec<u8>);

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEAD_BYTES - self.0.len();
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = room.min(bytes.len());
        self.0.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts before anything is kept, since the directory of a small archive can be long: each entry has a
/// signature. Those of archives inside this one that are stored as they are count, too.
fn count_entries(reader: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; COPY_BYTES];
    let (mut count, mut kept) = (0_usize, 0);
    loop {
        let room = buffer.get_mut(kept..).unwrap_or_default();
        let read = reader.read(room)?;
        if read == 0 {
            return Ok(count <= ARCHIVE_ENTRIES_MAX);
        }
        let filled = buffer.get(..kept + read).unwrap_or_default();
        let is_entry = |window: &&[u8]| *window == ENTRY_SIGNATURE;
        count += filled.windows(ENTRY_SIGNATURE.len()).filter(is_entry).count();
        if count > ARCHIVE_ENTRIES_MAX {
            return Ok(false);
        }
        // The next one may begin in what is here.
        let end = kept + read;
        let keep = end.min(ENTRY_SIGNATURE.len() - 1);
        buffer.copy_within(end - keep..end, 0);
        kept = keep;
    }
}

/// One entry: its name and what it is; none for the root itself.
fn inspect(
    archive: &mut ZipArchive<BufReader<File>>,
    index: usize,
    left_bytes: &mut u64,
) -> Result<Option<(String, Entry)>, ArchiveError> {
    let mut file = archive.by_index(index).map_err(ArchiveError::Zip)?;
    let shown = String::from_utf8_lossy(file.name_raw()).into_owned();
    let raw = std::str::from_utf8(file.name_raw())
        .map_err(|_| entry_error(&shown, "has a name that is not UTF-8"))?;
    let name = check_name(raw)?;
    if file.encrypted() {
        return Err(entry_error(&name, "is encrypted"));
    }
    let method = file.compression();
    if !matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated) {
        return Err(entry_error(&name, format!("is compressed with {method}; use deflate")));
    }
    let mode = file.unix_mode();
    let permissions = |default| mode.map_or(default, |mode| mode & PERMISSIONS);
    let file_type = mode.map_or(0, |mode| mode & TYPE_MASK);
    let entry = match (file_type, raw.ends_with('/')) {
        (0 | TYPE_DIRECTORY, true) | (TYPE_DIRECTORY, false) => {
            if name.is_empty() {
                return Ok(None);
            }
            Entry { kind: Kind::Directory, mode: permissions(0o755) }
        }
        (0 | TYPE_FILE, false) => {
            let (size_bytes, digest) = digest_of(&mut file, &name, left_bytes)?;
            Entry { kind: Kind::File { index, size_bytes, digest }, mode: permissions(0o644) }
        }
        (TYPE_LINK, false) => {
            let mut target = Vec::new();
            let read = |source| ArchiveError::Read { path: name.clone().into(), source };
            (&mut file).take(PATH_MAX_BYTES as u64 + 1).read_to_end(&mut target).map_err(read)?;
            let target = String::from_utf8(target)
                .ok()
                .filter(|target| target.len() <= PATH_MAX_BYTES && !target.contains('\0'))
                .ok_or_else(|| entry_error(&name, "is a link with a target that is no path"))?;
            if resolve_link(&name, &target).is_none() {
                return Err(entry_error(&name, format!("links out of the archive, to {target:?}")));
            }
            Entry { kind: Kind::Link { target }, mode: 0o777 }
        }
        _ => return Err(entry_error(&name, "is neither a file nor a directory nor a link")),
    };
    if name.is_empty() {
        return Err(entry_error(&shown, "has no name"));
    }
    Ok(Some((name, entry)))
}

/// Decompresses a file to learn its length and digest; what it claims of itself counts for nothing.
fn digest_of(
    file: &mut impl Read,
    name: &str,
    left_bytes: &mut u64,
) -> Result<(u64, [u8; 32]), ArchiveError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut size_bytes = 0;
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(|source| entry_error(name, format!("cannot be unpacked: {source}")))?;
        if count == 0 {
            return Ok((size_bytes, hasher.finalize().into()));
        }
        size_bytes += count as u64;
        *left_bytes = left_bytes.checked_sub(count as u64).ok_or(ArchiveError::TooLargeUnpacked)?;
        hasher.update(buffer.get(..count).unwrap_or_default());
    }
}

/// A name that stays inside: relative, without `..`, of a length that Linux takes.
fn check_name(raw: &str) -> Result<String, ArchiveError> {
    let bad = |reason: &str| Err(entry_error(raw, reason));
    if raw.starts_with('/') {
        return bad("has an absolute name");
    }
    if raw.contains('\\') {
        return bad("has a backslash in its name; names are separated by slashes");
    }
    if raw.chars().any(|character| character == '\0') {
        return bad("has a NUL in its name");
    }
    if raw.split('/').any(|part| part == "..") {
        return bad("leads out of the archive");
    }
    if raw.len() > PATH_MAX_BYTES || raw.split('/').any(|part| part.len() > NAME_MAX_BYTES) {
        return bad("has a name that is too long");
    }
    Ok(glob::clean(raw))
}

/// Where a link leads, relative to the root; none if that is outside.
fn resolve_link(name: &str, target: &str) -> Option<String> {
    if target.is_empty() || target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            other => parts.push(other),
        }
    }
    Some(parts.join("/"))
}

/// Adds the directories that names imply. Nothing is below a file, and nothing below a link: what is
/// written through a link would land elsewhere.
fn check_tree(entries: &mut BTreeMap<String, Entry>) -> Result<(), ArchiveError> {
    let names: Vec<String> = entries.keys().cloned().collect();
    for name in names {
        for (end, _) in name.match_indices('/') {
            let parent = name.get(..end).unwrap_or_default();
            match entries.get(parent).map(|entry| &entry.kind) {
                Some(Kind::Directory) => {}
                Some(_) => {
                    return Err(entry_error(&name, "is below something that is no directory"));
                }
                None => {
                    let entry = Entry { kind: Kind::Directory, mode: 0o755 };
                    entries.insert(parent.to_owned(), entry);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
