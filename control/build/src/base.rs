//! Base images on this host: their layers by digest, their names, and what names stand for others.
//!
//! A build uses what is in its store. `rotifer base add` brings images in: from a registry ([`pull`], as builds do
//! themselves if they may), from an OCI layout or a `docker save` ([`import`]), or made from Debian packages
//! ([`debian`]).

pub mod debian;
pub mod import;
pub mod pull;
mod registry;

use crate::image::ImageConfig;
use crate::plan::hex;
use oci_client::Reference;
use rotifer_build_worker::protocol::Compression;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What begins the names of layers that are being written.
const PARTIAL: &str = "partial-";
const COPY_BYTES: usize = 256 * 1024;
/// What a name without one means.
const DEFAULT_TAG: &str = "latest";
/// Names of Docker's own registry, which are as good as none.
const DEFAULT_PREFIXES: [&str; 3] =
    ["docker.io/library/", "index.docker.io/library/", "docker.io/"];

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// `sha256:` and the digest of the file as it is.
    pub digest: String,
    /// How it is packed.
    pub compression: Compression,
}

/// A base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its name, with a tag.
    pub name: String,
    /// What it says of itself.
    pub config: ImageConfig,
    /// From the lowest to the highest.
    pub layers: Vec<Layer>,
}

impl Base {
    /// The digest of its content.
    #[must_use]
    pub fn digest(&self) -> String {
        // Our own types, which cannot fail.
        let bytes = serde_json::to_vec(&(&self.config, &self.layers)).unwrap_or_default();
        format!("sha256:{}", hex(&Sha256::digest(&bytes)))
    }
}

/// Why a base image cannot be used or added.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// A file of the store or of the image.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A description is no valid JSON.
    #[error("{} is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The image is not what it should be.
    #[error("{0}")]
    Invalid(String),
}

pub(crate) fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BaseError {
    let path = path.to_path_buf();
    move |source| BaseError::Io { attempt, path, source }
}

/// The base images of this host.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    aliases: BTreeMap<String, String>,
}

impl Store {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(directory: &Path, aliases: BTreeMap<String, String>) -> Result<Self, BaseError> {
        for name in ["bases", "layers"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).map_err(failed("make", &path))?;
        }
        Ok(Self { directory: directory.into(), aliases })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All images.
    ///
    /// # Errors
    /// A description cannot be read.
    pub fn list(&self) -> Result<Vec<Base>, BaseError> {
        let directory = self.directory.join("bases");
        let mut bases = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let path = entry.map_err(failed("list", &directory))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                bases.push(read(&path)?);
            }
        }
        bases.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(bases)
    }

    /// What all layers take.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn bytes(&self) -> Result<u64, BaseError> {
        let directory = self.directory.join("layers");
        let mut bytes = 0_u64;
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let metadata = entry.and_then(|entry| entry.metadata());
            bytes = bytes.saturating_add(metadata.map_err(failed("list", &directory))?.len());
        }
        Ok(bytes)
    }

    /// The image of a name, or of the name that it stands for.
    ///
    /// # Errors
    /// There is none; the message says what there is, and the remedies.
    pub fn get(&self, name: &str) -> Result<Base, BaseError> {
        let real = self.real_name(name);
        if let Some(base) = self.find(&real)? {
            return Ok(base);
        }
        let known: Vec<String> = self.list()?.into_iter().map(|base| base.name).collect();
        let known = match known.len() {
            0 => "is none".into(),
            _ => format!("are {}", known.join(", ")),
        };
        let stands_for = match real == normalize(name) {
            true => String::new(),
            false => format!(", for which {name} stands,"),
        };
        let registry = real.parse().map(|image: Reference| image.registry().to_owned());
        let registry = registry.unwrap_or_else(|_| "its registry".into());
        Err(BaseError::Invalid(format!(
            "the base image {real}{stands_for} is not on this host. Add it with `rotifer base add {real} \
             docker://{real}`, name one that stands for it under `aliases`, or list {registry} under `registries` \
             for builds to pull it. On this host {known}"
        )))
    }

    /// What a name stands for.
    pub(crate) fn real_name(&self, name: &str) -> String {
        let wanted = normalize(name);
        let alias = self.aliases.iter().find(|(alias, _)| normalize(alias) == wanted);
        alias.map_or(wanted, |(_, real)| normalize(real))
    }

    /// The image of that very name, if it is here.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Base>, BaseError> {
        let path = self.path(name);
        if path.exists() { read(&path).map(Some) } else { Ok(None) }
    }

    /// Adds an image whose layers are here, or replaces the one of that name.
    ///
    /// # Errors
    /// What the host says, or somebody has removed a layer.
    pub fn put(&self, base: &Base) -> Result<(), BaseError> {
        let _nobody_removes = self.begin_adding()?;
        let is_gone = |layer: &&Layer| !self.layer_path(&layer.digest).exists();
        if let Some(layer) = base.layers.iter().find(is_gone) {
            let text = format!("{} was removed from the store; try again", layer.digest);
            return Err(BaseError::Invalid(text));
        }
        let path = self.path(&normalize(&base.name));
        let partial = path.with_extension("partial");
        let text = serde_json::to_vec_pretty(base)
            .map_err(|source| BaseError::Parse { path: path.clone(), source })?;
        let mut file = File::create(&partial).map_err(failed("make", &partial))?;
        file.write_all(&text).map_err(failed("write", &partial))?;
        file.sync_all().map_err(failed("make durable", &partial))?;
        fs::rename(&partial, &path).map_err(failed("name", &path))
    }

    /// Removes an image, and the layers that no other one has. A build that reads them fails.
    ///
    /// # Errors
    /// There is no image of that very name.
    pub fn remove(&self, name: &str) -> Result<(), BaseError> {
        let _nobody_adds = self.begin_adding()?;
        let path = self.path(&normalize(name));
        if !path.exists() {
            let text = format!("there is no base image {} to remove", normalize(name));
            return Err(BaseError::Invalid(text));
        }
        let layers = read(&path)?.layers;
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        let others: Vec<Layer> = self.list()?.into_iter().flat_map(|base| base.layers).collect();
        for layer in layers {
            let path = self.layer_path(&layer.digest);
            let is_used = others.iter().any(|other| other.digest == layer.digest);
            // An image may name a layer twice.
            if !is_used && path.exists() {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        let digest = Sha256::digest(name.as_bytes());
        self.directory
            .join("bases")
            .join(format!("{}.json", hex(digest.get(..16).unwrap_or_default())))
    }

    fn layer_path(&self, digest: &str) -> PathBuf {
        self.directory.join("layers").join(digest.replace(':', "-"))
    }

    /// Waits until nobody else adds a layer, for as long as the result is kept, and removes what somebody
    /// who was killed has left.
    fn begin_adding(&self) -> Result<File, BaseError> {
        let path = self.directory.join("adding.lock");
        let lock = File::create(&path).map_err(failed("make", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| failed("lock", &path)(error.into()))?;
        let layers = self.directory.join("layers");
        for entry in fs::read_dir(&layers).map_err(failed("list", &layers))? {
            let path = entry.map_err(failed("list", &layers))?.path();
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with(PARTIAL) {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(lock)
    }

    /// Takes a layer in; `expected` is its digest, if that is known.
    ///
    /// # Errors
    /// It is another one.
    pub fn put_layer(
        &self,
        content: &mut dyn Read,
        expected: Option<&str>,
    ) -> Result<String, BaseError> {
        let _one_at_a_time = self.begin_adding()?;
        let partial = self.directory.join(format!("layers/{PARTIAL}layer"));
        let mut file = File::create(&partial).map_err(failed("make", &partial))?;
        let digest = copy_digest(content, &mut file).map_err(failed("write", &partial))?;
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            fs::remove_file(&partial).map_err(failed("remove", &partial))?;
            return Err(BaseError::Invalid(format!(
                "a layer is {digest} and should be {expected}"
            )));
        }
        file.sync_all().map_err(failed("make durable", &partial))?;
        let path = self.layer_path(&digest);
        fs::rename(&partial, &path).map_err(failed("name", &path))?;
        Ok(digest)
    }

    /// Writes a layer, and looks at its digest once more on the way.
    ///
    /// # Errors
    /// The file is damaged or gone, or `sink` does not take it.
    pub fn read_layer(&self, layer: &Layer, sink: &mut dyn Write) -> Result<(), BaseError> {
        let path = self.layer_path(&layer.digest);
        let mut file = File::open(&path).map_err(failed("open", &path))?;
        let digest = copy_digest(&mut file, sink).map_err(failed("read", &path))?;
        match digest == layer.digest {
            true => Ok(()),
            false => Err(BaseError::Invalid(format!(
                "the layer {} is damaged: its digest is {digest}; add its image again",
                path.display()
            ))),
        }
    }
}

fn read(path: &Path) -> Result<Base, BaseError> {
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    serde_json::from_str(&text).map_err(|source| BaseError::Parse { path: path.into(), source })
}

fn copy_digest(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(format!("sha256:{}", hex(&hasher.finalize())));
        }
        let piece = buffer.get(..count).unwrap_or_default();
        hasher.update(piece);
        to.write_all(piece)?;
    }
}

/// A name as everybody means it: `python` is `python:latest`, and so is `docker.io/library/python`. Registries
/// tell tags apart by their case, and do not have it in names.
#[must_use]
pub fn normalize(name: &str) -> String {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let tag = name.get(last..).and_then(|text| text.find([':', '@'])).map(|tag| last + tag);
    let (name, tag) = name.split_at(tag.unwrap_or(name.len()));
    let name = name.to_ascii_lowercase();
    let short = DEFAULT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let name = short.unwrap_or(&name);
    if tag.is_empty() { format!("{name}:{DEFAULT_TAG}") } else { format!("{name}{tag}") }
}

#[cfg(test)]
mod tests;
