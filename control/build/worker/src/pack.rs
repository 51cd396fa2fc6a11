//! Files of a root become a tar.

use super::{WorkerError, failed};
use crate::glob;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use tar::Builder;

/// Writes what `sources` mean below `root`. A directory stands for its content, and is said to be one
/// by an entry for itself.
pub fn pack(root: &Path, sources: &[String], output: impl Write) -> Result<(), WorkerError> {
    let mut builder = Builder::new(io::BufWriter::new(output));
    builder.follow_symlinks(false);
    for source in sources {
        let found = search(root, source)?;
        if found.is_empty() {
            return Err(WorkerError::Refused(format!("there is no {source:?}")));
        }
        for path in found {
            let attempt = || format!("read {}", path.display());
            let metadata = fs::metadata(&path).map_err(failed(attempt()))?;
            if metadata.is_dir() {
                builder.append_dir(".", &path).map_err(failed(attempt()))?;
                pack_directory(&mut builder, &path, Path::new(""))?;
            } else {
                let name = path.file_name().unwrap_or_default();
                let mut file = fs::File::open(&path).map_err(failed(attempt()))?;
                builder.append_file(name, &mut file).map_err(failed(attempt()))?;
            }
        }
    }
    let mut output = builder.into_inner().map_err(failed("end the tar"))?;
    output.flush().map_err(failed("end the tar"))
}

fn pack_directory(
    builder: &mut Builder<impl Write>,
    directory: &Path,
    name: &Path,
) -> Result<(), WorkerError> {
    // A tree can be deeper than a stack.
    let mut pending = vec![(directory.to_path_buf(), name.to_path_buf())];
    while let Some((directory, name)) = pending.pop() {
        for entry in sorted(&directory)? {
            let (path, name) = (directory.join(&entry), name.join(&entry));
            let attempt = || format!("read {}", path.display());
            let kind = fs::symlink_metadata(&path).map_err(failed(attempt()))?.file_type();
            if kind.is_socket() {
                continue; // nobody listens on a copy
            }
            builder.append_path_with_name(&path, &name).map_err(failed(attempt()))?;
            if kind.is_dir() {
                pending.push((path, name));
            }
        }
    }
    Ok(())
}

/// The paths that a pattern means, in order.
fn search(root: &Path, pattern: &str) -> Result<Vec<PathBuf>, WorkerError> {
    let mut found = vec![root.to_path_buf()];
    for part in glob::clean(pattern).split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for directory in found {
            if !glob::is_pattern(part) {
                let path = directory.join(part);
                next.extend(fs::symlink_metadata(&path).is_ok().then_some(path));
                continue;
            }
            let matcher = glob::pattern(part).map_err(WorkerError::Refused)?;
            if directory.is_dir() {
                let names = sorted(&directory)?.into_iter();
                let matching = names.filter(|name| matcher.is_match(name));
                next.extend(matching.map(|name| directory.join(name)));
            }
        }
        found = next;
    }
    Ok(found)
}

fn sorted(directory: &Path) -> Result<Vec<std::ffi::OsString>, WorkerError> {
    let attempt = || format!("list {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(attempt()))? {
        names.push(entry.map_err(failed(attempt()))?.file_name());
    }
    names.sort();
    Ok(names)
}
