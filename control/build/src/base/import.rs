//! Images from an OCI layout or a `docker save`, each a directory or a tar.

use super::{Base, BaseError, Layer, Store, failed, normalize};
use crate::image::ImageConfig;
use crate::limits::{LAYERS_MAX, MANIFEST_MAX_BYTES};
use crate::plan::hex;
use rotifer_build_worker::protocol::Compression;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};

const INDEX: &str = "index.json";
const DOCKER_MANIFEST: &str = "manifest.json";
/// An index names indexes at most this deep.
const INDEX_DEPTH_MAX: usize = 4;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct ConfigFile {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

fn invalid(reason: impl Into<String>) -> BaseError {
    BaseError::Invalid(reason.into())
}

/// Adds the image at `path` under a name.
///
/// # Errors
/// It is not an image for linux/arm64, it is damaged, or the store cannot take it.
pub fn import(store: &Store, name: &str, path: &Path) -> Result<Base, BaseError> {
    let files = Files { path };
    let (config, layers) = if files.exists(INDEX)? {
        import_oci(store, &files)?
    } else if files.exists(DOCKER_MANIFEST)? {
        import_docker(store, &files)?
    } else {
        return Err(invalid(format!(
            "{} is neither an OCI layout ({INDEX}) nor a docker save ({DOCKER_MANIFEST})",
            path.display()
        )));
    };
    let base = Base { name: normalize(name), config, layers };
    store.put(&base)?;
    Ok(base)
}

fn import_oci(store: &Store, files: &Files) -> Result<(ImageConfig, Vec<Layer>), BaseError> {
    let mut index: Index = files.json(INDEX, None)?;
    for _ in 0..INDEX_DEPTH_MAX {
        let descriptor = choose(&index)?;
        let blob = blob_name(&descriptor.digest)?;
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("list") {
            index = files.json(&blob, Some(&descriptor.digest))?;
            continue;
        }
        let manifest: Manifest = files.json(&blob, Some(&descriptor.digest))?;
        let digest = &manifest.config.digest;
        let config: ConfigFile = files.json(&blob_name(digest)?, Some(digest))?;
        check_config(&config, manifest.layers.len())?;
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let compression = compression_of(&layer.media_type)?;
            let mut content = files.open(&blob_name(&layer.digest)?)?;
            let digest = store.put_layer(&mut content, Some(&layer.digest))?;
            layers.push(Layer { digest, compression });
        }
        return Ok((config.config.unwrap_or_default(), layers));
    }
    Err(invalid(format!("the indexes are more than {INDEX_DEPTH_MAX} deep")))
}

/// The image for this platform, or the only one if it does not say for which it is.
fn choose(index: &Index) -> Result<Descriptor, BaseError> {
    let is_ours = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_some_and(|it| it.architecture == "arm64" && it.os == "linux")
    };
    if let Some(found) = index.manifests.iter().find(is_ours) {
        return Ok(found.clone());
    }
    match &index.manifests[..] {
        [only] if only.platform.is_none() => Ok(only.clone()),
        _ => Err(invalid("there is no image for linux/arm64 in it")),
    }
}

fn compression_of(media_type: &str) -> Result<Compression, BaseError> {
    if media_type.ends_with("tar+gzip") || media_type.ends_with("tar.gzip") {
        Ok(Compression::Gzip)
    } else if media_type.ends_with(".tar") {
        Ok(Compression::None)
    } else {
        Err(invalid(format!("layers of the kind {media_type} are not supported")))
    }
}

fn import_docker(store: &Store, files: &Files) -> Result<(ImageConfig, Vec<Layer>), BaseError> {
    let manifests: Vec<DockerManifest> = files.json(DOCKER_MANIFEST, None)?;
    let [manifest] = &manifests[..] else {
        return Err(invalid(format!("it holds {} images; save one", manifests.len())));
    };
    let config: ConfigFile = files.json(&manifest.config, None)?;
    check_config(&config, manifest.layers.len())?;
    let mut layers = Vec::new();
    for (name, expected) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        let mut content = files.open(name)?;
        let digest = store.put_layer(&mut content, Some(expected))?;
        layers.push(Layer { digest, compression: Compression::None });
    }
    Ok((config.config.unwrap_or_default(), layers))
}

fn check_config(config: &ConfigFile, layer_count: usize) -> Result<(), BaseError> {
    if config.architecture != "arm64" || config.os != "linux" {
        let (os, architecture) = (&config.os, &config.architecture);
        return Err(invalid(format!("the image is for {os}/{architecture}, not linux/arm64")));
    }
    if layer_count > LAYERS_MAX || config.rootfs.diff_ids.len() != layer_count {
        return Err(invalid(format!(
            "the image has {layer_count} layers and names {}; at most {LAYERS_MAX} are allowed",
            config.rootfs.diff_ids.len()
        )));
    }
    Ok(())
}

/// Where a layout has a blob; digests come from outside and become paths only in this shape.
fn blob_name(digest: &str) -> Result<String, BaseError> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(format!("blobs/sha256/{hex}"))
        }
        _ => Err(invalid(format!("{digest:?} is not a digest that is supported"))),
    }
}

/// The files of a layout: of a directory, or of a tar, which is read anew for each of them.
struct Files<'a> {
    path: &'a Path,
}

impl Files<'_> {
    fn exists(&self, name: &str) -> Result<bool, BaseError> {
        if self.path.is_dir() {
            return Ok(self.path.join(name).exists());
        }
        Ok(self.find(name)?.is_some())
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read>, BaseError> {
        let is_inside =
            Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside {
            return Err(invalid(format!("the name {name:?} leads out of the image")));
        }
        if self.path.is_dir() {
            let path = self.path.join(name);
            return Ok(Box::new(File::open(&path).map_err(failed("open", &path))?));
        }
        let found = self.find(name)?.ok_or_else(|| invalid(format!("it has no {name}")))?;
        Ok(Box::new(found))
    }

    /// The place of a file in a tar.
    fn find(&self, name: &str) -> Result<Option<std::io::Take<File>>, BaseError> {
        use std::io::{Seek, SeekFrom};
        let file = File::open(self.path).map_err(failed("open", self.path))?;
        let mut archive = tar::Archive::new(BufReader::new(file));
        for entry in archive.entries_with_seek().map_err(failed("read", self.path))? {
            let entry = entry.map_err(failed("read", self.path))?;
            let path = entry.path().map_err(failed("read", self.path))?;
            let path: PathBuf = path.components().filter(|it| *it != Component::CurDir).collect();
            if path == Path::new(name) && entry.header().entry_type().is_file() {
                let mut file = File::open(self.path).map_err(failed("open", self.path))?;
                file.seek(SeekFrom::Start(entry.raw_file_position()))
                    .map_err(failed("read", self.path))?;
                return Ok(Some(file.take(entry.size())));
            }
        }
        Ok(None)
    }

    fn json<T: DeserializeOwned>(&self, name: &str, digest: Option<&str>) -> Result<T, BaseError> {
        let path = self.path.join(name);
        let mut bytes = Vec::new();
        let mut content = self.open(name)?.take(MANIFEST_MAX_BYTES + 1);
        content.read_to_end(&mut bytes).map_err(failed("read", &path))?;
        if bytes.len() as u64 > MANIFEST_MAX_BYTES {
            return Err(invalid(format!("{name} has more than {MANIFEST_MAX_BYTES} bytes")));
        }
        let found = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        if let Some(digest) = digest.filter(|digest| *digest != found) {
            return Err(invalid(format!("{name} is {found} and should be {digest}")));
        }
        serde_json::from_slice(&bytes).map_err(|source| BaseError::Parse { path, source })
    }
}
