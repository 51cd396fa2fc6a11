//! A snapshot that is open: its manifest, and the packs that it needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::id::{PackId, SnapshotId};
use crate::image_reader::ImageReader;
use crate::manifest::{Header, Manifest, ManifestError};
use crate::name::Name;
use crate::pack::{Pack, PackError, PackSearch};
use crate::record::layer_bit;

/// A snapshot that is open. Copies share the manifest and the open files.
#[derive(Debug, Clone)]
pub struct Snapshot {
    id: SnapshotId,
    manifest: Arc<Manifest>,
    /// By slot; none where no block needs the pack.
    packs: Arc<[Option<Pack>]>,
    /// Where the manifest was read from, if that was a file.
    file: Option<Arc<File>>,
}

/// Why a snapshot cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The manifest cannot be read.
    #[error("read the manifest {path}")]
    Read {
        /// Its path.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manifest is none.
    #[error("open the snapshot {path}")]
    Manifest {
        /// Its path.
        path: String,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// A pack is none, or cannot be read.
    #[error("open the packs of snapshot {snapshot}")]
    Pack {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The cause.
        #[source]
        source: PackError,
    },
    /// A pack is nowhere.
    #[error("the pack {pack} of snapshot {snapshot} was not found where packs may be")]
    PackAbsent {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The pack.
        pack: PackId,
    },
    /// A pack was cut, or something was appended.
    #[error("the pack {label} has {found} bytes, and snapshot {snapshot} expects {expected}")]
    PackLength {
        /// The snapshot.
        snapshot: SnapshotId,
        /// The pack.
        label: String,
        /// What the manifest says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// There is no such image.
    #[error("the snapshot {snapshot} has no image called {name}")]
    NoImage {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What was asked for.
        name: String,
    },
}

impl Snapshot {
    /// Opens a snapshot: reads the manifest, and finds and opens the packs that it needs. Nothing
    /// of their content is read yet.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, packs: &PackSearch) -> Result<Self, OpenError> {
        let label = path.display().to_string();
        let failed = |source| OpenError::Read { path: label.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let bytes = read_manifest(&file).map_err(failed)?;
        let snapshot = Self::from_bytes(&label, &bytes, packs)?;
        Ok(Self { file: Some(Arc::new(file)), ..snapshot })
    }

    /// Opens a snapshot whose manifest was read from somewhere; `label` is what messages call it.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn from_bytes(label: &str, bytes: &[u8], packs: &PackSearch) -> Result<Self, OpenError> {
        let (manifest, id) = Manifest::decode(bytes)
            .map_err(|source| OpenError::Manifest { path: label.into(), source })?;
        Self::from_manifest(manifest, id, packs)
    }

    fn from_manifest(
        manifest: Manifest,
        snapshot: SnapshotId,
        search: &PackSearch,
    ) -> Result<Self, OpenError> {
        let entries = manifest.images.iter().flat_map(|index| &index.blocks);
        let needed = entries.fold(0, |mask, entry| mask | entry.needed_layers());
        let layers = &manifest.layers;
        let wanted: BTreeSet<_> = layers
            .iter()
            .filter(|(slot, _)| needed & layer_bit(*slot) != 0)
            .map(|(_, layer)| layer.pack)
            .collect();
        let found = search.find(&wanted).map_err(|source| OpenError::Pack { snapshot, source })?;
        let mut packs = vec![None; layers.slots.len()];
        for (place, layer) in packs.iter_mut().zip(&layers.slots) {
            let Some(layer) = layer.filter(|layer| wanted.contains(&layer.pack)) else { continue };
            let pack = found
                .get(&layer.pack)
                .ok_or(OpenError::PackAbsent { snapshot, pack: layer.pack })?;
            if pack.bytes != layer.pack_bytes {
                let (expected, found) = (layer.pack_bytes, pack.bytes);
                let label = pack.label.to_string();
                return Err(OpenError::PackLength { snapshot, label, expected, found });
            }
            *place = Some(pack.clone());
        }
        let manifest = Arc::new(manifest);
        Ok(Self { id: snapshot, manifest, packs: packs.into(), file: None })
    }

    /// Its name: the digest of the manifest.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A reader of one image, verifying what it reads.
    ///
    /// # Errors
    /// [`OpenError::NoImage`].
    pub fn image(&self, name: &Name) -> Result<ImageReader, OpenError> {
        let number = self.manifest.images.iter().position(|index| index.image.name == *name);
        let number = number.ok_or_else(|| self.no_image(name.as_str()))?;
        Ok(ImageReader::new(self.clone(), number))
    }

    /// A reader of the image of RAM.
    ///
    /// # Errors
    /// [`OpenError::NoImage`].
    pub fn memory(&self) -> Result<ImageReader, OpenError> {
        let memory = self.manifest.memory().ok_or_else(|| self.no_image("RAM"))?;
        self.image(&memory.image.name)
    }

    /// Whether it survives the processes that have it open: all of its packs' files have names.
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn is_durable(&self) -> io::Result<bool> {
        for pack in self.packs() {
            if !pack.is_durable()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The packs that it needs, each once.
    pub fn packs(&self) -> impl Iterator<Item = &Pack> {
        self.packs.iter().flatten()
    }

    /// The file of the manifest, which stays the one that was read when another takes its place.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_deref()
    }

    pub(crate) fn pack(&self, slot: u8) -> Option<&Pack> {
        self.packs.get(usize::from(slot)).and_then(Option::as_ref)
    }

    fn no_image(&self, name: &str) -> OpenError {
        OpenError::NoImage { snapshot: self.id, name: name.into() }
    }
}

/// Bytes that are read at once: all of a manifest but the largest ones'.
const PIECE_BYTES: u64 = 64 << 10;

/// Reads a manifest; more than a piece only after its header has said how long it is and been
/// believed. Where the file stands does not matter, which others may share.
pub(crate) fn read_manifest(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    read_until(file, &mut bytes, PIECE_BYTES.min(file.metadata()?.len()))?;
    if let Ok(header) = Header::decode(&bytes) {
        // One byte more than there should be is enough to see that there are too many.
        read_until(file, &mut bytes, header.total_bytes.saturating_add(1))?;
    }
    Ok(bytes)
}

/// Appends what follows in the file, until there are so many bytes or the file ends.
fn read_until(file: &File, bytes: &mut Vec<u8>, end: u64) -> io::Result<()> {
    while (bytes.len() as u64) < end {
        let begin = bytes.len();
        let count = end.saturating_sub(begin as u64).min(PIECE_BYTES) as usize;
        bytes.resize(begin.saturating_add(count), 0);
        let read = match file.read_at(bytes.get_mut(begin..).unwrap_or_default(), begin as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            read => {
                let read = read?;
                if read == 0 {
                    bytes.truncate(begin);
                    break;
                }
                read
            }
        };
        bytes.truncate(begin.saturating_add(read));
    }
    Ok(())
}
