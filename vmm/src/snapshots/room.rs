//! Room for a copy of a machine's own pages, made while the machine still runs.

use std::fs;
use std::io;

use rotifer_devices::GuestMemory;
use rotifer_snapshot::Staging;

use super::SnapshotError;
use super::take::own_bytes;
use crate::table::DiskOverlay;

/// What a copy leaves of the memory that the host has available.
const LEFT_BYTES: u64 = 64 << 20;
/// A machine that runs writes more pages until it is paused: room for this part more of them.
const GROWTH: u64 = 16;

/// Room for a copy.
pub struct Room(Staging);

impl Room {
    /// Room for all of RAM that is the machine's own by now, and some more. `copies` are made of it and
    /// of the overlays at the same time, this one included: so much memory the host has to have.
    ///
    /// # Errors
    /// [`SnapshotError::NoRoom`] if it does not, and [`SnapshotError::Room`].
    pub fn for_copies(
        memory: &GuestMemory,
        overlays: &[DiskOverlay],
        copies: u64,
    ) -> Result<Self, SnapshotError> {
        let own = own_bytes(memory)?;
        let bytes = own + own / GROWTH;
        let on_disks = overlays.iter().map(|overlay| overlay.file.stored_bytes());
        let on_disks = on_disks.sum::<io::Result<u64>>().map_err(SnapshotError::Available)?;
        let available = available_bytes().map_err(SnapshotError::Available)?;
        check((bytes + on_disks) * copies, available)?;
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let staging = Staging::with_room(bytes);
        Ok(Self(staging.map_err(|source| SnapshotError::Room { bytes, source })?))
    }

    pub(super) fn into_staging(self) -> Staging {
        self.0
    }
}

/// Whether the host can give so many bytes of what it has available.
fn check(wanted: u64, available: u64) -> Result<(), SnapshotError> {
    if wanted + LEFT_BYTES <= available {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(SnapshotError::NoRoom {
        wanted_mib: mib(wanted),
        left_mib: mib(LEFT_BYTES),
        available_mib: available >> 20,
    })
}

/// What the host says it can give without swapping.
fn available_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    parse(&text).ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

fn parse(text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_says_what_it_can_give() {
        assert_eq!(parse("MemTotal: 9 kB\nMemAvailable:    7 kB\n"), Some(7 << 10));
        assert_eq!(parse("MemTotal: 9 kB\n"), None);
        assert!(available_bytes().unwrap() > 0);
    }

    #[test]
    fn a_copy_that_would_leave_the_host_too_little_is_refused_with_the_remedy() {
        check(1 << 20, LEFT_BYTES + (1 << 20)).unwrap();
        let error = check((1 << 20) + 1, LEFT_BYTES + (1 << 20)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "copy 2 MiB of guest memory: the host has 65 MiB available, of which 64 have to be \
             left; pause the machine and write a snapshot without \"live\", which copies nothing"
        );
    }
}
