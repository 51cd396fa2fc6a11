//! A tar becomes files of a root.

use super::{WorkerError, failed, owner_of};
use crate::limits::LAYER_ENTRIES_MAX;
use crate::protocol::{Compression, Unpack};
use flate2::read::MultiGzDecoder;
use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};
use tar::{Archive, Entry, EntryType};

/// A name that takes away what lower layers have under the rest of it.
const WHITEOUT: &[u8] = b".wh.";
/// A name that takes away all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Extended attributes, as tar programs write them.
const XATTR_KEY: &[u8] = b"SCHILY.xattr.";
const BUFFER_BYTES: usize = 256 * 1024;

/// Unpacks `input` below `root`, which is the root of the process, or a directory without links in a
/// test. Without `is_root_user` everything belongs to the caller.
pub fn unpack(
    input: &mut impl Read,
    root: &Path,
    request: &Unpack,
    is_root_user: bool,
) -> Result<(), WorkerError> {
    let target = &request.target;
    let owner = target.owner.as_deref().map(owner_of).transpose()?;
    let base = join(root, Path::new(&target.path))?;
    let mut unpacker = Unpacker {
        root,
        request,
        is_directory: target.is_directory || base.is_dir(),
        base,
        owner,
        is_root_user,
        own: HashSet::new(),
        count: 0,
    };
    if unpacker.is_directory {
        make_directories(&unpacker.base, owner.filter(|_| is_root_user))?;
    }
    let input = io::BufReader::with_capacity(BUFFER_BYTES, input);
    match request.compression {
        Compression::None => unpacker.entries(input),
        Compression::Gzip => unpacker.entries(MultiGzDecoder::new(input)),
    }
}

/// Makes a directory and those above it; new ones get the owner.
pub fn make_directories(path: &Path, owner: Option<(u32, u32)>) -> Result<(), WorkerError> {
    let mut made = PathBuf::new();
    for component in path.components() {
        made.push(component);
        match fs::create_dir(&made) {
            Ok(()) => {
                if let Some((uid, gid)) = owner {
                    lchown(&made, Some(uid), Some(gid))
                        .map_err(failed(format!("give {} an owner", made.display())))?;
                }
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(format!("make {}", made.display()))(error)),
        }
    }
    match path.is_dir() {
        true => Ok(()),
        false => Err(WorkerError::Refused(format!("{} is not a directory", path.display()))),
    }
}

/// A path below the root: without `..`, which no honest tar has.
fn join(root: &Path, path: &Path) -> Result<PathBuf, WorkerError> {
    let mut joined = root.to_path_buf();
    for component in path.components() {
        match component {
            Component::Normal(part) => joined.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(WorkerError::Refused(format!(
                    "{} leads out of the root",
                    path.display()
                )));
            }
        }
    }
    Ok(joined)
}

struct Unpacker<'a> {
    root: &'a Path,
    request: &'a Unpack,
    /// Where names are below, or the name of the only file.
    base: PathBuf,
    is_directory: bool,
    owner: Option<(u32, u32)>,
    is_root_user: bool,
    /// What this layer brought: a whiteout is about lower ones.
    own: HashSet<PathBuf>,
    count: usize,
}

impl Unpacker<'_> {
    fn entries(&mut self, input: impl Read) -> Result<(), WorkerError> {
        let mut archive = Archive::new(input);
        let entries = archive.entries().map_err(failed("read the tar"))?;
        for entry in entries {
            let mut entry = entry.map_err(failed("read the tar"))?;
            self.count += 1;
            if self.count > LAYER_ENTRIES_MAX {
                let reason = format!("the tar has more than {LAYER_ENTRIES_MAX} entries");
                return Err(WorkerError::Refused(reason));
            }
            self.entry(&mut entry)?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<R>) -> Result<(), WorkerError> {
        let name = entry.path().map_err(failed("read a name in the tar"))?.into_owned();
        let kind = entry.header().entry_type();
        let is_base = !name.components().any(|part| matches!(part, Component::Normal(_)));
        if is_base && kind.is_dir() && !self.is_directory {
            self.is_directory = true;
            make_directories(&self.base, self.owner.filter(|_| self.is_root_user))?;
        }
        if is_base && !self.request.is_layer {
            return join(self.root, &name).map(drop);
        }
        let path = if self.is_directory {
            join(&self.base, &name)?
        } else if self.count > 1 {
            let reason = "several files cannot go to one: the destination has to end with a slash";
            return Err(WorkerError::Refused(reason.into()));
        } else {
            self.base.clone()
        };
        if self.request.is_layer && self.whiteout(&path)? {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            make_directories(parent, self.owner.filter(|_| self.is_root_user))?;
        }
        self.make_room(&path, kind)?;
        self.make(entry, &path, kind)?;
        if self.request.is_layer {
            self.own.insert(path);
        }
        Ok(())
    }

    /// Takes away what a whiteout names; whether the entry was one.
    fn whiteout(&mut self, path: &Path) -> Result<bool, WorkerError> {
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        let Some(rest) = name.strip_prefix(WHITEOUT) else { return Ok(false) };
        let directory = path.parent().unwrap_or(self.root);
        if name == OPAQUE {
            self.clear(directory)?;
        } else if rest.is_empty() || rest.contains(&b'/') || rest == b"." || rest == b".." {
            return Err(WorkerError::Refused(format!("{} is no whiteout", path.display())));
        } else {
            let hidden = directory.join(OsStr::from_bytes(rest));
            if !self.own.contains(&hidden) {
                remove(&hidden)?;
            }
        }
        Ok(true)
    }

    /// Takes away all of a directory that this layer did not bring.
    fn clear(&self, directory: &Path) -> Result<(), WorkerError> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(format!("list {}", directory.display()))(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed(format!("list {}", directory.display())))?;
            let path = entry.path();
            if !self.own.contains(&path) {
                remove(&path)?;
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.clear(&path)?;
            }
        }
        Ok(())
    }

    /// Takes away what is in the way. A directory stays for a directory, and in a user's copy so does a
    /// link to one.
    fn make_room(&self, path: &Path, kind: EntryType) -> Result<(), WorkerError> {
        let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
        let is_directory = match self.request.is_users {
            true => path.is_dir(),
            false => metadata.is_dir(),
        };
        match (is_directory, kind.is_dir()) {
            (true, true) => Ok(()),
            (true, false) if self.request.is_users && metadata.is_dir() => {
                Err(WorkerError::Refused(format!("{} is a directory in the image", path.display())))
            }
            _ => remove(path),
        }
    }

    fn make<R: Read>(
        &self,
        entry: &mut Entry<R>,
        path: &Path,
        kind: EntryType,
    ) -> Result<(), WorkerError> {
        let attempt = || format!("write {}", path.display());
        match kind {
            EntryType::Directory => {
                if !path.is_dir() {
                    fs::create_dir(path).map_err(failed(attempt()))?;
                }
                self.settle(entry, path, None)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(path)
                    .map_err(failed(attempt()))?;
                io::copy(entry, &mut file).map_err(failed(attempt()))?;
                self.settle(entry, path, Some(&file))
            }
            EntryType::Symlink => {
                let target = link_name(entry)?;
                symlink(target, path).map_err(failed(attempt()))?;
                let Some((uid, gid)) = self.owner_for(entry)? else { return Ok(()) };
                lchown(path, Some(uid), Some(gid)).map_err(failed(attempt()))
            }
            EntryType::Link => {
                let target = join(self.root, &link_name(entry)?)?;
                fs::hard_link(&target, path).map_err(failed(attempt()))
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.make_node(entry, path, kind).map_err(failed(attempt()))?;
                self.settle(entry, path, None)
            }
            // Settings for the names that follow, which the library has applied.
            EntryType::XGlobalHeader => Ok(()),
            other => Err(WorkerError::Refused(format!(
                "{} is of a kind that is not supported: {other:?}",
                path.display()
            ))),
        }
    }

    fn make_node<R: Read>(&self, entry: &Entry<R>, path: &Path, kind: EntryType) -> io::Result<()> {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let header = entry.header();
        let device = makedev(
            header.device_major()?.unwrap_or(0).into(),
            header.device_minor()?.unwrap_or(0).into(),
        );
        let flag = match kind {
            EntryType::Char => SFlag::S_IFCHR,
            EntryType::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        Ok(mknod(path, flag, Mode::from_bits_truncate(0o600), device)?)
    }

    fn owner_for<R: Read>(&self, entry: &Entry<R>) -> Result<Option<(u32, u32)>, WorkerError> {
        if !self.is_root_user {
            return Ok(None);
        }
        if self.owner.is_some() {
            return Ok(self.owner);
        }
        let number = |number: io::Result<u64>| {
            let number = number.map_err(failed("read an owner in the tar"))?;
            u32::try_from(number)
                .map_err(|_| WorkerError::Refused(format!("{number} is no number of a user")))
        };
        Ok(Some((number(entry.header().uid())?, number(entry.header().gid())?)))
    }

    /// Owner, attributes, permissions and time, in the order in which none undoes another.
    fn settle<R: Read>(
        &self,
        entry: &mut Entry<R>,
        path: &Path,
        file: Option<&File>,
    ) -> Result<(), WorkerError> {
        let attempt = || format!("set the attributes of {}", path.display());
        if let Some((uid, gid)) = self.owner_for(entry)? {
            match file {
                Some(file) => fchown(file, Some(uid), Some(gid)),
                None => lchown(path, Some(uid), Some(gid)),
            }
            .map_err(failed(attempt()))?;
        }
        if self.is_root_user
            && let Some(file) = file
        {
            set_attributes(entry, file).map_err(failed(attempt()))?;
        }
        let tar_mode = entry.header().mode().map_err(failed(attempt()))? & 0o7777;
        let mode = self.request.target.mode.unwrap_or(tar_mode);
        let permissions = Permissions::from_mode(mode);
        let Some(file) = file else {
            return fs::set_permissions(path, permissions).map_err(failed(attempt()));
        };
        file.set_permissions(permissions).map_err(failed(attempt()))?;
        let seconds = entry.header().mtime().map_err(failed(attempt()))?;
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH);
        file.set_modified(time).map_err(failed(attempt()))
    }
}

/// Extended attributes: file capabilities, for the most part.
fn set_attributes<R: Read>(entry: &mut Entry<R>, file: &File) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key_bytes().strip_prefix(XATTR_KEY) else { continue };
        let (name, value) = (CString::new(name)?, extension.value_bytes());
        // SAFETY: the name ends with a NUL, the value is a live slice of this length, and the
        // descriptor is open.
        let result = unsafe {
            let value = (value.as_ptr().cast(), value.len());
            libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.0, value.1, 0)
        };
        let error = io::Error::last_os_error();
        // Attributes of another system's security module mean nothing here.
        if result < 0 && error.raw_os_error() != Some(libc::EOPNOTSUPP) {
            return Err(error);
        }
    }
    Ok(())
}

fn link_name<R: Read>(entry: &Entry<R>) -> Result<PathBuf, WorkerError> {
    let name = entry.link_name().map_err(failed("read a link in the tar"))?;
    name.map(|name| name.into_owned())
        .ok_or_else(|| WorkerError::Refused("a link in the tar has no target".into()))
}

/// Removes whatever is there; links are not followed.
fn remove(path: &Path) -> Result<(), WorkerError> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        // What is below a file or not there at all is gone already.
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(failed(format!("remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
