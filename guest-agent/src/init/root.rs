//! From the initramfs to the root disk.

use super::mounts;
use crate::cmdline::{Options, RootAccess};
use crate::limits::ROOT_DEVICE_TIMEOUT;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where the disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";

/// Why the root disk is not the root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The device did not appear.
    #[error("the root disk {device} did not appear within {seconds} s; is there such a drive?")]
    Absent {
        /// The device.
        device: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Waiting for the device did not work.
    #[error("cannot wait for the root disk {device}")]
    Wait {
        /// The device.
        device: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No file system could be mounted from it.
    #[error("cannot mount the root disk {device} as {file_systems}")]
    Mount {
        /// The device.
        device: String,
        /// What was tried.
        file_systems: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A directory that the kernel's file systems need is missing and cannot be made.
    #[error("the root disk has no directory {} and it cannot be made", path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A step of the move failed.
    #[error("cannot {attempt} on the way to the root disk")]
    Switch {
        /// The step.
        attempt: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Mounts `device` and makes it the root. The agent goes on running: its pages belong to the open
/// file of the initramfs, whose name is then removed.
pub(super) fn switch_to(device: &str, options: &Options) -> Result<(), RootError> {
    wait_for(device)?;
    let step = |attempt: &str| {
        let attempt = attempt.to_owned();
        move |source: io::Error| RootError::Switch { attempt, source }
    };
    fs::create_dir_all(NEW_ROOT).map_err(step("make a mount point"))?;
    mount_disk(device, options)?;
    for point in mounts::moving_points() {
        let target = Path::new(NEW_ROOT).join(point.strip_prefix("/").unwrap_or(point));
        if !target.is_dir() {
            fs::create_dir(&target)
                .map_err(|source| RootError::NoDirectory { path: point.into(), source })?;
        }
        mount(Some(point), &target, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|error| step(&format!("move {}", point.display()))(error.into()))?;
    }
    // Frees the name; a leftover would do no harm.
    let _ = fs::remove_file("/init");
    std::env::set_current_dir(NEW_ROOT).map_err(step("enter the new root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|error| step("move the new root")(error.into()))?;
    std::os::unix::fs::chroot(".").map_err(step("change the root"))?;
    std::env::set_current_dir("/").map_err(step("enter the root"))
}

/// Sleeps until the device is there. The watch exists before the first look, so that nothing that
/// appears in between is missed.
fn wait_for(device: &str) -> Result<(), RootError> {
    let fail = |source: Errno| RootError::Wait { device: device.into(), source: source.into() };
    let deadline = Instant::now() + ROOT_DEVICE_TIMEOUT;
    let path = Path::new(device);
    if is_block_device(path) {
        return Ok(()); // the usual case needs no watch
    }
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(fail)?;
    let directory = path.parent().unwrap_or(Path::new("/dev"));
    watch.add_watch(directory, AddWatchFlags::IN_CREATE).map_err(fail)?;
    while !is_block_device(path) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut events = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        match poll(&mut events, timeout) {
            Ok(0) => {
                let seconds = ROOT_DEVICE_TIMEOUT.as_secs();
                return Err(RootError::Absent { device: device.into(), seconds });
            }
            Ok(_) => drop(watch.read_events()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(())
}

fn is_block_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

fn mount_disk(device: &str, options: &Options) -> Result<(), RootError> {
    let file_systems = match &options.root_file_system {
        Some(file_system) => vec![file_system.clone()],
        None => file_systems_of(&fs::read_to_string("/proc/filesystems").unwrap_or_default()),
    };
    let (flags, data) = split_flags(options.root_flags.as_deref().unwrap_or(""));
    let mut cause = Errno::ENODEV;
    for file_system in &file_systems {
        match mount_as(device, file_system, options.root_access, flags, &data) {
            Ok(()) => return Ok(()),
            // EINVAL: it is another one; what any other says is worth more to the reader.
            Err(Errno::EINVAL) if cause != Errno::ENODEV => {}
            Err(error) => cause = error,
        }
    }
    Err(RootError::Mount {
        device: device.into(),
        file_systems: file_systems.join(", "),
        source: cause.into(),
    })
}

fn mount_as(
    device: &str,
    file_system: &str,
    access: RootAccess,
    flags: MsFlags,
    data: &str,
) -> Result<(), Errno> {
    let data = Some(data).filter(|data| !data.is_empty());
    let attempt = |flags| mount(Some(device), NEW_ROOT, Some(file_system), flags, data);
    match access {
        RootAccess::ReadWrite => attempt(flags),
        RootAccess::ReadOnly => attempt(flags | MsFlags::MS_RDONLY),
        RootAccess::AsDiskAllows => match attempt(flags) {
            Err(Errno::EROFS | Errno::EACCES) => attempt(flags | MsFlags::MS_RDONLY),
            result => result,
        },
    }
}

/// Those of `/proc/filesystems` that live on a device. The driver of ext4 also registers as ext2
/// and ext3, as which it only complains about an ext4.
fn file_systems_of(list: &str) -> Vec<String> {
    let has_ext4 = list.lines().any(|line| line == "\text4");
    list.lines()
        .filter_map(|line| line.strip_prefix('\t'))
        .map(str::trim)
        .filter(|name| !has_ext4 || !matches!(*name, "ext2" | "ext3"))
        .map(str::to_owned)
        .collect()
}

/// The options that are flags of every file system, and the rest for this one.
fn split_flags(options: &str) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut rest = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            other => rest.push(other),
        }
    }
    (flags, rest.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_file_systems_on_devices_are_tried() {
        let list = "nodev\tsysfs\nnodev\tproc\n\text3\n\text2\n\text4\n\tsquashfs\nnodev\toverlay\n\terofs\n";
        assert_eq!(file_systems_of(list), ["ext4", "squashfs", "erofs"]);
    }

    #[test]
    fn general_flags_are_told_from_those_of_the_file_system() {
        let (flags, rest) = split_flags("noatime,noload,,nodev,data=ordered");
        assert_eq!(flags, MsFlags::MS_NOATIME | MsFlags::MS_NODEV);
        assert_eq!(rest, "noload,data=ordered");
    }
}
