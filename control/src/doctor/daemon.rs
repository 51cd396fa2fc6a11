//! What the daemon is told to use: its settings, and the directory that it keeps everything in.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rotifer_build::base::Store;
use rustix::fs::{FallocateFlags, fallocate, fstatfs, fstatvfs};

use super::Finding;
use super::host::readable;
use crate::report;
use crate::settings::{CodeEndpoint, Settings};
use crate::state::{Directory, StateError};

/// The sockets of microVMs are below it, and a socket's path is short ([`crate::host::HostError::TooLong`]).
const STATE_PATH_BYTES_MAX: usize = 40;
/// Below it the next image may not fit; below the second hardly anything does.
const ROOM_MIB_LOW: u64 = 20 << 10;
const ROOM_MIB_MIN: u64 = 1 << 10;
/// What is tried out of a file system.
const TRIED_BYTES: u64 = 1 << 20;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The settings, and all files that they name.
pub fn settings(path: Option<&Path>) -> Vec<Finding> {
    let check = "settings";
    let Some(path) = path else {
        return vec![Finding::warning(
            check,
            "none are given, and without them the daemon runs no microVMs",
            "say which: rotifer doctor --config FILE; docs/api-compatibility.md has an example",
        )];
    };
    let settings = match Settings::read(path) {
        Ok(settings) => settings,
        Err(error) => {
            return vec![Finding::error(
                check,
                report(&error),
                "docs/api-compatibility.md has them all",
            )];
        }
    };
    let Some(host) = settings.host else {
        let remedy =
            "add `host` with vmm, kernel, initramfs and builds; `./x image` makes what they name";
        return vec![Finding::error(check, "they have no `host`: no microVM runs", remedy)];
    };
    let named = [("vmm", &host.vmm), ("kernel", &host.kernel), ("initramfs", &host.initramfs)];
    let mut findings = missing("host", &named);
    match &host.builds {
        None => findings.push(Finding::warning(
            "builds",
            "the settings have no `host.builds`: no images are built",
            "docs/image-builds.md describes the file",
        )),
        Some(path) => findings.extend(builds(path)),
    }
    findings.extend(host.code_endpoints.iter().flat_map(endpoint));
    if findings.is_empty() {
        findings.push(Finding::ok(check, format!("all that {} names is there", path.display())));
    }
    if host.networks.is_none() {
        findings.push(Finding::warning(
            "networks",
            "the settings have no `host.networks`: microVMs have no network interface",
            "add \"networks\": {} to `host`, and run the daemon as root; docs/networks.md",
        ));
    }
    findings
}

/// What a bucket of another service is fetched with.
fn endpoint((bucket, endpoint): (&String, &CodeEndpoint)) -> Vec<Finding> {
    let cannot = |path: &Path, error: &io::Error, remedy: &str| {
        let text = format!("host.code-endpoints {bucket}: cannot use {}: {error}", path.display());
        Finding::error("settings", text, remedy)
    };
    let file = &endpoint.credentials_file;
    let remedy = "keep access_key_id and secret_access_key there as JSON, readable by the daemon's user alone";
    let credentials = endpoint.credentials().err().map(|error| cannot(file, &error, remedy));
    let remedy = "put the authority's certificate there, as PEM; without `ca`, those that the host trusts count";
    let authority = endpoint.ca.as_ref().and_then(|path| {
        let error = readable(path, false).err()?;
        Some(cannot(path, &error, remedy))
    });
    credentials.into_iter().chain(authority).collect()
}

fn builds(path: &Path) -> Vec<Finding> {
    let check = "builds";
    let settings = match rotifer_build::Settings::read(path) {
        Ok(settings) => settings,
        Err(error) => {
            return vec![Finding::error(
                check,
                report(&error),
                "docs/image-builds.md describes the file",
            )];
        }
    };
    let named = [
        ("vmm", &settings.vmm),
        ("kernel", &settings.kernel),
        ("initramfs", &settings.initramfs),
        ("builder_disk", &settings.builder_disk),
        ("worker", &settings.worker),
    ];
    let mut findings = missing("builds", &named);
    // To open a store is to make it.
    let bases = match settings.store.is_dir() {
        false => Ok(0),
        true => Store::open(&settings.store, settings.aliases)
            .and_then(|store| store.list())
            .map(|bases| bases.len()),
    };
    match bases {
        Ok(0) if settings.registries.is_empty() => findings.push(Finding::warning(
            check,
            format!("there is no base image in {}", settings.store.display()),
            "rotifer base add debian:12 --config FILE",
        )),
        Ok(_) => {}
        Err(error) => findings.push(Finding::error(
            check,
            report(&error),
            "move what is damaged away, and add the base images again",
        )),
    }
    findings
}

fn missing(of: &str, named: &[(&str, &PathBuf)]) -> Vec<Finding> {
    let look = |(name, path): &(&str, &PathBuf)| {
        let is_program = ["vmm", "worker"].contains(name);
        let error = readable(path, is_program).err()?;
        let text = format!("{of}.{name}: cannot use {}: {error}", path.display());
        let remedy = "`./x image` makes it; correct the path, or the file's rights";
        Some(Finding::error("settings", text, remedy))
    };
    named.iter().filter_map(look).collect()
}

/// The directory and its file system. Nothing is made there that stays.
pub fn state(path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    if path.as_os_str().len() > STATE_PATH_BYTES_MAX {
        findings.push(Finding::error(
            "state",
            format!("{} is too long for the sockets of microVMs", path.display()),
            format!("--state DIRECTORY of at most {STATE_PATH_BYTES_MAX} bytes"),
        ));
    }
    // What does not exist will be made in what does.
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    match try_out(existing) {
        Ok(more) => findings.extend(more),
        Err(error) => findings.push(Finding::error(
            "state",
            format!("cannot write in {}: {error}", existing.display()),
            "give the daemon's user a directory: --state DIRECTORY",
        )),
    }
    if existing == path {
        findings.extend(daemon(&path));
    }
    findings
}

fn daemon(path: &Path) -> Option<Finding> {
    let directory = Directory::open(path).ok()?;
    // Nobody has ever served it.
    if !directory.file("lock").exists() {
        return None;
    }
    match directory.lock() {
        Err(StateError::Locked { .. }) => {
            let place = directory.read("endpoint").ok().flatten().unwrap_or_default();
            let address = place.lines().next().unwrap_or("an unknown address").to_owned();
            Some(Finding::ok("daemon", format!("one serves {} at {address}", path.display())))
        }
        Ok(_) => Some(Finding::ok("daemon", format!("none serves {}", path.display()))),
        Err(error) => {
            Some(Finding::error("daemon", report(&error), "make the file the daemon's user's"))
        }
    }
}

/// Writes a file without a name.
fn try_out(directory: &Path) -> io::Result<Vec<Finding>> {
    let path = directory.join(format!(".rotifer-doctor-{}", std::process::id()));
    let file = File::create_new(&path)?;
    fs::remove_file(&path)?;
    let mut findings = vec![room(&file, directory)?];
    if u64::try_from(fstatfs(&file)?.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC) {
        findings.push(Finding::warning(
            "state",
            format!(
                "{} is in memory (tmpfs): all is lost when this host restarts",
                directory.display()
            ),
            "--state DIRECTORY on a disk",
        ));
    }
    file.set_len(TRIED_BYTES)?;
    let is_sparse = file.metadata()?.blocks() == 0;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let gives_back = fallocate(&file, punch, 0, TRIED_BYTES).is_ok();
    findings.push(if is_sparse && gives_back {
        Finding::ok("file system", "it has sparse files and takes back what guests discard")
    } else {
        let lacks = if is_sparse {
            "does not take back what guests discard"
        } else {
            "has no sparse files"
        };
        Finding::warning(
            "file system",
            format!("that of {} {lacks}: disks of microVMs take more room", directory.display()),
            "--state DIRECTORY on ext4, XFS or Btrfs",
        )
    });
    Ok(findings)
}

fn room(file: &File, directory: &Path) -> io::Result<Finding> {
    let status = fstatvfs(file)?;
    let mib = (status.f_bavail.saturating_mul(status.f_frsize)) >> 20;
    let text = format!("{mib} MiB are free in {}", directory.display());
    let remedy = "make room, or use another disk: --state DIRECTORY";
    Ok(match mib {
        ..ROOM_MIB_MIN => Finding::error("disk", text, remedy),
        ROOM_MIB_MIN..ROOM_MIB_LOW => Finding::warning("disk", text, remedy),
        _ => Finding::ok("disk", text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn the_longest_path_is_the_one_that_the_daemon_takes() {
        let refused = crate::host::HostError::TooLong { path: "/x".into() };
        let bound = format!("at most {STATE_PATH_BYTES_MAX} bytes");
        assert!(refused.to_string().contains(&bound), "{refused}");
    }

    #[test]
    fn what_settings_name_and_is_not_there_is_found_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("settings.json");
        let errors = |text: &str| {
            fs::write(&file, text).unwrap();
            let findings = settings(Some(&file));
            let errors = findings.iter().filter(|it| it.level == Level::Error);
            errors.map(|it| it.text.clone()).collect::<Vec<_>>().join("; ")
        };
        assert!(errors("{}").contains("no `host`"));
        assert!(errors("{\"hots\": 1}").contains("hots"));
        for name in ["kernel", "initramfs", "vmm"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let host = r#"{"host": {"vmm": "vmm", "kernel": "none", "initramfs": "initramfs"}}"#;
        let found = errors(host);
        assert!(found.contains("host.kernel") && !found.contains("initramfs"), "{found}");
        // root may read what it may not run.
        assert!(found.contains("host.vmm"), "{found}");
        let host = r#"{"host": {"vmm": "vmm", "kernel": "kernel", "initramfs": "initramfs", "builds": "b"}}"#;
        assert!(errors(host).contains("/b"), "{}", errors(host));
        let builds = r#"{"vmm": "x", "kernel": "x", "initramfs": "x", "builder_disk": "x", "worker": "x",
            "store": "store", "registries": ["docker.io", "https://registry.example"]}"#;
        fs::write(directory.path().join("b"), builds).unwrap();
        assert!(
            errors(host).contains("\"https://registry.example\" is no name"),
            "{}",
            errors(host)
        );
    }

    #[test]
    fn nothing_is_left_in_a_directory_that_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let findings = state(&directory.path().join("a/b"));
        assert!(findings.iter().any(|it| it.check == "file system"), "{findings:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
