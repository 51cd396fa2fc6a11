//! Guest RAM: one private anonymous mapping, filled in by the host as the guest touches it.

use std::io;

use rotifer_devices::GuestMemory;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::aarch64::layout;

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refuses the mapping.
    #[error("map {ram_bytes} bytes of guest RAM")]
    Map {
        /// Asked for.
        ram_bytes: u64,
        /// The cause.
        #[source]
        source: FromRangesError,
    },
    /// The host refuses the advice.
    #[error("advise huge pages for {ram_bytes} bytes of guest RAM")]
    Advise {
        /// Asked for.
        ram_bytes: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Maps `ram_bytes` of RAM at its place in the guest. Nothing of it is resident yet, and the host
/// need not have it all: a machine that never touches its memory costs none.
///
/// # Errors
/// See [`MemoryError`].
pub fn map(ram_bytes: u64) -> Result<GuestMemory, MemoryError> {
    let map_error = |source| MemoryError::Map { ram_bytes, source };
    let bytes =
        usize::try_from(ram_bytes).map_err(|_| map_error(FromRangesError::InvalidGuestRegion))?;
    let memory = GuestMemory::from_ranges(&[(layout::RAM_START, bytes)]).map_err(map_error)?;
    advise_huge_pages(&memory).map_err(|source| MemoryError::Advise { ram_bytes, source })?;
    Ok(memory)
}

/// The kernel's part of RAM in huge pages, whatever the host's default: a fault then fills 2 MiB,
/// and KVM maps as much at once, which halves the time of a boot. The system area, of which one
/// page is used, keeps small ones.
fn advise_huge_pages(memory: &GuestMemory) -> io::Result<()> {
    use rustix::mm::Advice::{LinuxHugepage, LinuxNoHugepage};
    for region in memory.iter() {
        let system_bytes = layout::SYSTEM_AREA_BYTES.min(region.len()) as usize;
        let parts = [
            (0, system_bytes, LinuxNoHugepage),
            (system_bytes, region.len() as usize - system_bytes, LinuxHugepage),
        ];
        for (offset, bytes, advice) in parts {
            let start = region.as_ptr().wrapping_add(offset).cast();
            // SAFETY: the range lies in the region's mapping, which outlives the call, and the
            // advice changes no content.
            match unsafe { rustix::mm::madvise(start, bytes, advice) } {
                // A host without huge pages says EINVAL; it works without.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn ram_begins_at_its_place_reads_zero_and_ends_where_it_should() {
        let memory = map(8 << 20).unwrap();
        let end = layout::RAM_START.0 + (8 << 20);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(end - 8)).unwrap(), 0);
        assert!(memory.read_obj::<u64>(GuestAddress(end)).is_err());
        assert!(memory.read_obj::<u64>(GuestAddress(layout::RAM_START.0 - 8)).is_err());
        memory.write_obj(42_u64, layout::RAM_START).unwrap();
        assert_eq!(memory.read_obj::<u64>(layout::RAM_START).unwrap(), 42);
    }

    #[test]
    fn the_largest_machine_costs_nothing_before_it_is_used() {
        let memory = map(32 << 30).unwrap();
        assert_eq!(memory.last_addr().0, 0x8_7fff_ffff);
    }
}
