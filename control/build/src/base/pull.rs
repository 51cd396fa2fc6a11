//! Base images on their way from registries into the store, one at a time.

use super::registry::{RegistryError, Transfer};
use super::{Base, BaseError, Store, failed, import};
use crate::builder::{Event, Log};
use crate::cancel::Cancel;
use crate::plan::{BaseInfo, Bases};
use oci_client::{ParseError, Reference};
use rotifer_agent::api::error::chain;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

pub use super::registry::Say;

/// What begins the name of an image in a registry.
const SCHEME: &str = "docker://";
/// Where an image is until it is whole.
const LAYOUT: &str = "pulling";
const LOCK: &str = "pulling.lock";
/// How often a pull that waits for another one looks whether that is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// What a registry's own words may add to a build's failure.
const REASON_CHARS_MAX: usize = 2000;

/// Why an image is not pulled.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum PullError {
    #[error(
        "{text:?} is no name of an image in a registry, like {SCHEME}registry.example/debian:12"
    )]
    Name { text: String, source: ParseError },
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("the build ended before {image} was there")]
    Ended { image: String },
    #[error(
        "the base images of this host take {used} bytes, and builds pull no more beyond {bytes_max}: remove some with \
         `rotifer base rm NAME`, or raise `base_bytes`"
    )]
    Full { used: u64, bytes_max: u64 },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Base(#[from] BaseError),
}

/// Adds an image under a name, in place of the one that has it: from a registry (`docker://` and a reference), or
/// what [`import::import`] takes.
///
/// # Errors
/// It is not to be had, or not an image for linux/arm64.
pub fn add(store: &Store, name: &str, from: &Path, say: Say<'_>) -> Result<Base, PullError> {
    let Some(text) = from.to_str().and_then(|text| text.strip_prefix(SCHEME)) else {
        return Ok(import::import(store, name, from)?);
    };
    let image = text.parse().map_err(|source| PullError::Name { text: text.into(), source })?;
    Pull { store, name, image, is_renewal: true, bytes_max: u64::MAX }.run(&Cancel::default(), say)
}

/// Whether a text names a registry, as the names of its images do.
#[must_use]
pub fn is_registry(text: &str) -> bool {
    let image = format!("{text}/image").parse();
    image.is_ok_and(|image: Reference| image.registry() == text.to_ascii_lowercase())
}

/// The base images of a build: what is in the store, and what the build may pull into it.
pub(crate) struct Supply<'a> {
    pub(crate) store: &'a Store,
    /// Whose images may be pulled.
    pub(crate) registries: &'a [String],
    /// What all images may take, for another one to be pulled.
    pub(crate) bytes_max: u64,
    pub(crate) cancel: &'a Cancel,
    pub(crate) log: RefCell<Log<'a>>,
}

impl Bases for Supply<'_> {
    fn look_up(&self, name: &str) -> Result<BaseInfo, String> {
        let base = self.get(name).map_err(|error| {
            let text = chain(&error);
            text.chars().take(REASON_CHARS_MAX).collect::<String>()
        })?;
        Ok(BaseInfo { digest: base.digest(), config: base.config })
    }
}

impl Supply<'_> {
    fn get(&self, name: &str) -> Result<Base, PullError> {
        let real = self.store.real_name(name);
        let is_listed = |image: &Reference| self.registries.iter().any(|it| it == image.registry());
        match real.parse().ok().filter(is_listed) {
            Some(image) if self.store.find(&real)?.is_none() => {
                let (store, bytes_max) = (self.store, self.bytes_max);
                let pull = Pull { store, name: &real, image, is_renewal: false, bytes_max };
                let mut log = self.log.borrow_mut();
                pull.run(self.cancel, &mut |line| log(Event::Line(line)))
            }
            _ => Ok(self.store.get(name)?),
        }
    }
}

/// One image on its way into the store.
struct Pull<'a> {
    store: &'a Store,
    /// What it is called there, which need not be what its registry calls it.
    name: &'a str,
    image: Reference,
    /// Whether it takes the place of one that is there.
    is_renewal: bool,
    /// What all images may take together.
    bytes_max: u64,
}

impl Pull<'_> {
    fn run(&self, cancel: &Cancel, say: Say<'_>) -> Result<Base, PullError> {
        // Whoever set another one before us has set it for all.
        let _is_set = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(PullError::Runtime)?;
        let pulled = runtime.block_on(async {
            tokio::select! {
                () = cancel.ended() => Err(PullError::Ended { image: self.image.to_string() }),
                pulled = self.pull(say) => pulled,
            }
        });
        // A name that is being looked up would be waited for.
        runtime.shutdown_background();
        pulled
    }

    /// Whoever drops it before its end gives it up.
    async fn pull(&self, say: Say<'_>) -> Result<Base, PullError> {
        let _one_at_a_time = self.lock(say).await?;
        if !self.is_renewal
            && let Some(base) = self.store.find(self.name)?
        {
            return Ok(base);
        }
        let (used, bytes_max) = (self.store.bytes()?, self.bytes_max);
        let room = bytes_max.checked_sub(used).filter(|room| *room > 0);
        let room = room.ok_or(PullError::Full { used, bytes_max })?;
        let layout = self.layout()?;
        say(&format!("pulling {}", self.image));
        Transfer::new(&self.image, layout.path())?.run(room, say).await?;
        Ok(import::import(self.store, self.name, layout.path())?)
    }

    /// Waits until nobody else pulls, for as long as the result is kept.
    async fn lock(&self, say: Say<'_>) -> Result<File, BaseError> {
        let path = self.store.directory().join(LOCK);
        let lock = File::create(&path).map_err(failed("make", &path))?;
        let mut has_said = false;
        while let Err(errno) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if errno != Errno::WOULDBLOCK {
                return Err(failed("lock", &path)(errno.into()));
            }
            if !has_said {
                say(&format!("{} waits until another image is pulled", self.image));
                has_said = true;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(lock)
    }

    /// An empty directory, without what somebody who was killed has left. It is gone with the result.
    fn layout(&self) -> Result<TempDir, BaseError> {
        let (directory, path) = (self.store.directory(), self.store.directory().join(LAYOUT));
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            _ => {}
        }
        let made = tempfile::Builder::new().prefix(LAYOUT).rand_bytes(0).tempdir_in(directory);
        made.map_err(failed("make", &path))
    }
}
