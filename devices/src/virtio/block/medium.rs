//! What a drive's bytes are on: one image, or a shared one below an overlay.

use std::io;

use super::disk::{Disk, Extent};
use super::overlay::Overlay;
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
    pub(super) fn new(disk: Disk, options: &Options) -> Result<Self, BlockError> {
        match &options.overlay {
            None => Ok(Self::Image(disk)),
            Some(path) => {
                let overlay = Overlay::open(disk, path, options.cache)?;
                Ok(Self::Overlay(Box::new(overlay)))
            }
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
        &self,
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
