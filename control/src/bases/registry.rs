//! Base images from a registry (OCI distribution specification): fetched into a layout, for the builder's store
//! to take it in from there as it does any other.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest, OciManifest,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{ParseError, Reference};
use rotifer_build::base::{Base, BaseError, Store, import};
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use serde_json::json;

/// What begins the name of an image in a registry.
pub const SCHEME: &str = "docker://";
/// All of an image, as it is packed.
const IMAGE_BYTES_MAX: u64 = 32 << 30;
/// Indexes that name one another.
const INDEX_DEPTH_MAX: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a registry may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
const WANTED: [&str; 4] = [
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];

/// Why an image does not come out of its registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(
        "{text:?} is no name of an image in a registry, like {SCHEME}registry.example/debian:12"
    )]
    Name { text: String, source: ParseError },
    #[error("cannot fetch {what} of {image}")]
    Fetch { what: String, image: String, source: Box<OciDistributionError> },
    #[error("{image} is not what is wanted: {reason}")]
    Image { image: String, reason: String },
    #[error("cannot {attempt} {path:?}")]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the registries' passwords in {path:?} cannot be read")]
    Passwords { path: PathBuf, source: serde_json::Error },
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Base(#[from] BaseError),
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.to_path_buf();
    move |source| RegistryError::File { attempt, path, source }
}

/// Adds the image of a reference under a name. Passwords are those that `docker login` has kept.
pub fn add(store: &Store, name: &str, reference: &str) -> Result<Base, RegistryError> {
    let image: Reference = reference
        .parse()
        .map_err(|source| RegistryError::Name { text: reference.into(), source })?;
    // Whoever set another one before us has set it for all.
    let _is_set = rustls::crypto::ring::default_provider().install_default();
    let (_one_at_a_time, layout) = begin(store)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(RegistryError::Runtime)?;
    let pulled = Pull::new(image, &layout).and_then(|pull| runtime.block_on(pull.run()));
    let added = pulled.and_then(|()| Ok(import::import(store, name, &layout)?));
    fs::remove_dir_all(&layout).map_err(failed("remove", &layout))?;
    added
}

/// An empty layout, which is ours for as long as the file is kept. What somebody who was killed has left is removed.
fn begin(store: &Store) -> Result<(File, PathBuf), RegistryError> {
    let lock = store.directory().join("pulling.lock");
    let file = File::create(&lock).map_err(failed("make", &lock))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|errno| failed("lock", &lock)(errno.into()))?;
    let layout = store.directory().join("pulling");
    match fs::remove_dir_all(&layout) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &layout)(error));
        }
        _ => {}
    }
    fs::create_dir(&layout).map_err(failed("make", &layout))?;
    Ok((file, layout))
}

/// One image on its way into a layout.
struct Pull<'a> {
    client: Client,
    auth: RegistryAuth,
    image: Reference,
    layout: &'a Path,
}

impl<'a> Pull<'a> {
    fn new(image: Reference, layout: &'a Path) -> Result<Self, RegistryError> {
        let registry = image.resolve_registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        // As Docker has it: what is on this host needs no certificate.
        let is_local = host == "localhost" || host.starts_with("127.");
        let client = Client::new(ClientConfig {
            protocol: if is_local { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            ..ClientConfig::default()
        });
        let auth = passwords(registry)?;
        Ok(Self { client, auth, image, layout })
    }

    async fn run(&self) -> Result<(), RegistryError> {
        let blobs = self.layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed("make", &blobs))?;
        let (bytes, digest, manifest) = self.manifest().await?;
        let path = self.path(&digest)?;
        fs::write(&path, &bytes).map_err(failed("write", &path))?;
        let media_type = manifest.media_type.as_deref().unwrap_or(OCI_IMAGE_MEDIA_TYPE);
        let mut left = IMAGE_BYTES_MAX;
        let blobs: Vec<&OciDescriptor> =
            [&manifest.config].into_iter().chain(&manifest.layers).collect();
        for (number, blob) in blobs.iter().enumerate() {
            let size = u64::try_from(blob.size).unwrap_or(u64::MAX);
            left = left
                .checked_sub(size)
                .ok_or_else(|| self.refuse(format!("it has more than {IMAGE_BYTES_MAX} bytes")))?;
            eprintln!("{} of {}: {} ({} KiB)", number + 1, blobs.len(), blob.digest, size >> 10);
            self.blob(blob, size).await?;
        }
        let index = json!({ "manifests": [{ "mediaType": media_type, "digest": digest }] });
        let path = self.layout.join("index.json");
        fs::write(&path, index.to_string()).map_err(failed("write", &path))
    }

    /// The manifest for linux/arm64: its bytes, its digest, and what it says.
    async fn manifest(&self) -> Result<(bytes::Bytes, String, OciImageManifest), RegistryError> {
        let mut image = self.image.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let pulled = self.client.pull_manifest_raw(&image, &self.auth, &WANTED).await;
            let (bytes, digest) = pulled.map_err(|error| self.failed("the manifest", error))?;
            let manifest = serde_json::from_slice(&bytes)
                .map_err(|error| self.refuse(format!("its manifest is not understood: {error}")))?;
            match manifest {
                OciManifest::Image(manifest) => return Ok((bytes, digest, manifest)),
                OciManifest::ImageIndex(index) => {
                    let ours = index.manifests.iter().find(|entry| {
                        entry.platform.as_ref().is_some_and(|platform| {
                            platform.os.to_string() == "linux"
                                && platform.architecture.to_string() == "arm64"
                        })
                    });
                    let ours = ours
                        .ok_or_else(|| self.refuse("there is none for linux/arm64 of it".into()))?;
                    image = image.clone_with_digest(ours.digest.clone());
                }
            }
        }
        Err(self.refuse(format!("its indexes are more than {INDEX_DEPTH_MAX} deep")))
    }

    /// Fetches a blob, of which there is not more than was announced. The store looks at its digest.
    async fn blob(&self, blob: &OciDescriptor, size: u64) -> Result<(), RegistryError> {
        let path = self.path(&blob.digest)?;
        let mut file = File::create(&path).map_err(failed("make", &path))?;
        let pulled = self.client.pull_blob_stream(&self.image, blob).await;
        let mut pulled = pulled.map_err(|error| self.failed(&blob.digest, error))?;
        let mut left = size;
        while let Some(piece) = pulled.next().await {
            let piece = piece.map_err(|error| self.failed(&blob.digest, error.into()))?;
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            left = left.checked_sub(length).ok_or_else(|| {
                self.refuse(format!("{} is longer than its manifest says", blob.digest))
            })?;
            file.write_all(&piece).map_err(failed("write", &path))?;
        }
        Ok(())
    }

    /// Where the layout has a blob. Digests come from outside.
    fn path(&self, digest: &str) -> Result<PathBuf, RegistryError> {
        let hex = digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hex =
            hex.ok_or_else(|| self.refuse(format!("{digest:?} is no digest that is supported")))?;
        Ok(self.layout.join("blobs/sha256").join(hex))
    }

    fn refuse(&self, reason: String) -> RegistryError {
        RegistryError::Image { image: self.image.to_string(), reason }
    }

    fn failed(&self, what: &str, error: OciDistributionError) -> RegistryError {
        let (what, image) = (what.to_owned(), self.image.to_string());
        RegistryError::Fetch { what, image, source: Box::new(error) }
    }
}

/// What `docker login` keeps.
#[derive(Deserialize)]
struct Passwords {
    #[serde(default)]
    auths: BTreeMap<String, Password>,
}

#[derive(Deserialize)]
struct Password {
    /// `user:password` in base64.
    auth: Option<String>,
}

fn passwords(registry: &str) -> Result<RegistryAuth, RegistryError> {
    let directory = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let Some(path) = directory.or(home).map(|directory| directory.join("config.json")) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(error) => return Err(failed("read", &path)(error)),
    };
    let passwords: Passwords =
        serde_json::from_str(&text).map_err(|source| RegistryError::Passwords { path, source })?;
    let password = passwords.auths.get(registry).and_then(|password| password.auth.as_deref());
    let decoded = password.and_then(|text| STANDARD.decode(text).ok());
    let pair = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(match pair.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((user, password)) => RegistryAuth::Basic(user.into(), password.into()),
        None => RegistryAuth::Anonymous,
    })
}
