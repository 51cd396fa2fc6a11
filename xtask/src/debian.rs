//! A root disk: Debian for ARM64 with Python, Flask, apt and the example web app.
//!
//! Nothing of it runs while it is made, and no root rights are needed: packages are unpacked, their
//! few necessary settings are written here, and `mke2fs` fills a file system from the directory.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    disk,
    paths::{Paths, digest},
    step::{run, step},
};

const PACKAGES: &[&str] = &[
    "apt",
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "e2fsprogs",
    "findutils",
    "grep",
    "gunicorn",
    "gzip",
    "hostname",
    "iproute2",
    "libc-bin",
    "mawk",
    "mount",
    "ncurses-base",
    "netbase",
    "procps",
    "python3",
    "python3-flask",
    "sed",
    "tar",
    "usr-is-merged",
    "util-linux",
];
/// For people, who are not there.
const UNUSED: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/javascript",
    "boot",
    ".complete",
];
/// Files that packages would write when they are installed.
const SETTINGS: &[(&str, &str)] = &[
    ("etc/hostname", "rotifer\n"),
    ("etc/hosts", "127.0.0.1 localhost rotifer\n::1 localhost\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"),
    // A guest without a network keeps it; one that is given name servers has theirs mounted on it.
    ("etc/resolv.conf", ""),
    ("etc/profile", "export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin PS1='\\w# '\n"),
];
const APP: &[&str] = &["app.py", "app.json"];
const SIZE: &str = "512M";
/// Raised when what this file does to the tree changes.
const RECIPE: u32 = 2;

/// Makes the disk, or takes it from the cache.
pub fn make(paths: &Paths, to: &Path) -> Result<()> {
    let images = paths.cache.join("images");
    fs::create_dir_all(&images).with_context(|| format!("cannot create {images:?}"))?;
    let cached = images.join(format!("debian-{}.ext4", identity(paths)?));
    if !cached.exists() {
        let root = images.join("debian-root");
        unpack(paths, &root)?;
        step("making the Debian root disk", || build(paths, &root, &cached))?;
    }
    copy_sparse(&cached, to)
}

fn identity(paths: &Paths) -> Result<String> {
    let mut inputs = format!("{RECIPE} {PACKAGES:?} {UNUSED:?} {SETTINGS:?} {SIZE}").into_bytes();
    for name in APP {
        let path = paths.root.join("examples/web-app").join(name);
        inputs.extend(fs::read(&path).with_context(|| format!("cannot read {path:?}"))?);
    }
    Ok(digest(&inputs))
}

fn unpack(paths: &Paths, root: &Path) -> Result<()> {
    let known = fs::read_to_string(root.join(".complete")).unwrap_or_default();
    if known == PACKAGES.join(" ") {
        return Ok(());
    }
    disk::require(&paths.cache, disk::UNPACK_BYTES)?;
    let mut debs = paths.debs(&["--root", "arm64"]);
    step("fetching Debian for the guest", || run(debs.arg(root).args(PACKAGES)))
}

fn build(paths: &Paths, root: &Path, cached: &Path) -> Result<()> {
    let work = cached.with_extension(format!("work-{}", std::process::id()));
    let _of_an_earlier_run = fs::remove_dir_all(&work);
    let result = prepare(paths, root, &work).and_then(|()| format(&work, cached));
    let _it_was_scratch = fs::remove_dir_all(&work);
    result
}

/// A copy of the tree in which everything is as an installation would leave it.
fn prepare(paths: &Paths, root: &Path, work: &Path) -> Result<()> {
    run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(root).arg(work))?;
    for name in UNUSED {
        let path = work.join(name);
        let _it_need_not_be_there = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    for name in ["passwd", "group"] {
        copy(
            &work.join(format!("usr/share/base-passwd/{name}.master")),
            &work.join("etc").join(name),
        )?;
    }
    for (name, text) in SETTINGS {
        let path = work.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {path:?}"))?;
    }
    for (link, target) in [("usr/bin/awk", "mawk"), ("etc/mtab", "/proc/self/mounts")] {
        let _it_may_be_there = symlink(target, work.join(link));
    }
    for (name, mode) in [("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700), ("srv", 0o755)] {
        let path = work.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {path:?}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {path:?}"))?;
    }
    let (source, app) = (paths.root.join("examples/web-app"), work.join("srv/web-app"));
    for directory in [&app, &work.join("etc/rotifer")] {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {directory:?}"))?;
    }
    copy(&source.join("app.py"), &app.join("app.py"))?;
    copy(&source.join("app.json"), &work.join("etc/rotifer/app.json"))?;
    compile_python(work)
}

/// A guest that compiled its modules at each start would take seconds longer. Byte code depends on
/// Python's version, not on the machine.
fn compile_python(work: &Path) -> Result<()> {
    let python = Path::new("/usr/bin/python3.11");
    if !python.exists() {
        bail!("{python:?} is missing: run `apt-get install python3`");
    }
    let mut compile = Command::new(python);
    compile.args(["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]);
    compile.arg("-s").arg(work).args(["-p", "/", "-x", "lib2to3/tests|/test/bad"]);
    for directory in ["usr/lib/python3.11", "usr/lib/python3/dist-packages", "srv/web-app"] {
        compile.arg(work.join(directory));
    }
    run(compile.stdout(Stdio::null()))
}

fn format(work: &Path, cached: &Path) -> Result<()> {
    let partial = cached.with_extension("partial");
    let _of_an_earlier_run = fs::remove_file(&partial);
    let mut format = Command::new("/sbin/mke2fs");
    format.args(["-q", "-t", "ext4", "-L", "debian", "-m", "0", "-J", "size=8"]);
    format.args(["-E", "root_owner=0:0,lazy_itable_init=1", "-d"]).arg(work);
    run(format.arg(&partial).arg(SIZE))?;
    own_by_root(&partial, work)?;
    fs::rename(&partial, cached).with_context(|| format!("cannot name {cached:?}"))
}

/// The files of the tree belong to whoever unpacked it. In the guest they are root's.
fn own_by_root(image: &Path, work: &Path) -> Result<()> {
    if rustix::process::getuid().is_root() {
        return Ok(());
    }
    let mut script = String::new();
    list_owned(work, Path::new("/"), &mut script)?;
    let mut debugfs = Command::new("/sbin/debugfs")
        .args(["-w", "-f", "-"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run debugfs; is e2fsprogs installed?")?;
    let mut input = debugfs.stdin.take().context("debugfs has no input")?;
    input.write_all(script.as_bytes()).context("debugfs takes no input")?;
    drop(input);
    let status = debugfs.wait().context("cannot wait for debugfs")?;
    if !status.success() {
        bail!("debugfs could not give the files of {image:?} to root ({status})");
    }
    Ok(())
}

fn list_owned(directory: &Path, inside: &Path, script: &mut String) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {directory:?}"))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {directory:?}"))?;
        let path: PathBuf = inside.join(entry.file_name());
        let shown = path.display();
        *script += &format!("sif \"{shown}\" uid 0\nsif \"{shown}\" gid 0\n");
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_owned(&entry.path(), &path, script)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(|_| ()).with_context(|| format!("cannot copy {from:?} to {to:?}"))
}

/// A copy of its own, since a guest may be given it to write; not made again if it is there.
fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let length = |path: &Path| fs::metadata(path).map(|data| data.len()).ok();
    if length(to) == length(from) && modified(to) == modified(from) {
        return Ok(());
    }
    let partial = to.with_extension("partial");
    let mut copy = Command::new("cp");
    copy.args(["--reflink=auto", "--sparse=always", "--preserve=timestamps"]);
    run(copy.arg(from).arg(&partial))?;
    fs::rename(&partial, to).with_context(|| format!("cannot name {to:?}"))
}
