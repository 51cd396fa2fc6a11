//! Network namespaces that a file keeps alive, as `ip netns` does it.
//!
//! A namespace belongs to a thread, so each is entered by a thread made for it, which ends there.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// The namespace of the thread that looks.
const OWN: &str = "/proc/thread-self/ns/net";

/// A namespace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No right to make one, or none to be had.
    #[error(
        "cannot make a network namespace; this takes root or CAP_SYS_ADMIN and CAP_NET_ADMIN: \
         run it with sudo, or run the VM without a network, its ingress over vsock"
    )]
    Make(#[source] io::Error),
    /// A file or a mount of one.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A thread.
    #[error("cannot start a thread for a network namespace")]
    Thread(#[source] io::Error),
}

/// The namespace of this thread.
pub fn own() -> Result<File, Error> {
    open(Path::new(OWN))
}

/// One that a file keeps.
pub fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| failed("open the network namespace", path, source))
}

/// Enters a namespace for good.
pub fn enter(namespace: impl AsFd) -> Result<(), Error> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| failed("enter the network namespace", Path::new(OWN), errno.into()))
}

/// Makes a new namespace that the file `path` keeps, and does something in it.
pub fn create<T: Send, E: From<Error> + Send>(
    path: &Path,
    inside: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    on_a_thread(|| {
        // SAFETY: only the network namespace is unshared, and no file table: nothing that another
        // thread's file descriptors depend on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|errno| Error::Make(errno.into()))?;
        mount_bind(OWN, path)
            .map_err(|errno| failed("keep the network namespace in", path, errno.into()))?;
        inside()
    })
}

/// Does something in a namespace.
pub fn within<T: Send, E: From<Error> + Send>(
    namespace: &File,
    inside: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    on_a_thread(|| {
        enter(namespace)?;
        inside()
    })
}

/// Lets go of a namespace, and removes the file. What is gone already is no error.
pub fn release(path: &Path) -> Result<(), Error> {
    // Mounts may lie on top of one another if one was made twice.
    while unmount(path, UnmountFlags::DETACH).is_ok() {}
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path, source))
        }
        _ => Ok(()),
    }
}

/// Whether the file keeps a namespace.
pub fn is_kept(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(NSFS_MAGIC))
}

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Makes the directory a mount of its own, so that what is mounted in it is seen, and let go of, in
/// every mount namespace that was made after it.
pub fn share_directory(path: &Path) -> Result<(), Error> {
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    if mount_change(path, shared).is_ok() {
        return Ok(());
    }
    mount_bind(path, path)
        .and_then(|()| mount_change(path, shared))
        .map_err(|errno| failed("mount", path, errno.into()))
}

/// Undoes [`share_directory`].
pub fn unshare_directory(path: &Path) {
    let _it_may_be_none = unmount(path, UnmountFlags::DETACH);
}

fn on_a_thread<T: Send, E: From<Error> + Send>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name("namespace".into())
            .spawn_scoped(scope, work)
            .map_err(|source| E::from(Error::Thread(source)))?;
        handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A lock on a namespace's file was refused.
pub fn lock_failed(path: &Path, source: io::Error) -> Error {
    failed("lock a network of", path, source)
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { what, path: path.to_owned(), source }
}
