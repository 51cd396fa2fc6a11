//! From an initramfs to a machine that commands can run on.
//!
//! Nothing that belongs to one build machine happens here (shares, disk, time): the state saved
//! after this serves every later start. See [`crate::attach`] for the rest.

use std::{fs, io, os::unix::fs::symlink, path::Path, process::Command};

use rustix::{
    mount::{MountFlags, mount, mount_move},
    process::{chdir, chroot},
    system::{RebootCommand, init_module, reboot, sethostname},
};

/// A step of the preparation failed; without it the machine is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was tried, and what the kernel said.
    #[error("cannot {what}: {source}")]
    Step {
        /// A verb and its object.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

trait Step<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Step { what: what(), source: source.into() })
    }
}

/// Mounts, modules, network, and the small tools under `/bin`.
pub fn prepare() -> Result<(), Error> {
    leave_initramfs()?;
    for (kind, path, flags, options) in [
        ("proc", "/proc", MountFlags::empty(), c""),
        ("sysfs", "/sys", MountFlags::empty(), c""),
        ("devtmpfs", "/dev", MountFlags::empty(), c""),
        ("devpts", "/dev/pts", MountFlags::empty(), c"mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", MountFlags::NODEV, c"mode=1777,size=75%"),
        ("tmpfs", "/tmp", MountFlags::NODEV, c"mode=1777,size=75%"),
        ("tmpfs", "/run", MountFlags::NODEV, c"mode=755,size=75%"),
        ("cgroup2", "/sys/fs/cgroup", MountFlags::empty(), c""),
    ] {
        fs::create_dir_all(path).step(|| format!("create {path}"))?;
        mount(kind, path, kind, flags, options).step(|| format!("mount {kind} on {path}"))?;
    }
    // Early programs of the kernel's own devtmpfs lack these links.
    for (target, link) in [("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin")] {
        let _already_there = symlink(target, link);
    }
    busybox(&["--install", "-s", "/bin"])?;
    load_modules()?;
    sethostname(b"rotifer-host").step(|| "set the host name".into())?;
    bring_up_network()?;
    write("/proc/sys/kernel/printk", "4 4 1 7")?;
    // What microVMs share is in huge pages where a program asks for them.
    write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise")?;
    write("/proc/sys/vm/overcommit_memory", "1")
}

/// Moves from the initial root, which can be neither left nor pivoted, to an ordinary mount.
fn leave_initramfs() -> Result<(), Error> {
    let new = "/new";
    fs::create_dir_all(new).step(|| format!("create {new}"))?;
    mount("root", new, "tmpfs", MountFlags::empty(), c"mode=755,size=75%")
        .step(|| "mount the root".into())?;
    for directory in ["bin", "etc", "root", "dev", "modules", "var", "usr", "lib"] {
        let path = format!("{new}/{directory}");
        fs::create_dir_all(&path).step(|| format!("create {path}"))?;
    }
    for file in ["init", "bin/busybox", "etc/passwd", "etc/group", "etc/hosts", "etc/resolv.conf"] {
        fs::copy(format!("/{file}"), format!("{new}/{file}")).step(|| format!("copy {file}"))?;
    }
    for (target, link) in [("bin", "sbin"), ("../bin", "usr/bin"), ("../bin", "usr/sbin")] {
        symlink(target, format!("{new}/{link}")).step(|| format!("link {link}"))?;
    }
    for entry in fs::read_dir("/modules").step(|| "list the modules".into())? {
        let from = entry.step(|| "list the modules".into())?.path();
        let to = Path::new(new).join(from.strip_prefix("/").unwrap_or(&from));
        fs::copy(&from, to).step(|| format!("copy {}", from.display()))?;
        fs::remove_file(&from).step(|| format!("remove {}", from.display()))?;
    }
    chdir(new).step(|| format!("enter {new}"))?;
    mount_move(".", "/").step(|| "move the root".into())?;
    chroot(".").step(|| "change the root".into())?;
    chdir("/").step(|| "enter the root".into())
}

/// Loads `/modules/*` in the order of their names, which is the order of their dependencies.
fn load_modules() -> Result<(), Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/modules").step(|| "list the modules".into())? {
        names.push(entry.step(|| "list the modules".into())?.path());
    }
    names.sort();
    for path in names {
        let image = fs::read(&path).step(|| format!("read {}", path.display()))?;
        match init_module(&image, c"") {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            // A module for hardware or features that this variant lacks.
            Err(rustix::io::Errno::NODEV) => {}
            Err(errno) => return Err(errno).step(|| format!("load {}", path.display())),
        }
        fs::remove_file(&path).step(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// QEMU's user-mode network: its addresses are the same everywhere.
fn bring_up_network() -> Result<(), Error> {
    busybox(&["ip", "link", "set", "lo", "up"])?;
    if !Path::new("/sys/class/net/eth0").exists() {
        return Ok(());
    }
    busybox(&["ip", "link", "set", "eth0", "up"])?;
    busybox(&["ip", "address", "add", "10.0.2.15/24", "dev", "eth0"])?;
    busybox(&["ip", "route", "add", "default", "via", "10.0.2.2"])
}

fn busybox(arguments: &[&str]) -> Result<(), Error> {
    let what = || arguments.join(" ");
    let status = Command::new("/bin/busybox").args(arguments).status().step(what)?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())).step(what) }
}

fn write(path: &str, text: &str) -> Result<(), Error> {
    fs::write(path, text).step(|| format!("write {path}"))
}

/// Writes everything to the disk and ends the machine.
pub fn power_off() -> ! {
    rustix::fs::sync();
    let _ = mount_remount_read_only();
    let _no_return = reboot(RebootCommand::PowerOff);
    std::process::exit(1)
}

fn mount_remount_read_only() -> rustix::io::Result<()> {
    rustix::mount::mount_remount("/var/rotifer", MountFlags::RDONLY, c"")
}
