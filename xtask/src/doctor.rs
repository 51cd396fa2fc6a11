//! `./x doctor`: what this machine has, and what follows from it.

use std::{fs, path::Path};

use anyhow::Result;

use crate::{disk, native, paths::Paths};

const GIB: u64 = 1 << 30;
/// For a first run of everything: packages, kernel, builds, saved states.
const WANTED_BYTES: u64 = 12 * GIB;
/// Below this, userfaultfd write protection does not work with shared memory as it should.
const KERNEL_WANTED: (u32, u32) = (6, 10);

/// Prints one line per finding; status 1 if something is missing.
pub fn main(paths: &Paths) -> Result<i32> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut findings = vec![
        Finding::info(
            "machine",
            format!("{}, kernel {release}", uname.machine().to_string_lossy()),
        ),
        Finding::info("page size", format!("{} bytes", rustix::param::page_size())),
        Finding::info("huge pages", huge_pages()),
        disk_space(paths)?,
    ];
    if native::is_arm64() {
        findings.push(Finding::of("kvm", native::require_kvm().map(|()| "usable".to_owned())));
        findings.push(Finding::info("interrupt controller", interrupt_controller()));
        findings.push(kernel(&release));
    } else {
        let text = "not needed: microVMs run on an emulated ARM64 host (./x host)";
        findings.push(Finding::info("kvm", text.to_owned()));
    }
    for finding in &findings {
        println!(
            "{:<4} {:<21} {}",
            if finding.is_good { "ok" } else { "BAD" },
            finding.what,
            finding.text
        );
    }
    Ok(i32::from(findings.iter().any(|finding| !finding.is_good)))
}

struct Finding {
    what: &'static str,
    text: String,
    is_good: bool,
}

impl Finding {
    fn info(what: &'static str, text: String) -> Self {
        Self { what, text, is_good: true }
    }

    fn of(what: &'static str, result: Result<String>) -> Self {
        match result {
            Ok(text) => Self { what, text, is_good: true },
            Err(error) => Self { what, text: format!("{error:#}"), is_good: false },
        }
    }
}

fn disk_space(paths: &Paths) -> Result<Finding> {
    let free = disk::free_bytes(&paths.cache)?;
    let text = format!("{} GiB free for {}", free / GIB, paths.cache.display());
    Ok(Finding {
        what: "disk",
        is_good: free >= WANTED_BYTES,
        text: if free >= WANTED_BYTES {
            text
        } else {
            format!(
                "{text}; {} GiB are wanted: set ROTIFER_CACHE to a larger disk",
                WANTED_BYTES / GIB
            )
        },
    })
}

fn huge_pages() -> String {
    let read = |name: &str| {
        let path = Path::new("/sys/kernel/mm/transparent_hugepage").join(name);
        fs::read_to_string(path)
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    };
    format!("anonymous: {}; shared: {}", read("enabled"), read("shmem_enabled"))
}

fn interrupt_controller() -> String {
    let interrupts = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let version = ["GICv3", "GICv2"].into_iter().find(|name| interrupts.contains(name));
    version.unwrap_or("unknown").to_owned()
}

fn kernel(release: &str) -> Finding {
    let is_good = version(release).is_some_and(|version| version >= KERNEL_WANTED);
    let (major, minor) = KERNEL_WANTED;
    let text = if is_good {
        format!("{release} is new enough")
    } else {
        format!("{release} is older than {major}.{minor}: install a newer one (bookworm-backports)")
    };
    Finding { what: "kernel", text, is_good }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(version("6.12.95+deb12-arm64"), Some((6, 12)));
        assert!(kernel("6.12.0").is_good && kernel("7.0-rc1").is_good);
        assert!(!kernel("6.9.1").is_good && !kernel("unknown").is_good);
    }
}
