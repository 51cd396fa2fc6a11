//! The kernel's file systems, where programs expect them.

use crate::console::kernel_log;
use nix::mount::{MsFlags, mount};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A file system could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {file_system} on {}", point.display())]
pub struct MountError {
    /// Its kind.
    file_system: String,
    /// Where.
    point: PathBuf,
    /// The cause.
    #[source]
    source: io::Error,
}

struct Mount {
    file_system: &'static str,
    point: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const TEMPORARY: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// What is needed to find the root disk; moved to it afterwards.
const FIRST: [Mount; 3] = [
    Mount { file_system: "devtmpfs", point: "/dev", flags: MsFlags::MS_NOSUID, data: "mode=0755" },
    Mount { file_system: "proc", point: "/proc", flags: QUIET, data: "" },
    Mount { file_system: "sysfs", point: "/sys", flags: QUIET, data: "" },
];

const REST: [Mount; 4] = [
    Mount {
        file_system: "devpts",
        point: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "mode=0620,gid=5,ptmxmode=0666",
    },
    Mount { file_system: "tmpfs", point: "/dev/shm", flags: TEMPORARY, data: "mode=1777" },
    Mount { file_system: "tmpfs", point: "/run", flags: TEMPORARY, data: "mode=0755" },
    Mount { file_system: "cgroup2", point: "/sys/fs/cgroup", flags: QUIET, data: "nsdelegate" },
];

/// `/tmp` of a root that cannot be written, or of none. A writable root has its own.
const TMP: Mount =
    Mount { file_system: "tmpfs", point: "/tmp", flags: TEMPORARY, data: "mode=1777" };

const DEV_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// The points of the mounts that move to the root disk.
pub(super) fn moving_points() -> impl Iterator<Item = &'static Path> {
    FIRST.iter().map(|mount| Path::new(mount.point))
}

/// Mounts what nothing works without.
pub(super) fn mount_first() -> Result<(), MountError> {
    FIRST.iter().try_for_each(mount_one)
}

/// Mounts what some programs miss if it is not there: told, but no reason to stop.
pub(super) fn mount_rest(on_disk: bool) {
    for one in &REST {
        tell(mount_one(one));
    }
    if !on_disk || is_read_only(Path::new("/tmp")) {
        tell(mount_one(&TMP));
    }
    for (link, target) in DEV_LINKS {
        // One that is there already is as good.
        let _ = symlink(target, link);
    }
}

fn mount_one(one: &Mount) -> Result<(), MountError> {
    let attempt = || {
        fs::create_dir_all(one.point)?;
        let data = Some(one.data).filter(|data| !data.is_empty());
        match mount(Some(one.file_system), one.point, Some(one.file_system), one.flags, data) {
            // The kernel was built to mount devtmpfs by itself.
            Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    attempt().map_err(|source| MountError {
        file_system: one.file_system.into(),
        point: one.point.into(),
        source,
    })
}

fn tell(result: Result<(), MountError>) {
    if let Err(error) = result {
        kernel_log(&crate::api::error::chain(&error));
    }
}

fn is_read_only(path: &Path) -> bool {
    use nix::unistd::{AccessFlags, access};
    matches!(access(path, AccessFlags::W_OK), Err(nix::Error::EROFS | nix::Error::ENOENT))
}
