//! The kernel modules that the emulated host loads before anything else.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::artifacts::find;

/// What they depend on comes along. The first is a dependency that no module declares.
pub const MODULES: &[&str] = &[
    "crc32c_generic",
    "9p",
    "9pnet_virtio",
    "virtio_net",
    "virtio_blk",
    "virtio-rng",
    "ext4",
    "overlay",
    "squashfs",
    "erofs",
    "loop",
    "tun",
    "veth",
    "bridge",
    "dummy",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nft_reject_inet",
    "nft_limit",
    "nft_log",
    "nft_fib_inet",
    "nft_compat",
    "nfnetlink",
];

/// A module's name and its image.
pub type Module = (String, Vec<u8>);

/// The wanted modules and what they need, each after what it needs.
pub fn collect(kernel_tree: &Path) -> Result<Vec<Module>> {
    let release = find(&kernel_tree.join("lib/modules"), "")?;
    let path = release.join("modules.order");
    let order = fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
    let mut sorted = Vec::new();
    for name in MODULES {
        add(name, &release, &order, &mut sorted)?;
    }
    Ok(sorted)
}

fn add(name: &str, release: &Path, order: &str, sorted: &mut Vec<Module>) -> Result<()> {
    if sorted.iter().any(|(known, _)| is_same(known, name)) {
        return Ok(());
    }
    let is_wanted = |line: &&str| {
        let file = line.rsplit('/').next().unwrap_or(line);
        is_same(file.trim_end_matches(".ko"), name)
    };
    // What is not in the list is built into this kernel.
    let Some(line) = order.lines().find(is_wanted) else { return Ok(()) };
    let image = read(&release.join(line))?;
    for needed in dependencies(&image) {
        add(&needed, release, order, sorted)?;
    }
    sorted.push((name.to_owned(), image));
    Ok(())
}

/// Debian compresses them since 2024.
fn read(path: &Path) -> Result<Vec<u8>> {
    let compressed = path.with_extension("ko.xz");
    if !compressed.exists() {
        return fs::read(path).with_context(|| format!("cannot read {path:?}"));
    }
    let output = Command::new("xz").arg("-dc").arg(&compressed).output();
    let output = output.context("cannot run xz; is xz-utils installed?")?;
    if !output.status.success() {
        bail!("xz cannot read {compressed:?}");
    }
    Ok(output.stdout)
}

/// A module's name has either dash or underscore, depending on who writes it.
fn is_same(one: &str, other: &str) -> bool {
    one.replace('-', "_") == other.replace('-', "_")
}

/// The module's own list, from its `.modinfo`: a run of `key=value` strings that end in zero.
fn dependencies(image: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = image.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let rest = image.get(at + key.len()..).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let list = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let image = b"\x7fELF..\0license=GPL\0depends=9pnet,netfs\0name=9p\0";
        assert_eq!(dependencies(image), ["9pnet", "netfs"]);
        assert!(dependencies(b"x\0depends=\0name=y\0").is_empty());
        assert!(dependencies(b"nothing here").is_empty());
    }

    #[test]
    fn dashes_and_underscores_are_the_same() {
        assert!(is_same("virtio-rng", "virtio_rng"));
        assert!(!is_same("virtio_net", "virtio_rng"));
    }
}
