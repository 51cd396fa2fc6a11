//! What the emulated host is made of: QEMU, a kernel and an initramfs, all in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    modules::{self, MODULES},
    variant::Pages,
};
use crate::{
    archive::{Archive, DIRECTORY, FILE, PROGRAM},
    paths::{Paths, digest},
    step::{output_of, run, step},
};

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
        archive.add(directory, DIRECTORY, &[])?;
    }
    archive.add("init", PROGRAM, &init)?;
    let busybox = busybox.join("bin/busybox");
    let shell = fs::read(&busybox).with_context(|| format!("cannot read {busybox:?}"))?;
    archive.add("bin/busybox", PROGRAM, &shell)?;
    for (name, text) in FILES {
        archive.add(name, FILE, text.as_bytes())?;
    }
    for (number, (name, image)) in modules::collect(kernel_tree)?.iter().enumerate() {
        archive.add(&format!("modules/{number:03}-{name}.ko"), FILE, image)?;
    }
    archive.write(&path)?;
    Ok(path)
}

/// The first entry of a directory that begins so.
pub fn find(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {directory:?}"))?;
    let mut found = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let entry = found.next().with_context(|| format!("no {prefix}* in {directory:?}"))?;
    Ok(entry.path())
}
