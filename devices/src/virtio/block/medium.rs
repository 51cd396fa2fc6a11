//! What a drive's bytes are on: one image, or a shared one below an overlay.

use std::io;

use rotifer_snapshot::DiskBase;

use super::disk::{Disk, Extent};
use super::overlay::{Layer, Overlay, OverlayError, OverlayFile};
use super::{BlockError, Options};
use crate::GuestMemory;
use crate::virtio::Segment;

/// Whoever calls has checked every extent against the capacity.
#[derive(Debug)]
pub(super) enum Medium {
    Image(Disk),
    Overlay(Box<Overlay>),
}

impl Medium {
    /// `layer` is what a snapshot has of the disk, if it has it.
    pub(super) fn new(
        disk: Disk,
        options: &Options,
        layer: Option<Layer>,
    ) -> Result<Self, BlockError> {
        let overlay = match (&options.overlay, layer) {
            (None, None) => return Ok(Self::Image(disk)),
            (None, Some(Layer { snapshot, .. })) => {
                return Err(BlockError::NoOverlay { id: options.id.clone(), snapshot });
            }
            (Some(path), None) => Overlay::open(disk, path, options.cache)?,
            (Some(path), Some(layer)) => {
                check_base(&disk, options, &layer)?;
                Overlay::above(layer, disk, path, options.cache)?
            }
        };
        Ok(Self::Overlay(Box::new(overlay)))
    }

    /// The file of its overlay, if it has one.
    pub(super) fn overlay_file(&self) -> Result<Option<OverlayFile>, OverlayError> {
        match self {
            Self::Image(_) => Ok(None),
            Self::Overlay(overlay) => overlay.file().map(Some),
        }
    }

    /// The file with all of it, if there is one.
    pub(super) fn image(&self) -> Option<&Disk> {
        match self {
            Self::Image(disk) => Some(disk),
            Self::Overlay(_) => None,
        }
    }

    pub(super) fn capacity_sectors(&self) -> u64 {
        match self {
            Self::Image(disk) => disk.capacity_sectors(),
            Self::Overlay(overlay) => overlay.base().capacity_sectors(),
        }
    }

    pub(super) fn read(
        &mut self,
        memory: &GuestMemory,
        segments: &[Segment],
        skip: u64,
        extent: Extent,
    ) -> io::Result<()> {
        match self {
            Self::Image(disk) => disk.read(memory, segments, skip, extent),
            Self::Overlay(overlay) => overlay.read(memory, segments, skip, extent),
        }
    }

    pub(super) fn write(
        &mut self,
        memory: &GuestMemory,
        segments: &[Segment],
        skip: u64,
        extent: Extent,
    ) -> io::Result<()> {
        match self {
            Self::Image(disk) => disk.write(memory, segments, skip, extent),
            Self::Overlay(overlay) => overlay.write(memory, segments, skip, extent),
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Image(disk) => disk.flush(),
            Self::Overlay(overlay) => overlay.flush(),
        }
    }

    pub(super) fn discard(&mut self, extent: Extent) -> io::Result<()> {
        match self {
            Self::Image(disk) => disk.discard(extent),
            Self::Overlay(overlay) => overlay.discard(extent),
        }
    }

    pub(super) fn write_zeroes(&mut self, extent: Extent, unmap: bool) -> io::Result<()> {
        match self {
            Self::Image(disk) => disk.write_zeroes(extent, unmap),
            Self::Overlay(overlay) => overlay.write_zeroes(extent),
        }
    }

    /// Sees to it that whoever looks at the files while the machine is paused finds everything.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        match self {
            Self::Image(_) => Ok(()),
            Self::Overlay(overlay) => overlay.settle(),
        }
    }

    pub(super) fn report(&mut self, operation: &'static str, sector: u64, error: &io::Error) {
        match self {
            Self::Image(disk) => disk.report(operation, sector, error),
            Self::Overlay(overlay) => overlay.base_mut().report(operation, sector, error),
        }
    }
}

/// The base must be what it was when the machine was saved.
fn check_base(disk: &Disk, options: &Options, layer: &Layer) -> Result<(), BlockError> {
    let Layer { snapshot, base, source } = layer;
    let (path, bytes) = (options.path.clone(), disk.capacity_bytes());
    let is_known = base.bytes == bytes && source.image_bytes() == bytes;
    if is_known {
        let found = DiskBase::of(disk.file(), bytes).map_err(|source| BlockError::Inspect {
            path: path.clone(),
            attempt: "read",
            source,
        })?;
        if found == *base {
            return Ok(());
        }
    }
    let (id, snapshot_bytes) = (options.id.clone(), base.bytes);
    Err(BlockError::OtherBase { path, id, snapshot: *snapshot, snapshot_bytes, bytes })
}
