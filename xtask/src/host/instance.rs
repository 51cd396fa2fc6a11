//! One emulated host: a directory with its sockets, its disk and its console, and a QEMU.
//!
//! A host belongs to a variant and a checkout. It runs if its control socket answers: no process
//! number that may be stale is trusted.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use host_init::message::Share;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use super::{client::Connection, qemu, qmp::Qmp, variant::Variant};
use crate::{
    disk,
    paths::{Paths, digest},
    step::{run, say, step},
};

/// A boot takes 3 to 5 s where nothing else runs.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// The disk for state is sparse: it takes what is written to it.
const DISK_BYTES: u64 = 24 << 30;
/// Socket paths have to fit into 108 bytes.
const DIRECTORY_MAX_BYTES: usize = 90;

/// A host that may or may not run.
#[derive(Clone, Debug)]
pub struct Instance {
    /// What it emulates.
    pub variant: Variant,
    /// Its files.
    pub directory: PathBuf,
    paths: Paths,
}

impl Instance {
    /// The host of that variant for this checkout.
    pub fn new(paths: &Paths, variant: Variant) -> Result<Self> {
        let checkout = digest(paths.root.as_os_str().as_encoded_bytes());
        let name = format!("{}-{}", variant.name(), checkout.get(..8).unwrap_or_default());
        let directory = paths.cache.join("host").join(name);
        if directory.as_os_str().len() > DIRECTORY_MAX_BYTES {
            bail!(
                "the path {directory:?} is too long for sockets: set ROTIFER_CACHE to a shorter one"
            );
        }
        Ok(Self { variant, directory, paths: paths.clone() })
    }

    /// The directories of this machine that the host sees under the same paths.
    pub fn shares(&self) -> Vec<Share> {
        let share = |tag: &str, path: &Path| Share {
            tag: tag.to_owned(),
            path: path.to_string_lossy().into_owned(),
        };
        vec![share("checkout", &self.paths.root), share("cache", &self.paths.cache)]
    }

    /// Whether QEMU answers.
    pub fn is_running(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    /// QEMU's control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("qmp")
    }

    /// A port for one command, starting the host first if needed.
    pub fn connect(&self) -> Result<Connection> {
        if !self.is_running() {
            self.start()?;
        }
        Connection::open(&self.directory, &self.shares(), BOOT_TIMEOUT)
            .with_context(|| self.console_tail())
    }

    /// Starts the host unless it runs. Two starts at the same time are one.
    pub fn start(&self) -> Result<()> {
        fs::create_dir_all(&self.directory)
            .with_context(|| format!("cannot create {:?}", self.directory))?;
        let _lock = self.lock()?;
        if self.is_running() {
            return Ok(());
        }
        disk::require(&self.directory, disk::HOST_BYTES)?;
        self.make_disk()?;
        qemu::start(self, &self.paths).with_context(|| self.console_tail())
    }

    /// Ends the host: politely, then not. Says whether there was one.
    pub fn stop(&self) -> Result<bool> {
        if !self.directory.exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        if !self.is_running() {
            return Ok(false);
        }
        let polite = Connection::open(&self.directory, &[], STOP_TIMEOUT)
            .and_then(|connection| connection.power_off(STOP_TIMEOUT));
        if polite.is_err() || self.is_running() {
            self.kill();
        }
        Ok(true)
    }

    /// Ends QEMU without asking the machine inside it.
    pub fn kill(&self) {
        // QEMU ends while it answers, so an error says nothing.
        let _ended = Qmp::connect(&self.socket()).and_then(|mut qmp| qmp.ask("quit", json!({})));
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.is_running() {
            say(&format!("the {} host does not end: kill its QEMU by hand", self.variant.name()));
        }
    }

    /// The end of what the machine printed, for a person who wonders why it failed.
    pub fn console_tail(&self) -> String {
        let mut text = format!("the emulated {} host failed", self.variant.name());
        for name in ["console", "qemu.log"] {
            let path = self.directory.join(name);
            let bytes = fs::read(&path).unwrap_or_default();
            let content = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = content.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
            if !tail.is_empty() {
                text += &format!("; the end of {}:\n    {}\n", path.display(), tail.join("\n    "));
            }
        }
        text
    }

    fn lock(&self) -> Result<File> {
        let path = self.directory.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {path:?}"))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {path:?}"))?;
        Ok(file)
    }

    fn make_disk(&self) -> Result<()> {
        let path = self.directory.join("disk.ext4");
        if path.exists() {
            return Ok(());
        }
        let partial = path.with_extension("partial");
        let file = File::create(&partial).with_context(|| format!("cannot create {partial:?}"))?;
        file.set_len(DISK_BYTES).with_context(|| format!("cannot size {partial:?}"))?;
        let mut format = std::process::Command::new("/sbin/mke2fs");
        format.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=1", "-O", "^metadata_csum_seed"]);
        step("making the host's disk", || run(format.arg(&partial)))?;
        fs::rename(&partial, &path).with_context(|| format!("cannot name {path:?}"))
    }
}
