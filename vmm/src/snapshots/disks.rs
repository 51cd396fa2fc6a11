//! Disks in snapshots: what a machine wrote to those that have an overlay. Other disks are the host's
//! business.
//!
//! ```text
//!  the disk:  overlay  over  image of the last snapshot  over  base
//!  Diff:      ^^^^^^^                                              the writer takes over the image
//!  Full:      ^^^^^^^        ^^^^^^^^^^^^^^^^^^^^^^^^^^
//! ```
//! Of the base a snapshot has only a fingerprint, in a section that is named as the image: as the
//! device is, by its kind and address, since a clone may call its drives otherwise.

use std::collections::BTreeMap;

use rotifer_devices::virtio::block::overlay::{Frozen, Layer, OverlayError, Pages};
use rotifer_snapshot::layout::{BLOCK_BYTES, PAGE_BYTES};
use rotifer_snapshot::{
    BlockIndex, DiskBase, Image, ImageKind, LoadError, MachineSection, Name, NameError, OpenError,
    PageSource, Snapshot, SourceError, WriteError, Writer,
};

use crate::table::{DiskLayers, DiskOverlay};

/// Why a disk cannot be saved or taken up again.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum DiskError {
    #[error("save drive {drive}")]
    Overlay { drive: String, source: OverlayError },
    #[error("read the {what} of drive {drive}")]
    Read { drive: String, what: &'static str, source: std::io::Error },
    #[error(
        "the base of drive {drive} is another one than when the machine was restored: somebody \
         changed it while the machine ran"
    )]
    BaseChanged { drive: String },
    #[error("make room for a copy of {bytes} bytes of drive {drive}")]
    Room { drive: String, bytes: usize, source: std::collections::TryReserveError },
    #[error("read the snapshot's image of drive {drive}")]
    Image { drive: String, source: Box<SourceError> },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the snapshot has an image of disk {image} and says nothing of what lies below it")]
    NoBase { image: Name },
    #[error("the snapshot says what lies below disk {image} and has no image of it")]
    NoImage { image: Name },
    #[error("what the snapshot says of the base of disk {image}")]
    Base { image: Name, source: LoadError },
}

/// What is saved of a disk while its machine stands still.
pub struct DiskImage<'a> {
    name: Name,
    drive: String,
    base: DiskBase,
    pages: BTreeMap<BlockIndex, Pages>,
    data: Data<'a>,
}

/// Where the content of pages is.
enum Data<'a> {
    /// In the overlay, which nobody changes meanwhile.
    InPlace(Frozen<'a>),
    /// Beside it, one page after the other.
    Copied(Vec<u8>),
}

impl<'a> DiskImage<'a> {
    /// That of a drained disk. `origin` is what the machine comes from, or its last snapshot.
    pub fn of(overlay: &'a DiskOverlay, origin: Option<&Snapshot>) -> Result<Self, DiskError> {
        let DiskOverlay { drive, device, file } = overlay;
        let named = || drive.clone();
        let name = Name::new(device)?;
        let base = file.base().map_err(|source| DiskError::Read {
            drive: named(),
            what: "base",
            source,
        })?;
        let known = origin.and_then(|origin| origin.manifest().disk_base(&name));
        if let Some(section) = known
            && decode(section)? != base
        {
            return Err(DiskError::BaseChanged { drive: named() });
        }
        let frozen =
            file.freeze().map_err(|source| DiskError::Overlay { drive: named(), source })?;
        let pages = frozen.blocks();
        Ok(Self { name, drive: named(), base, pages, data: Data::InPlace(frozen) })
    }

    /// The same with a copy of the content: the machine may go on.
    pub fn copied(self) -> Result<DiskImage<'static>, DiskError> {
        let bytes = self.data_bytes();
        let mut copy = Vec::new();
        let room = copy.try_reserve_exact(bytes);
        room.map_err(|source| DiskError::Room { drive: self.drive.clone(), bytes, source })?;
        self.for_each_block(|_, content| {
            copy.extend_from_slice(content);
            Ok(())
        })?;
        let Self { name, drive, base, pages, .. } = self;
        Ok(DiskImage { name, drive, base, pages, data: Data::Copied(copy) })
    }

    /// How large a copy of the content is.
    pub fn data_bytes(&self) -> usize {
        self.pages.values().map(|pages| pages.data.count() * PAGE_BYTES).sum()
    }

    /// What the snapshot calls it.
    pub fn image(&self) -> Image {
        Image { kind: ImageKind::Disk, name: self.name.clone(), bytes: self.base.bytes }
    }

    /// What the snapshot says of the base.
    pub fn section(&self) -> MachineSection {
        self.base.section(self.name.clone())
    }

    /// Gives the writer what the machine has in its overlay.
    pub fn write_own(&self, writer: &mut Writer) -> Result<(), DiskError> {
        self.for_each_block(|block, content| {
            let data = self.pages.get(&block).map(|pages| pages.data).unwrap_or_default();
            Ok(writer.put_block(&self.name, block, &data, content)?)
        })?;
        for (block, Pages { zero, .. }) in &self.pages {
            if !zero.is_empty() {
                writer.put_zero(&self.name, *block, zero)?;
            }
        }
        Ok(())
    }

    /// The blocks that have data, with its content.
    fn for_each_block(
        &self,
        mut visit: impl FnMut(BlockIndex, &[u8]) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut buffer = vec![0; BLOCK_BYTES];
        let mut copied = 0;
        for (block, Pages { data, .. }) in &self.pages {
            let bytes = data.count() * PAGE_BYTES;
            if bytes == 0 {
                continue;
            }
            match &self.data {
                Data::InPlace(frozen) => {
                    let (content, _) = buffer.split_at_mut(bytes);
                    frozen.read(*block, data, content).map_err(|source| DiskError::Read {
                        drive: self.drive.clone(),
                        what: "overlay",
                        source,
                    })?;
                    visit(*block, content)?;
                }
                Data::Copied(copy) => {
                    visit(*block, &copy[copied..copied + bytes])?;
                    copied += bytes;
                }
            }
        }
        Ok(())
    }

    /// Gives the writer what the image of `snapshot` has besides: if that is no parent from which the
    /// writer takes it over. The machine may go on meanwhile.
    pub fn write_inherited(
        &self,
        writer: &mut Writer,
        snapshot: &Snapshot,
    ) -> Result<(), DiskError> {
        let Some(index) = snapshot.manifest().image(&self.name) else { return Ok(()) };
        let failed =
            |error| DiskError::Image { drive: self.drive.clone(), source: Box::new(error) };
        let mut image = snapshot.image(&self.name)?;
        let mut content = vec![0; BLOCK_BYTES];
        for block in index.blocks.iter().map(|entry| entry.block) {
            let own = self.pages.get(&block).map(Pages::all).unwrap_or_default();
            let whole = content.as_mut_array().expect("it has the bytes of a block");
            let pages = image.load_block(block, whole).map_err(failed)?.minus(&own);
            // The writer wants them one after the other.
            for (place, page) in pages.pages().enumerate() {
                let page = page * PAGE_BYTES;
                content.copy_within(page..page + PAGE_BYTES, place * PAGE_BYTES);
            }
            let content = &content[..pages.count() * PAGE_BYTES];
            writer.put_block(&self.name, block, &pages, content)?;
        }
        Ok(())
    }
}

/// What the snapshot has of disks, for the machine that is restored from it, by their devices.
pub fn layers(snapshot: &Snapshot) -> Result<DiskLayers, DiskError> {
    let manifest = snapshot.manifest();
    let mut layers = DiskLayers::new();
    for Image { name, .. } in manifest.images.iter().map(|index| &index.image).filter(is_disk) {
        let section =
            manifest.disk_base(name).ok_or_else(|| DiskError::NoBase { image: name.clone() })?;
        let (snapshot_id, base) = (snapshot.id(), decode(section)?);
        let source = Box::new(snapshot.image(name)?);
        layers.insert(name.as_str().into(), Layer { snapshot: snapshot_id, base, source });
    }
    let mut bases = manifest.machine.iter().filter(|section| is_base(section));
    match bases.find(|section| !layers.contains_key(section.name.as_str())) {
        Some(section) => Err(DiskError::NoImage { image: section.name.clone() }),
        None => Ok(layers),
    }
}

/// Whether a section is about the base of a disk, and not the state of a part of the machine.
pub fn is_base(section: &MachineSection) -> bool {
    section.tag.kind == DiskBase::TAG.kind
}

fn is_disk(image: &&Image) -> bool {
    image.kind == ImageKind::Disk
}

fn decode(section: &MachineSection) -> Result<DiskBase, DiskError> {
    DiskBase::decode(section)
        .map_err(|source| DiskError::Base { image: section.name.clone(), source })
}

#[cfg(test)]
mod tests;
