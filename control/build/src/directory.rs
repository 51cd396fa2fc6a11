//! A directory of somebody at the keyboard becomes the archive that everybody else uploads.

use crate::ignore::Ignore;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// What a build reads although `.dockerignore` hides it.
const ALWAYS: [&str; 2] = ["Dockerfile", ".dockerignore"];
/// What no build needs. In a worktree of git it is a file.
const HISTORY: &str = ".git";

/// Why a directory cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The system refused.
    #[error("cannot pack {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An archive cannot have it.
    #[error("cannot pack {}: {reason}", path.display())]
    Refused {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

fn failed<E: Into<io::Error>>(path: &Path) -> impl FnOnce(E) -> DirectoryError {
    let path = path.to_path_buf();
    move |source| DirectoryError::Io { path, source: source.into() }
}

fn refused(path: &Path, reason: impl Into<String>) -> DirectoryError {
    DirectoryError::Refused { path: path.into(), reason: reason.into() }
}

/// Packs what `.dockerignore` does not hide into a temporary zip, uncompressed. The same files are the same
/// bytes, whenever and wherever they are packed. The history of the sources is left out.
///
/// # Errors
/// The file or directory that cannot be packed.
pub fn pack(root: &Path) -> Result<NamedTempFile, DirectoryError> {
    let ignore_path = root.join(".dockerignore");
    let text = match fs::read_to_string(&ignore_path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(&ignore_path)(error)),
    };
    let ignore = Ignore::parse(&text).map_err(|reason| refused(&ignore_path, reason))?;
    let mut names = list(root)?;
    // Directories before what is below them.
    names.sort();
    let hidden = ignore.hidden(names.iter().map(String::as_str));
    let zip = NamedTempFile::new().map_err(failed(root))?;
    let mut writer = ZipWriter::new(zip.reopen().map_err(failed(root))?);
    for (name, is_hidden) in names.iter().zip(hidden) {
        if !is_hidden || ALWAYS.contains(&name.as_str()) {
            add(&mut writer, name, &root.join(name))?;
        }
    }
    writer.finish().map_err(failed(root))?;
    Ok(zip)
}

/// All names below a directory.
fn list(root: &Path) -> Result<Vec<String>, DirectoryError> {
    let (mut names, mut pending) = (Vec::new(), vec![String::new()]);
    while let Some(directory) = pending.pop() {
        let path = root.join(&directory);
        for entry in fs::read_dir(&path).map_err(failed(&path))? {
            let entry = entry.map_err(failed(&path))?;
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| refused(&entry.path(), "not UTF-8"))?;
            if directory.is_empty() && name == HISTORY {
                continue;
            }
            let name =
                if directory.is_empty() { name.into() } else { format!("{directory}/{name}") };
            if entry.file_type().map_err(failed(&entry.path()))?.is_dir() {
                pending.push(name.clone());
            }
            names.push(name);
        }
    }
    Ok(names)
}

fn add(writer: &mut ZipWriter<File>, name: &str, path: &Path) -> Result<(), DirectoryError> {
    let metadata = fs::symlink_metadata(path).map_err(failed(path))?;
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(true)
        .last_modified_time(DateTime::default())
        .unix_permissions(metadata.permissions().mode());
    if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(failed(path))?;
        let target = target.to_str().ok_or_else(|| refused(path, "it links to no UTF-8"))?;
        writer.add_symlink(name, target, options).map_err(failed(path))
    } else if metadata.is_dir() {
        writer.add_directory(name, options).map_err(failed(path))
    } else if metadata.is_file() {
        writer.start_file(name, options).map_err(failed(path))?;
        let mut file = File::open(path).map_err(failed(path))?;
        io::copy(&mut file, writer).map(drop).map_err(failed(path))
    } else {
        Err(refused(path, "it is neither a file nor a directory nor a link"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Context;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_packed_is_what_a_build_sees() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        fs::create_dir_all(root.path().join("src/deep")).unwrap();
        write("Dockerfile", "FROM scratch\n");
        write(".dockerignore", "*\n!src\n**/*.log\n");
        write("src/app.py", "print()\n");
        write("src/deep/x.log", "noise");
        write("secret", "x");
        symlink("app.py", root.path().join("src/link")).unwrap();
        fs::set_permissions(root.path().join("src/app.py"), fs::Permissions::from_mode(0o750))
            .unwrap();
        let zip = pack(root.path()).unwrap();
        let context = Context::open(zip.path()).unwrap();
        let seen: Vec<_> =
            context.visible().map(|(name, entry)| (name, entry.mode & 0o777)).collect();
        assert_eq!(
            seen,
            [("src", 0o755), ("src/app.py", 0o750), ("src/deep", 0o755), ("src/link", 0o777)]
        );
        assert_eq!(context.follow("src/link").as_deref(), Some("src/app.py"));
        assert_eq!(context.dockerfile().unwrap(), "FROM scratch\n");
    }

    #[test]
    fn the_same_files_are_the_same_bytes_without_their_history() {
        let make = |names: &[&str]| {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join(".git/objects")).unwrap();
            fs::create_dir_all(root.path().join("sub/.git")).unwrap();
            for name in names {
                let path = root.path().join(name);
                fs::write(&path, name).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            }
            root
        };
        let names = ["Dockerfile", ".git/HEAD", "sub/b", "a"];
        let first = make(&names);
        let second = make(&names.iter().rev().copied().collect::<Vec<_>>());
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30);
        File::open(second.path().join("a")).unwrap().set_modified(long_ago).unwrap();
        let bytes = |root: &Path| fs::read(pack(root).unwrap().path()).unwrap();
        assert!(bytes(first.path()) == bytes(second.path()), "the archives differ");
        let context = Context::open(pack(first.path()).unwrap().path()).unwrap();
        let seen: Vec<_> = context.visible().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(seen, ["Dockerfile", "a", "sub", "sub/.git", "sub/b"]);
    }
}
