//! What there is: one entry, or a directory page by page.

use super::super::error::ApiError;
use super::super::query::encode;
use crate::limits::LIST_PAGE_MAX_COUNT;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// One file of whatever kind; links are not followed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    /// The last part of the path; bytes that are not UTF-8 are replaced.
    name: String,
    /// The same percent-encoded, if `name` is not exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoded_name: Option<String>,
    kind: &'static str,
    size_bytes: u64,
    mode: String,
    uid: u32,
    gid: u32,
    modified_ns: i128,
    /// Where a link points to.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// A page of a directory in the order of its names' bytes.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    entries: Vec<Entry>,
    /// What `after` has to be for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

pub(super) fn stat(path: &Path) -> Result<Entry, ApiError> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| ApiError::file("stat", &path.display().to_string(), &error))?;
    let name = path.file_name().unwrap_or(OsStr::new("/"));
    Ok(Entry::new(name, path, &metadata))
}

/// Keeps only the names of one page while it reads the directory, however large that is.
pub(super) fn list(path: &Path, after: &[u8], limit: Option<u64>) -> Result<Page, ApiError> {
    let limit = limit.map_or(LIST_PAGE_MAX_COUNT, |limit| usize::try_from(limit).unwrap_or(0));
    if !(1..=LIST_PAGE_MAX_COUNT).contains(&limit) {
        let message = format!("limit is between 1 and {LIST_PAGE_MAX_COUNT}");
        return Err(ApiError::bad_request(message));
    }
    let fail = |error: std::io::Error| ApiError::file("list", &path.display().to_string(), &error);
    let mut names: BTreeSet<OsString> = BTreeSet::new();
    let mut more = false;
    for entry in fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        if name.as_bytes() <= after {
            continue;
        }
        names.insert(name);
        if names.len() > limit {
            names.pop_last();
            more = true;
        }
    }
    let next = names.last().filter(|_| more).map(|name| encode(name.as_bytes()));
    let entries = names.into_iter().filter_map(|name| {
        let path = path.join(&name);
        // What was deleted since it was read is not there any more.
        Some(Entry::new(&name, &path, &fs::symlink_metadata(&path).ok()?))
    });
    Ok(Page { entries: entries.collect(), next })
}

impl Entry {
    fn new(name: &OsStr, path: &Path, metadata: &Metadata) -> Self {
        let is_exact = name.to_str().is_some();
        let modified_ns =
            i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self {
            name: name.to_string_lossy().into_owned(),
            encoded_name: (!is_exact).then(|| encode(name.as_bytes())),
            kind: kind(metadata),
            size_bytes: metadata.len(),
            mode: format!("{:04o}", metadata.mode() & 0o7777),
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified_ns,
            target: fs::read_link(path).ok().map(|target| target.display().to_string()),
        }
    }
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "link",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_block_device() => "block",
        () if kind.is_char_device() => "character",
        () => "other",
    }
}
