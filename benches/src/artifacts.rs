//! What is measured and what guests boot, kept on tmpfs.
//!
//! Where the checkout is shared into an emulated host, reading it costs more than most of what is
//! measured. So files are copied once to a tmpfs and found there by the next run.

use std::env;
use std::fs::{self, File, Metadata};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{StatFs, statfs};
use tempfile::NamedTempFile;

/// Where the artifacts are, and the default for it.
const ARTIFACTS_VARIABLE: &str = "ROTIFER_ARTIFACTS";
const ARTIFACTS_DEFAULT: &str = "target/artifacts";
/// Where a tmpfs usually is.
const TMPFS_CANDIDATES: [&str; 3] = ["/dev/shm", "/tmp", "/run"];
/// The number that `statfs` gives for a tmpfs (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// What must stay free for guests and their disks.
const SPARE_BYTES: u64 = 512 << 20;
const COPY_BYTES: usize = 1 << 20;

/// The files, by what they are for.
#[derive(Debug)]
pub struct Artifacts {
    source: PathBuf,
    /// A directory on tmpfs.
    stage: PathBuf,
}

impl Artifacts {
    /// From `ROTIFER_ARTIFACTS`, by default `target/artifacts`.
    ///
    /// # Errors
    /// There is no such directory, or nowhere to copy to.
    pub fn find() -> Result<Self> {
        let source =
            env::var_os(ARTIFACTS_VARIABLE).map_or(ARTIFACTS_DEFAULT.into(), PathBuf::from);
        if !source.is_dir() {
            bail!(
                "there is no directory {}: ./x makes the artifacts, {ARTIFACTS_VARIABLE} says where \
                 they are",
                source.display()
            );
        }
        Self::between(source, &tmpfs()?.join("rotifer-benches"))
    }

    fn between(source: PathBuf, stage: &Path) -> Result<Self> {
        let stage = stage.to_path_buf();
        fs::create_dir_all(&stage).with_context(|| format!("cannot create {}", stage.display()))?;
        Ok(Self { source, stage })
    }

    /// Where further files can be, on the same tmpfs.
    pub fn stage(&self) -> &Path {
        &self.stage
    }

    /// Where they were made.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The VMM under test.
    ///
    /// # Errors
    /// It is missing or cannot be copied; likewise for the others.
    pub fn vmm(&self) -> Result<PathBuf> {
        self.staged("rotifer-vmm")
    }

    /// The guest kernel.
    pub fn kernel(&self) -> Result<PathBuf> {
        self.staged("Image")
    }

    /// An initramfs that holds the agent.
    pub fn initramfs(&self) -> Result<PathBuf> {
        self.staged("initramfs.cpio")
    }

    /// A root disk.
    pub fn root_disk(&self) -> Result<PathBuf> {
        self.staged("debian.ext4")
    }

    /// Any other file.
    pub fn other(&self, path: &Path) -> Result<PathBuf> {
        self.copy(path)
    }

    fn staged(&self, name: &str) -> Result<PathBuf> {
        let path = self.source.join(name);
        if !path.exists() {
            bail!(
                "{} is missing: ./x makes it, {ARTIFACTS_VARIABLE} says where it is",
                path.display()
            );
        }
        self.copy(&path)
    }

    fn copy(&self, path: &Path) -> Result<PathBuf> {
        let copying = || format!("cannot copy {} to {}", path.display(), self.stage.display());
        let metadata = fs::metadata(path).with_context(copying)?;
        let name = staged_name(path, &metadata);
        let target = self.stage.join(&name);
        if target.exists() {
            return Ok(target);
        }
        self.forget_older(&name).with_context(copying)?;
        let mut partial = NamedTempFile::new_in(&self.stage).with_context(copying)?;
        copy_without_holes(path, partial.as_file_mut()).with_context(copying)?;
        fs::set_permissions(partial.path(), metadata.permissions()).with_context(copying)?;
        // A program that is still open for writing cannot be executed.
        let closed = partial.into_temp_path();
        closed.persist(&target).with_context(copying)?;
        Ok(target)
    }

    /// Removes copies of what the source was before.
    fn forget_older(&self, name: &str) -> std::io::Result<()> {
        let Some((stem, _)) = name.rsplit_once(VERSION_MARK) else { return Ok(()) };
        for entry in fs::read_dir(&self.stage)? {
            let entry = entry?;
            let known = entry.file_name();
            let known = known.to_string_lossy();
            if known.rsplit_once(VERSION_MARK).is_some_and(|(other, _)| other == stem) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Stands between a file's name and what tells its versions apart.
const VERSION_MARK: char = '@';

/// The name of a copy: which file it is of, and of which version of it.
fn staged_name(path: &Path, metadata: &Metadata) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (device, inode) = (metadata.dev(), metadata.ino());
    let (size, seconds, nanos) = (metadata.size(), metadata.mtime(), metadata.mtime_nsec());
    format!("{name}-{device}-{inode}{VERSION_MARK}{size}-{seconds}-{nanos}")
}

/// Zeroes of an image stay holes: a root disk is mostly empty, and tmpfs is memory.
fn copy_without_holes(path: &Path, target: &mut File) -> std::io::Result<()> {
    let mut source = File::open(path)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut size_bytes = 0;
    loop {
        let count = source.read(&mut buffer)?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        if piece.iter().all(|byte| *byte == 0) {
            target.seek(SeekFrom::Current(count.try_into().map_err(std::io::Error::other)?))?;
        } else {
            target.write_all(piece)?;
        }
        size_bytes += count as u64;
    }
    target.set_len(size_bytes)
}

/// A directory on a tmpfs with room in it.
fn tmpfs() -> Result<PathBuf> {
    let is_good = |path: &str| statfs(path).is_ok_and(|stat| is_roomy_tmpfs(&stat));
    let found = TMPFS_CANDIDATES.into_iter().find(|path| is_good(path));
    found.map(PathBuf::from).with_context(|| {
        format!(
            "none of {} is a tmpfs with {} MiB free: other file systems would be measured as well",
            TMPFS_CANDIDATES.join(", "),
            SPARE_BYTES >> 20
        )
    })
}

fn is_roomy_tmpfs(stat: &StatFs) -> bool {
    let block_bytes = u64::try_from(stat.f_bsize).unwrap_or(0);
    let is_tmpfs = u64::try_from(stat.f_type).is_ok_and(|magic| magic == TMPFS_MAGIC);
    is_tmpfs && stat.f_bavail.saturating_mul(block_bytes) >= SPARE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn artifacts(directory: &TempDir) -> Artifacts {
        let source = directory.path().join("source");
        fs::create_dir_all(&source).unwrap();
        Artifacts::between(source, &directory.path().join("stage")).unwrap()
    }

    #[test]
    fn a_missing_artifact_is_named_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = artifacts(&directory).vmm().unwrap_err().to_string();
        assert!(error.contains("source/rotifer-vmm is missing: ./x makes it"), "{error}");
    }

    #[test]
    fn a_copy_is_the_file_and_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = artifacts(&directory);
        let content = [vec![7; COPY_BYTES], vec![0; COPY_BYTES], vec![1, 0, 0]].concat();
        fs::write(artifacts.source.join("Image"), &content).unwrap();
        let first = artifacts.kernel().unwrap();
        assert_eq!(fs::read(&first).unwrap(), content);
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&artifacts.kernel().unwrap()), inode(&first));
    }

    #[test]
    fn zeroes_take_no_memory() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = artifacts(&directory);
        let file = File::create(artifacts.source.join("debian.ext4")).unwrap();
        file.set_len(8 * COPY_BYTES as u64).unwrap();
        let copy = fs::metadata(artifacts.root_disk().unwrap()).unwrap();
        assert_eq!((copy.len(), copy.blocks()), (8 * COPY_BYTES as u64, 0));
    }

    #[test]
    fn a_changed_file_replaces_its_copy_and_leaves_its_namesakes() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = artifacts(&directory);
        let own = artifacts.source.join("rotifer-vmm");
        fs::write(&own, "old").unwrap();
        let old = artifacts.vmm().unwrap();
        let other = directory.path().join("rotifer-vmm");
        fs::write(&other, "other").unwrap();
        let peer = artifacts.other(&other).unwrap();
        fs::write(&own, "newer").unwrap();
        let new = artifacts.vmm().unwrap();
        assert_eq!(fs::read_to_string(new).unwrap(), "newer");
        assert_eq!(fs::read_to_string(peer).unwrap(), "other");
        assert!(!old.exists());
    }
}
