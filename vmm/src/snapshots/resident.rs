//! Which pages of guest RAM the host has: the others are zero, or still in the snapshot that the
//! machine comes from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rotifer_snapshot::PageSet;
use rotifer_snapshot::layout::{BLOCK_BYTES, PAGE_BYTES};

/// Bytes of one entry (Documentation/admin-guide/mm/pagemap.rst of Linux).
const ENTRY_BYTES: usize = 8;
/// The page is in RAM, or in swap.
const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;

/// The page table of this process, as the kernel tells of it.
pub struct Pagemap {
    file: File,
    host_page_bytes: usize,
    entries: Vec<u8>,
}

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn open() -> io::Result<Self> {
        let host_page_bytes = rustix::param::page_size();
        let entries = vec![0; BLOCK_BYTES / host_page_bytes.min(BLOCK_BYTES) * ENTRY_BYTES];
        Ok(Self { file: File::open("/proc/self/pagemap")?, host_page_bytes, entries })
    }

    /// The pages of the block of `bytes` bytes at `address` that are resident. They are counted
    /// in units of the snapshot, of which a page of the host may hold several.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn resident(&mut self, address: usize, bytes: usize) -> io::Result<PageSet> {
        let count = bytes.div_ceil(self.host_page_bytes);
        let entries = &mut self.entries[..count * ENTRY_BYTES];
        let first = address / self.host_page_bytes;
        self.file.read_exact_at(entries, (first * ENTRY_BYTES) as u64)?;
        let per_host_page = self.host_page_bytes / PAGE_BYTES;
        let mut pages = PageSet::EMPTY;
        for (index, entry) in entries.as_chunks::<ENTRY_BYTES>().0.iter().enumerate() {
            if u64::from_ne_bytes(*entry) & PRESENT_OR_SWAPPED != 0 {
                let first = index * per_host_page;
                (first..first + per_host_page).for_each(|page| pages.insert(page));
            }
        }
        Ok(pages)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn pages_are_resident_once_they_were_touched() {
        let host_page_bytes = rustix::param::page_size();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), BLOCK_BYTES)]).unwrap();
        let address = memory.get_host_address(GuestAddress(0)).unwrap() as usize;
        // A huge page would be resident as a whole.
        // SAFETY: the mapping lives, and the advice changes no content.
        unsafe {
            let advice = rustix::mm::Advice::LinuxNoHugepage;
            rustix::mm::madvise(address as *mut _, BLOCK_BYTES, advice).unwrap();
        }
        let mut pagemap = Pagemap::open().unwrap();
        assert!(pagemap.resident(address, BLOCK_BYTES).unwrap().is_empty());
        let touched = 7 * host_page_bytes;
        memory.write_obj(1_u8, GuestAddress(touched as u64)).unwrap();
        let resident = pagemap.resident(address, BLOCK_BYTES).unwrap();
        let first = touched / PAGE_BYTES;
        let expected: Vec<_> = (first..first + host_page_bytes / PAGE_BYTES).collect();
        assert_eq!(resident.pages().collect::<Vec<_>>(), expected);
    }

    use vm_memory::GuestMemoryBackend;
}
