//! Which pages of guest RAM are this machine's own: the others are zero, or still those of the
//! snapshot that it comes from, where it may share them with other machines.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rotifer_snapshot::PageSet;
use rotifer_snapshot::layout::{BLOCK_BYTES, PAGE_BYTES};

/// Bytes of one entry (Documentation/admin-guide/mm/pagemap.rst of Linux).
const ENTRY_BYTES: usize = 8;
/// The page is in RAM, or in swap.
const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;
/// The page is a file's: in a private mapping, one that nobody wrote, neither the guest nor KVM nor
/// a device.
const OF_FILE: u64 = 1 << 61;

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

    /// The pages of the block of `bytes` bytes at `address` that are the machine's own. They are counted
    /// in units of the snapshot, of which a page of the host may hold several.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn own(&mut self, address: usize, bytes: usize) -> io::Result<PageSet> {
        let count = bytes.div_ceil(self.host_page_bytes);
        let entries = &mut self.entries[..count * ENTRY_BYTES];
        let first = address / self.host_page_bytes;
        self.file.read_exact_at(entries, (first * ENTRY_BYTES) as u64)?;
        let per_host_page = self.host_page_bytes / PAGE_BYTES;
        let mut pages = PageSet::EMPTY;
        for (index, entry) in entries.as_chunks::<ENTRY_BYTES>().0.iter().enumerate() {
            let entry = u64::from_ne_bytes(*entry);
            if entry & PRESENT_OR_SWAPPED != 0 && entry & OF_FILE == 0 {
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
        assert!(pagemap.own(address, BLOCK_BYTES).unwrap().is_empty());
        let touched = 7 * host_page_bytes;
        memory.write_obj(1_u8, GuestAddress(touched as u64)).unwrap();
        let resident = pagemap.own(address, BLOCK_BYTES).unwrap();
        let first = touched / PAGE_BYTES;
        let expected: Vec<_> = (first..first + host_page_bytes / PAGE_BYTES).collect();
        assert_eq!(resident.pages().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn pages_of_a_private_mapping_are_own_once_they_were_written() {
        let host_page_bytes = rustix::param::page_size();
        let file = tempfile::tempfile().unwrap();
        file.set_len(BLOCK_BYTES as u64).unwrap();
        let protection = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        let flags = rustix::mm::MapFlags::PRIVATE;
        // SAFETY: a new mapping anywhere, of which nobody else knows.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), BLOCK_BYTES, protection, flags, &file, 0)
                .unwrap()
        };
        // SAFETY: the mapping has so many bytes, and lives as long as the process.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), BLOCK_BYTES) };
        assert!(bytes.iter().all(|byte| *byte == 0), "all is read");
        bytes[3 * host_page_bytes] = 1;
        let own = Pagemap::open().unwrap().own(start as usize, BLOCK_BYTES).unwrap();
        let per_host_page = host_page_bytes / PAGE_BYTES;
        let expected: Vec<_> = (3 * per_host_page..4 * per_host_page).collect();
        assert_eq!(own.pages().collect::<Vec<_>>(), expected);
    }

    use vm_memory::GuestMemoryBackend;
}
