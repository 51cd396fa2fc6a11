//! An image in a registry (OCI distribution specification), fetched into a layout.

use super::{BaseError, failed};
use crate::limits::{LAYERS_MAX, MANIFEST_MAX_BYTES};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest, OciManifest,
};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All of an image, as it is packed.
const IMAGE_BYTES_MAX: u64 = 32 << 30;
/// Indexes that name one another.
const INDEX_DEPTH_MAX: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a registry may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// How much of a layer comes between two lines about it.
const PROGRESS_BYTES: u64 = 64 << 20;
const WANTED: [&str; 4] = [
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
];
/// Where Docker's own registry is, and what `docker login` calls it.
const DOCKER_HOST: &str = "index.docker.io";
const DOCKER_LOGIN: &str = "https://index.docker.io/v1/";

/// Why an image does not come out of its registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot fetch {what} of {image}")]
    Fetch { what: String, image: String, source: Box<OciDistributionError> },
    #[error("{image} is not what is wanted: {reason}")]
    Image { image: String, reason: String },
    #[error("the registries' passwords in {path:?} cannot be read")]
    Passwords { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    File(#[from] BaseError),
}

/// Hears how a pull goes on, a line at a time.
pub type Say<'a> = &'a mut dyn FnMut(&str);

/// One image on its way into a layout.
pub(super) struct Transfer<'a> {
    client: Client,
    auth: RegistryAuth,
    image: &'a Reference,
    layout: &'a Path,
}

impl<'a> Transfer<'a> {
    /// Passwords are those that `docker login` has kept.
    pub(super) fn new(image: &'a Reference, layout: &'a Path) -> Result<Self, RegistryError> {
        let registry = image.resolve_registry();
        let config = ClientConfig {
            protocol: if is_local(registry) { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| fetch("anything", image, error))?;
        let auth = passwords(registry)?;
        Ok(Self { client, auth, image, layout })
    }

    /// Fetches all of it, if there is room for so many bytes. The layout has an index when it is whole.
    pub(super) async fn run(&self, room: u64, say: Say<'_>) -> Result<(), RegistryError> {
        let blobs = self.layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed("make", &blobs))?;
        let (bytes, digest, manifest) = self.manifest().await?;
        let path = self.path(&digest)?;
        fs::write(&path, &bytes).map_err(failed("write", &path))?;
        let layer_count = manifest.layers.len();
        if layer_count > LAYERS_MAX {
            return Err(self.refuse(format!("it has more than {LAYERS_MAX} layers")));
        }
        let mut left = IMAGE_BYTES_MAX.min(room);
        self.blob(&manifest.config, &mut left, "configuration", say).await?;
        for (index, layer) in manifest.layers.iter().enumerate() {
            let title = format!("layer {} of {layer_count}", index + 1);
            self.blob(layer, &mut left, &title, say).await?;
        }
        let media_type = manifest.media_type.as_deref().unwrap_or(OCI_IMAGE_MEDIA_TYPE);
        let index = json!({ "manifests": [{ "mediaType": media_type, "digest": digest }] });
        let path = self.layout.join("index.json");
        fs::write(&path, index.to_string()).map_err(failed("write", &path))?;
        Ok(())
    }

    /// The manifest for linux/arm64: its bytes, its digest, and what it says.
    async fn manifest(&self) -> Result<(bytes::Bytes, String, OciImageManifest), RegistryError> {
        let mut image = self.image.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            // Its digest is verified, if the reference has one.
            let pulled = self.client.pull_manifest_raw(&image, &self.auth, &WANTED).await;
            let (bytes, digest) = pulled.map_err(|error| self.failed("the manifest", error))?;
            if bytes.len() as u64 > MANIFEST_MAX_BYTES {
                let reason = format!("its manifest has more than {MANIFEST_MAX_BYTES} bytes");
                return Err(self.refuse(reason));
            }
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
                    // It becomes a part of an address.
                    self.path(&ours.digest)?;
                    image = image.clone_with_digest(ours.digest.clone());
                }
            }
        }
        Err(self.refuse(format!("its indexes are more than {INDEX_DEPTH_MAX} deep")))
    }

    /// Fetches a blob, of which there is not more than was announced, and no more than is left for the image. The
    /// store looks at its digest.
    async fn blob(
        &self,
        blob: &OciDescriptor,
        image_left: &mut u64,
        title: &str,
        say: Say<'_>,
    ) -> Result<(), RegistryError> {
        let size = u64::try_from(blob.size).unwrap_or(u64::MAX);
        *image_left = image_left.checked_sub(size).ok_or_else(|| {
            self.refuse(format!(
                "it has more than {IMAGE_BYTES_MAX} bytes, or than `base_bytes` leaves"
            ))
        })?;
        say(&format!("{title}: {} KiB", size >> 10));
        let path = self.path(&blob.digest)?;
        let mut file = File::create(&path).map_err(failed("make", &path))?;
        // By the digest alone: other addresses, which a manifest may name, are whoever made the image's choice.
        let pulled = self.client.pull_blob_stream(self.image, blob.digest.as_str()).await;
        let mut pulled = pulled.map_err(|error| self.failed(&blob.digest, error))?;
        let (mut left, mut silent) = (size, 0);
        while let Some(piece) = pulled.next().await {
            let piece = piece.map_err(|error| self.failed(&blob.digest, error.into()))?;
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            left = left.checked_sub(length).ok_or_else(|| {
                self.refuse(format!("{} is longer than its manifest says", blob.digest))
            })?;
            file.write_all(&piece).map_err(failed("write", &path))?;
            silent += length;
            if silent >= PROGRESS_BYTES {
                silent = 0;
                say(&format!("{title}: {} of {} KiB", (size - left) >> 10, size >> 10));
            }
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
        fetch(what, self.image, error)
    }
}

fn fetch(what: &str, image: &Reference, error: OciDistributionError) -> RegistryError {
    let (what, image) = (what.to_owned(), image.to_string());
    RegistryError::Fetch { what, image, source: Box::new(error) }
}

/// As Docker has it: what is on this host needs no certificate.
fn is_local(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
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
    let directory = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".docker"));
    let Some(path) = directory.or(home).map(|directory| directory.join("config.json")) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(error) => return Err(failed("read", &path)(error).into()),
    };
    let passwords: Passwords =
        serde_json::from_str(&text).map_err(|source| RegistryError::Passwords { path, source })?;
    let key = if registry == DOCKER_HOST { DOCKER_LOGIN } else { registry };
    let password = passwords.auths.get(key).and_then(|password| password.auth.as_deref());
    let decoded = password.and_then(|text| STANDARD.decode(text).ok());
    let pair = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(match pair.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((user, password)) => RegistryAuth::Basic(user.into(), password.into()),
        None => RegistryAuth::Anonymous,
    })
}
