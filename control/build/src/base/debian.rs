//! A base image from Debian packages, for hosts that reach no registry.
//!
//! Nothing of it runs while it is made and no root rights are needed: the packages' archives become one
//! layer with the owners that they name, and dpkg's own files say that all are installed, so that
//! `apt-get install` goes on from there. What their installation scripts would have done is done here
//! for those that matter ([`finish`]); the others' have not run.

use super::{Base, BaseError, Layer, Store, failed, normalize};
use crate::image::ImageConfig;
use crate::plan::hex;
use crate::tarball::header;
use rotifer_build_worker::protocol::Compression;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tar::{Archive, Builder, EntryType};
use tempfile::TempDir;

/// Fetches packages with the machine's own apt configuration.
const DEBS: &str = include_str!("../../../../xtask/debs");
/// What every Debian has, and what installs more.
const PACKAGES: &[&str] = &[
    "apt",
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "ca-certificates",
    "coreutils",
    "dash",
    "debconf",
    "debian-archive-keyring",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "gpgv",
    "grep",
    "gzip",
    "hostname",
    "init-system-helpers",
    "libc-bin",
    "login",
    "mawk",
    "mount",
    "ncurses-base",
    "ncurses-bin",
    "netbase",
    "passwd",
    "perl-base",
    "sed",
    "sysvinit-utils",
    "tar",
    "tzdata",
    "usr-is-merged",
    "util-linux",
];
/// For people, who are not there.
const UNUSED: &[&str] = &[
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
];
const CERTIFICATES: &str = "usr/share/ca-certificates/";
/// Directories that became links into `/usr`.
const MERGED: [&str; 3] = ["bin", "sbin", "lib"];
const FILES: &[(&str, &str)] = &[
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
    ),
    (
        "etc/apt/apt.conf.d/docker-like",
        "APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n",
    ),
    ("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n"),
];
/// Where the packages are put, and beside them where this machine gets such packages.
const ARCHIVES: &str = "archives";
const SOURCES: &str = "sources.list";
const LINKS: &[(&str, &str)] = &[("usr/bin/awk", "mawk"), ("etc/mtab", "/proc/mounts")];

/// Makes the image, with more packages if they are wanted.
///
/// # Errors
/// The packages cannot be had, or the store cannot take them.
pub fn make(store: &Store, name: &str, more: &[String]) -> Result<Base, BaseError> {
    let directory = TempDir::new().map_err(failed("make", Path::new("a directory")))?;
    let debs = fetch(directory.path(), more)?;
    let path = directory.path().join("layer.tar");
    let file = File::create(&path).map_err(failed("make", &path))?;
    let mut layer = Writer::new(Builder::new(io::BufWriter::new(file)));
    layer.begin()?;
    let mut status = String::new();
    for deb in &debs {
        layer.package(deb, &mut status)?;
    }
    layer.finish(&status)?;
    let sources = directory.path().join(ARCHIVES).join(SOURCES);
    let bytes = fs::read(&sources).map_err(failed("read", &sources))?;
    layer.file("etc/apt/sources.list", 0o644, &bytes)?;
    let file = layer.end()?;
    drop(file);
    let mut content = File::open(&path).map_err(failed("open", &path))?;
    let digest = store.put_layer(&mut content, None)?;
    let config = ImageConfig {
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        cmd: vec!["bash".into()],
        ..ImageConfig::default()
    };
    let layers = vec![Layer { digest, compression: Compression::None }];
    let base = Base { name: normalize(name), config, layers };
    store.put(&base)?;
    Ok(base)
}

/// Downloads the packages and all that they need; their files in the order of their names.
fn fetch(directory: &Path, more: &[String]) -> Result<Vec<PathBuf>, BaseError> {
    let (script, to) = (directory.join("debs"), directory.join(ARCHIVES));
    fs::write(&script, DEBS).map_err(failed("write", &script))?;
    let mut command = Command::new("sh");
    command.arg(&script).args(["--archives", "arm64"]).arg(&to).args(PACKAGES).args(more);
    let status = command.status().map_err(failed("run", &script))?;
    if !status.success() {
        return Err(BaseError::Invalid("the packages could not be downloaded".into()));
    }
    let mut debs = Vec::new();
    for entry in fs::read_dir(&to).map_err(failed("list", &to))? {
        let path = entry.map_err(failed("list", &to))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            debs.push(path);
        }
    }
    debs.sort();
    Ok(debs)
}

/// The layer while it grows.
struct Writer<W: Write> {
    tar: Builder<W>,
    /// What is in it: a directory once.
    known: BTreeSet<PathBuf>,
    certificates: BTreeMap<PathBuf, Vec<u8>>,
    /// `/etc/passwd` and its like, as base-passwd has them.
    masters: BTreeMap<&'static str, Vec<u8>>,
}

impl<W: Write> Writer<W> {
    fn new(tar: Builder<W>) -> Self {
        let (known, certificates, masters) = Default::default();
        Self { tar, known, certificates, masters }
    }

    /// A merged `/usr`, as every Debian since 12 has it.
    fn begin(&mut self) -> Result<(), BaseError> {
        for name in MERGED {
            self.directory(&format!("usr/{name}"), 0o755)?;
            self.link(name, &format!("usr/{name}"))?;
        }
        for (name, mode) in [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700), ("srv", 0o755)]
        {
            self.directory(name, mode)?;
        }
        for name in
            ["proc", "sys", "dev", "run", "mnt", "var/lib/dpkg/info", "var/lib/dpkg/updates"]
        {
            self.directory(name, 0o755)?;
        }
        Ok(())
    }

    /// One package: its files, its scripts, its paragraph of dpkg's status.
    fn package(&mut self, deb: &Path, status: &mut String) -> Result<(), BaseError> {
        let mut control = String::new();
        let mut scripts = Vec::new();
        let mut reader = Tar::of("--ctrl-tarfile", deb)?;
        let mut archive = Archive::new(reader.output());
        for entry in archive.entries().map_err(failed("read", deb))? {
            let mut entry = entry.map_err(failed("read", deb))?;
            let name = entry.path().map_err(failed("read", deb))?.file_name().map(PathBuf::from);
            let Some(name) = name.filter(|_| entry.header().entry_type().is_file()) else {
                continue;
            };
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(failed("read", deb))?;
            match name.to_str() {
                Some("control") => control = String::from_utf8_lossy(&bytes).into_owned(),
                Some("md5sums") | None => {}
                Some(other) => scripts.push((other.to_owned(), bytes)),
            }
        }
        reader.end(archive.into_inner(), deb)?;
        let field = |name: &str| {
            let mut lines = control.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
        };
        // Packages that can be there for several architectures at once carry theirs in the names.
        let package = match field("Multi-Arch") {
            "same" => format!("{}:{}", field("Package"), field("Architecture")),
            _ => field("Package").to_owned(),
        };
        status.push_str(&installed(&control));
        let list = self.files(deb)?;
        let info = |suffix: &str| format!("var/lib/dpkg/info/{package}.{suffix}");
        self.file(&info("list"), 0o644, list.as_bytes())?;
        for (name, bytes) in &scripts {
            let mode = if name.ends_with("inst") || name.ends_with("rm") { 0o755 } else { 0o644 };
            self.file(&info(name), mode, bytes)?;
        }
        Ok(())
    }

    /// Copies a package's files; the list of them, as dpkg keeps it.
    fn files(&mut self, deb: &Path) -> Result<String, BaseError> {
        let mut list = String::from("/.\n");
        let mut reader = Tar::of("--fsys-tarfile", deb)?;
        let mut archive = Archive::new(reader.output());
        for entry in archive.entries().map_err(failed("read", deb))? {
            let mut entry = entry.map_err(failed("read", deb))?;
            let original = plain(&entry.path().map_err(failed("read", deb))?);
            let path = merged(&original);
            let is_directory = entry.header().entry_type().is_dir();
            let text = path.to_string_lossy().into_owned();
            if text.is_empty() || UNUSED.iter().any(|unused| text.starts_with(unused)) {
                continue;
            }
            list.push_str(&format!("/{}\n", original.display()));
            if MERGED.contains(&text.as_str()) || (is_directory && self.known.contains(&path)) {
                continue;
            }
            let mut header = entry.header().clone();
            let link =
                entry.link_name().map_err(failed("read", deb))?.map(|link| link.into_owned());
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(failed("read", deb))?;
            self.note(&text, &bytes);
            self.known.insert(path.clone());
            let result = match (header.entry_type(), link) {
                (EntryType::Link, Some(link)) => {
                    self.tar.append_link(&mut header, &path, merged(&plain(&link)))
                }
                (EntryType::Symlink, Some(link)) => self.tar.append_link(&mut header, &path, link),
                _ => self.tar.append_data(&mut header, &path, &bytes[..]),
            };
            result.map_err(failed("copy from", deb))?;
        }
        reader.end(archive.into_inner(), deb)?;
        Ok(list)
    }

    /// Remembers what installation scripts would read.
    fn note(&mut self, path: &str, bytes: &[u8]) {
        if path.starts_with(CERTIFICATES) {
            self.certificates.insert(path.into(), bytes.to_vec());
        }
        for name in ["passwd", "group"] {
            if path == format!("usr/share/base-passwd/{name}.master") {
                self.masters.insert(name, bytes.to_vec());
            }
        }
    }

    /// What the scripts of the packages would have done.
    fn finish(&mut self, status: &str) -> Result<(), BaseError> {
        self.file("var/lib/dpkg/status", 0o644, status.as_bytes())?;
        self.file("var/lib/dpkg/available", 0o644, b"")?;
        let bundle: Vec<u8> =
            std::mem::take(&mut self.certificates).into_values().flatten().collect();
        self.directory("etc/ssl/certs", 0o755)?;
        self.file("etc/ssl/certs/ca-certificates.crt", 0o644, &bundle)?;
        for (name, bytes) in std::mem::take(&mut self.masters) {
            self.file(&format!("etc/{name}"), 0o644, &bytes)?;
        }
        for (name, text) in FILES {
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            self.file(name, mode, text.as_bytes())?;
        }
        for (name, target) in LINKS {
            if !self.known.contains(Path::new(name)) {
                self.link(name, target)?;
            }
        }
        Ok(())
    }

    fn end(self) -> Result<W, BaseError> {
        self.tar.into_inner().map_err(failed("end", Path::new("the layer")))
    }

    fn directory(&mut self, name: &str, mode: u32) -> Result<(), BaseError> {
        if !self.known.insert(name.into()) {
            return Ok(());
        }
        let mut header = header(EntryType::Directory, mode, 0);
        self.tar.append_data(&mut header, name, &b""[..]).map_err(failed("add", Path::new(name)))
    }

    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), BaseError> {
        self.known.insert(name.into());
        let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
        self.tar.append_data(&mut header, name, bytes).map_err(failed("add", Path::new(name)))
    }

    fn link(&mut self, name: &str, target: &str) -> Result<(), BaseError> {
        self.known.insert(name.into());
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, name, target).map_err(failed("add", Path::new(name)))
    }
}

/// A package's paragraph of dpkg's status. Its settings files are left out, since their digests are not
/// known: an upgrade takes them for the user's own, and keeps them.
fn installed(control: &str) -> String {
    let mut paragraph = String::new();
    for line in control.trim_end().lines() {
        paragraph.push_str(line);
        paragraph.push('\n');
        if line.starts_with("Package: ") {
            paragraph.push_str("Status: install ok installed\n");
        }
    }
    paragraph.push('\n');
    paragraph
}

fn plain(path: &Path) -> PathBuf {
    let parts = path.components().filter(|part| matches!(part, std::path::Component::Normal(_)));
    parts.collect()
}

/// Where a path of a package is once `/usr` is merged.
fn merged(path: &Path) -> PathBuf {
    let first = path.iter().next().and_then(|first| first.to_str()).unwrap_or_default();
    let is_moved = MERGED.contains(&first) && path.iter().count() > 1;
    if is_moved { Path::new("usr").join(path) } else { path.to_path_buf() }
}

/// `dpkg-deb` while it writes a tar.
struct Tar {
    child: Child,
}

impl Tar {
    fn of(option: &str, deb: &Path) -> Result<Self, BaseError> {
        let mut command = Command::new("dpkg-deb");
        command.arg(option).arg(deb).stdout(Stdio::piped());
        let child = command.spawn().map_err(failed("run dpkg-deb for", deb))?;
        Ok(Self { child })
    }

    fn output(&mut self) -> Box<dyn Read> {
        match self.child.stdout.take() {
            Some(output) => Box::new(BufReader::new(output)),
            None => Box::new(io::empty()),
        }
    }

    /// Reads what is behind the tar's end mark: the program fails if nobody does.
    fn end(mut self, mut output: Box<dyn Read>, deb: &Path) -> Result<(), BaseError> {
        io::copy(&mut output, &mut io::sink()).map_err(failed("read", deb))?;
        let status = self.child.wait().map_err(failed("wait for dpkg-deb of", deb))?;
        match status.success() {
            true => Ok(()),
            false => Err(BaseError::Invalid(format!("dpkg-deb: {}: {status}", deb.display()))),
        }
    }
}

/// A name for packages, for the cache of whoever asks.
#[must_use]
pub fn identity(more: &[String]) -> String {
    use sha2::{Digest as _, Sha256};
    let inputs = format!("{PACKAGES:?} {UNUSED:?} {FILES:?} {LINKS:?} {more:?}");
    hex(Sha256::digest(inputs.as_bytes()).get(..16).unwrap_or_default())
}
