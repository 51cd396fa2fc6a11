//! What the emulated host is made of: QEMU, a kernel and an initramfs, all in the cache.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use cpio::newc;

use super::variant::Pages;
use crate::{
    paths::{Paths, digest},
    step::{output_of, run, step},
};

/// Modules that are loaded before anything else runs; what they depend on comes along.
const MODULES: &[&str] = &[
    "crc32c_generic", "9p", "9pnet_virtio", "virtio_net", "virtio_blk", "virtio-rng", "ext4", "overlay", "squashfs",
    "erofs", "loop", "tun", "veth", "bridge", "dummy", "nf_tables", "nft_ct", "nft_nat",
    "nft_masq", "nft_chain_nat", "nft_reject_inet", "nft_limit", "nft_log", "nft_fib_inet",
    "nft_compat", "nfnetlink",
];
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"),
    ("etc/group", "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost rotifer-host\n"),
    ("etc/resolv.conf", "nameserver 10.0.2.3\n"),
];
const DIRECTORIES: &[&str] = &["bin", "dev", "etc", "modules", "new", "proc", "root", "sys"];

/// Paths of the pieces, and a digest of what they are.
#[derive(Debug)]
pub struct Artifacts {
    /// Where QEMU is unpacked.
    pub qemu: PathBuf,
    /// The kernel to boot.
    pub kernel: PathBuf,
    /// Its package, with the version in the name.
    pub kernel_package: String,
    /// The first file system.
    pub initramfs: PathBuf,
}

impl Artifacts {
    /// Downloads and builds what the cache lacks.
    pub fn prepare(paths: &Paths, pages: Pages) -> Result<Self> {
        let host = paths.cache.join("host");
        fs::create_dir_all(&host).with_context(|| format!("cannot create {host:?}"))?;
        let qemu = paths.cache.join("qemu");
        unpack(paths, &qemu, "the emulator (QEMU)", |dir| {
            paths.debs(&["--from", "bookworm-backports", "--closure", dir, "qemu-system-arm"])
        })?;
        let busybox = host.join("busybox");
        unpack(paths, &busybox, "the host's shell (busybox)", |dir| {
            paths.debs(&[dir, "busybox-static:arm64"])
        })?;
        let (kernel_package, tree) = kernel(paths, &host, pages)?;
        let kernel = find(&tree.join("boot"), "vmlinuz-")?;
        let init = build_init(paths)?;
        let initramfs = initramfs(&host, &init, &busybox, &tree, &kernel_package)?;
        Ok(Self { qemu, kernel, kernel_package, initramfs })
    }

    /// QEMU itself, ready for arguments.
    pub fn qemu_command(&self) -> Command {
        let mut command = Command::new(self.qemu.join("usr/bin/qemu-system-aarch64"));
        let mut libraries = Vec::new();
        for triple in ["x86_64-linux-gnu", "aarch64-linux-gnu"] {
            libraries.push(self.qemu.join("usr/lib").join(triple));
            libraries.push(self.qemu.join("lib").join(triple));
        }
        let joined = std::env::join_paths(libraries).unwrap_or_default();
        command.env("LD_LIBRARY_PATH", joined);
        command.arg("-L").arg(self.qemu.join("usr/share/qemu"));
        command
    }
}

fn unpack(
    paths: &Paths,
    directory: &Path,
    what: &str,
    command: impl Fn(&str) -> Command,
) -> Result<()> {
    if directory.join(".complete").exists() {
        return Ok(());
    }
    let name = directory.to_str().with_context(|| format!("{directory:?} is no UTF-8"))?;
    crate::disk::require(&paths.cache, crate::disk::UNPACK_BYTES)?;
    step(&format!("fetching {what}"), || run(&mut command(name)))
}

/// The newest kernel there was when this cache was filled; it stays until the cache is cleaned.
fn kernel(paths: &Paths, host: &Path, pages: Pages) -> Result<(String, PathBuf)> {
    let tree = host.join(format!("kernel-{}", pages.name()));
    let record = host.join(format!("kernel-{}.package", pages.name()));
    if let (Ok(package), true) = (fs::read_to_string(&record), tree.join(".complete").exists()) {
        return Ok((package, tree));
    }
    let newest = output_of(&mut paths.debs(&["--newest", pages.package_pattern()]))?;
    let package = newest.trim().to_owned();
    if package.is_empty() {
        bail!("Debian's archives have no package that matches {}", pages.package_pattern());
    }
    let with_architecture = format!("{package}:arm64");
    unpack(paths, &tree, &format!("the host's kernel ({package})"), |dir| {
        paths.debs(&[dir, &with_architecture])
    })?;
    fs::write(&record, &package).with_context(|| format!("cannot write {record:?}"))?;
    Ok((package, tree))
}

fn build_init(paths: &Paths) -> Result<PathBuf> {
    let target = paths.root.join("target/host-init");
    let mut cargo = paths.cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "host-init"]);
    cargo.args(["--target", "aarch64-unknown-linux-gnu", "--target-dir"]).arg(&target);
    let binary = target.join("aarch64-unknown-linux-gnu/release/host-init");
    if binary.exists() {
        run(&mut cargo)?;
    } else {
        step("building the host's first process", || run(&mut cargo))?;
    }
    Ok(binary)
}

fn initramfs(
    host: &Path,
    init: &Path,
    busybox: &Path,
    kernel_tree: &Path,
    kernel_package: &str,
) -> Result<PathBuf> {
    let init = fs::read(init).with_context(|| format!("cannot read {init:?}"))?;
    let inputs = format!("{kernel_package} {} {MODULES:?} {FILES:?}", digest(&init));
    let path = host.join(format!("initramfs-{}.cpio", digest(inputs.as_bytes())));
    if path.exists() {
        return Ok(path);
    }
    let mut archive = Archive::default();
    for directory in DIRECTORIES {
        archive.add(directory, 0o040_755, &[])?;
    }
    archive.add("init", 0o100_755, &init)?;
    let busybox = busybox.join("bin/busybox");
    let shell = fs::read(&busybox).with_context(|| format!("cannot read {busybox:?}"))?;
    archive.add("bin/busybox", 0o100_755, &shell)?;
    for (name, text) in FILES {
        archive.add(name, 0o100_644, text.as_bytes())?;
    }
    for (number, (name, image)) in modules(kernel_tree)?.iter().enumerate() {
        archive.add(&format!("modules/{number:03}-{name}.ko"), 0o100_644, image)?;
    }
    archive.write(&path)?;
    Ok(path)
}

/// A cpio archive in memory.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.count += 1;
        let length = u32::try_from(content.len()).context("a file of 4 GiB in an initramfs")?;
        let entry = newc::Builder::new(name).ino(self.count).mode(mode).nlink(1);
        let mut writer = entry.write(&mut self.bytes, length);
        writer.write_all(content).and_then(|()| writer.finish().map(|_| ())).context(name.to_owned())
    }

    /// Appears under its name only when it is whole.
    fn write(mut self, path: &Path) -> Result<()> {
        newc::trailer(&mut self.bytes).context("cannot end the archive")?;
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        fs::write(&partial, &self.bytes).with_context(|| format!("cannot write {partial:?}"))?;
        fs::rename(&partial, path).with_context(|| format!("cannot name {path:?}"))
    }
}

/// The wanted modules and what they need, each after what it needs.
fn modules(kernel_tree: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let root = kernel_tree.join("lib/modules");
    let release = find(&root, "")?;
    let order_file = release.join("modules.order");
    let order = fs::read_to_string(&order_file)
        .with_context(|| format!("cannot read {order_file:?}"))?;
    let mut sorted = Vec::new();
    for name in MODULES {
        add_module(name, &release, &order, &mut sorted)?;
    }
    Ok(sorted)
}

fn add_module(
    name: &str,
    release: &Path,
    order: &str,
    sorted: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if sorted.iter().any(|(known, _)| same_module(known, name)) {
        return Ok(());
    }
    let stem = |line: &&str| {
        let file = line.rsplit('/').next().unwrap_or(line);
        same_module(file.trim_end_matches(".ko"), name)
    };
    // What is not in the list is built into this kernel.
    let Some(line) = order.lines().find(stem) else { return Ok(()) };
    let compressed = release.join(format!("{line}.xz"));
    let image = if compressed.exists() {
        let output = Command::new("xz").arg("-dc").arg(&compressed).output();
        let output = output.context("cannot run xz; is xz-utils installed?")?;
        if !output.status.success() {
            bail!("xz cannot read {compressed:?}");
        }
        output.stdout
    } else {
        let plain = release.join(line);
        let mut image = Vec::new();
        let mut file = fs::File::open(&plain).with_context(|| format!("cannot open {plain:?}"))?;
        file.read_to_end(&mut image).with_context(|| format!("cannot read {plain:?}"))?;
        image
    };
    for needed in dependencies(&image) {
        add_module(&needed, release, order, sorted)?;
    }
    sorted.push((name.to_owned(), image));
    Ok(())
}

/// A module's name has either dash or underscore, depending on who writes it.
fn same_module(one: &str, other: &str) -> bool {
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

fn find(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {directory:?}"))?;
    let mut found = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let entry = found.next().with_context(|| format!("no {prefix}* in {directory:?}"))?;
    Ok(entry.path())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        let image = b"\x7fELF..\0license=GPL\0depends=9pnet,netfs\0name=9p\0";
        assert_eq!(dependencies(image), ["9pnet", "netfs"]);
        assert!(dependencies(b"x\0depends=\0name=y\0").is_empty());
        assert!(dependencies(b"nothing here").is_empty());
    }

    #[test]
    fn an_archive_can_be_read_back() {
        let mut archive = Archive::default();
        archive.add("etc", 0o040_755, &[]).unwrap();
        archive.add("etc/hosts", 0o100_644, b"hello").unwrap();
        newc::trailer(&mut archive.bytes).unwrap();
        let first = newc::Reader::new(Cursor::new(archive.bytes)).unwrap();
        assert_eq!(first.entry().name(), "etc");
        let second = newc::Reader::new(first.finish().unwrap()).unwrap();
        assert_eq!((second.entry().name(), second.entry().file_size()), ("etc/hosts", 5));
    }
}
