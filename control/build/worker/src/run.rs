//! A `RUN` command: in a root, with namespaces of its own, and what Docker mounts for it.
//!
//! The machine is the isolation. The namespaces are for likeness and for order: the command is the first
//! process of its own, so that all it started ends with it, and no mount outlives it.

use super::{WorkerError, enter, failed};
use crate::protocol::{CA_FILE, CACHES, Mount, MountKind, Run, SCRIPT_FILE, STATUS_FILE};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rotifer_agent::process::credentials::{DEFAULT_CAPABILITIES, Transition};
use rotifer_agent::process::users::Identity;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOST_NAME: &str = "build";
const HOSTS: &str = "127.0.0.1\tlocalhost build\n::1\tlocalhost\n";
const HOSTS_FILE: &str = "/dev/rotifer-hosts";
/// Devices that programs expect: name, major, minor.
const DEVICES: [(&str, u64, u64); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Runs the command and writes how it ended to [`STATUS_FILE`].
pub fn run(request: &Run) -> Result<(), WorkerError> {
    // Opened before the root changes.
    let status_file =
        fs::File::create(STATUS_FILE).map_err(failed("make a file for the status"))?;
    let caches = request.mounts.iter().map(open_cache).collect::<Result<Vec<_>, _>>()?;
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if !request.network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).map_err(failed("make namespaces"))?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(failed("keep mounts to this command"))?;
    nix::unistd::sethostname(HOST_NAME).map_err(failed("set the host name"))?;
    enter(&request.root)?;
    let made_hosts = mount_all(request)?;
    for (wanted, cache) in request.mounts.iter().zip(caches) {
        mount_wanted(wanted, cache)?;
    }
    let status = execute(request)?;
    if made_hosts {
        // It was there to be mounted over, and is not the image's.
        let _ = nix::mount::umount("/etc/hosts");
        if fs::metadata("/etc/hosts").is_ok_and(|metadata| metadata.len() == 0) {
            fs::remove_file("/etc/hosts").map_err(failed("remove /etc/hosts"))?;
        }
    }
    report(status, &status_file)
}

fn report(status: ExitStatus, mut file: &fs::File) -> Result<(), WorkerError> {
    use io::Write;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    writeln!(file, "{code}").map_err(failed("write the status"))
}

/// A cache's directory as a mount that belongs to nobody yet.
fn open_cache(wanted: &Mount) -> Result<Option<OwnedFd>, WorkerError> {
    let MountKind::Cache { directory, mode, uid, gid } = &wanted.kind else { return Ok(None) };
    let path = Path::new(CACHES).join(directory);
    let attempt = || format!("make the cache {}", path.display());
    match fs::create_dir(&path) {
        Ok(()) => {
            chown(&path, Some(*uid), Some(*gid)).map_err(failed(attempt()))?;
            let permissions = Permissions::from_mode(*mode);
            fs::set_permissions(&path, permissions).map_err(failed(attempt()))?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(attempt())(error)),
    }
    Ok(Some(open_tree(&path).map_err(failed(attempt()))?))
}

fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path ends with a NUL; the call gives a new descriptor, which becomes ours alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Attaches a mount to a directory.
fn move_mount(tree: &OwnedFd, to: &str) -> io::Result<()> {
    let to = CString::new(to)?;
    // SAFETY: both paths end with a NUL, and the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What every command finds; whether `/etc/hosts` had to be made.
fn mount_all(request: &Run) -> Result<bool, WorkerError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at("tmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755")?;
    mount_at("sysfs", "/sys", quiet | MsFlags::MS_RDONLY, "")?;
    // `/proc` shows the namespace of whoever mounts it: the command's first process does.
    super::unpack::make_directories(Path::new("/proc"), None)?;
    for (name, major, minor) in DEVICES {
        let path = format!("/dev/{name}");
        let mode = Mode::from_bits_truncate(0o666);
        mknod(path.as_str(), SFlag::S_IFCHR, mode, makedev(major, minor))
            .map_err(failed(format!("make {path}")))?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))
            .map_err(failed(format!("make {path}")))?;
    }
    for (name, target) in DEVICE_LINKS {
        symlink(target, format!("/dev/{name}")).map_err(failed(format!("make /dev/{name}")))?;
    }
    mount_at("devpts", "/dev/pts", MsFlags::MS_NOSUID, "newinstance,ptmxmode=0666,mode=0620")?;
    mount_at("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    write_file(HOSTS_FILE, HOSTS, 0o644)?;
    if let Some(bundle) = &request.ca_bundle {
        write_file(CA_FILE, bundle, 0o644)?;
    }
    if let Some(script) = &request.script {
        write_file(SCRIPT_FILE, script, 0o755)?;
    }
    if !Path::new("/etc").is_dir() {
        return Ok(false);
    }
    let is_missing = fs::metadata("/etc/hosts").is_err();
    if is_missing {
        fs::write("/etc/hosts", "").map_err(failed("make /etc/hosts"))?;
    }
    mount(Some(HOSTS_FILE), "/etc/hosts", None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(failed("mount /etc/hosts"))?;
    Ok(is_missing)
}

fn mount_at(kind: &str, point: &str, flags: MsFlags, data: &str) -> Result<(), WorkerError> {
    super::unpack::make_directories(Path::new(point), None)?;
    mount(Some(kind), point, Some(kind), flags, Some(data))
        .map_err(failed(format!("mount {kind} on {point}")))
}

fn write_file(path: &str, text: &str, mode: u32) -> Result<(), WorkerError> {
    fs::write(path, text).map_err(failed(format!("write {path}")))?;
    let permissions = Permissions::from_mode(mode);
    fs::set_permissions(path, permissions).map_err(failed(format!("write {path}")))
}

fn mount_wanted(wanted: &Mount, cache: Option<OwnedFd>) -> Result<(), WorkerError> {
    let target = wanted.target.as_str();
    match (&wanted.kind, cache) {
        (MountKind::Tmpfs { size_bytes }, _) => {
            let data = size_bytes.map(|bytes| format!("size={bytes}")).unwrap_or_default();
            mount_at("tmpfs", target, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &data)
        }
        (MountKind::Cache { .. }, Some(tree)) => {
            super::unpack::make_directories(Path::new(target), None)?;
            move_mount(&tree, target).map_err(failed(format!("mount a cache on {target}")))
        }
        (MountKind::Cache { .. }, None) => Err(WorkerError::Refused("a cache is missing".into())),
    }
}

/// Starts the command as the first process of its namespace and waits for it.
fn execute(request: &Run) -> Result<ExitStatus, WorkerError> {
    let user = Some(request.user.as_str()).filter(|user| !user.is_empty());
    let identity = Identity::resolve(user)?;
    let directory = if request.directory.is_empty() { "/" } else { &request.directory };
    let (program, arguments) = request
        .command
        .split_first()
        .ok_or_else(|| WorkerError::Refused("the command is empty".into()))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).env_clear();
    command.env("PATH", DEFAULT_PATH).env("HOME", &identity.home).envs(&request.env);
    let transition = Transition {
        identity: Some(identity),
        capabilities: DEFAULT_CAPABILITIES,
        cgroup_procs: None,
        terminal: false,
    };
    let become_it = move || {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None::<&std::ffi::CStr>)?;
        transition.apply()
    };
    // SAFETY: this process has one thread, and the closure makes system calls only.
    unsafe { command.pre_exec(become_it) };
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => WorkerError::Refused(format!(
            "cannot start {program:?} in {directory}: {error}; is it in the image?"
        )),
        _ => failed(format!("start {program:?}"))(error),
    })?;
    child.wait().map_err(failed("wait for the command"))
}
