//! A client as Firecracker is one, of which our own threads are the guest.

use std::io::IoSlice;
use std::io::Write;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use userfaultfd::{FeatureFlags, RegisterMode, UffdBuilder};

use super::*;

const PAGES: usize = 8;
const PAGE_BYTES: usize = 4096;

/// One that any user may have; containers forbid it to their programs.
fn userfault() -> Option<Uffd> {
    let mut builder = UffdBuilder::new();
    builder.close_on_exec(true).non_blocking(true).user_mode_only(true);
    let made = builder.require_features(FeatureFlags::EVENT_REMOVE).create();
    if let Err(error) = &made {
        eprintln!("NOT RUN: {error}");
    }
    made.ok()
}

/// A file whose pages say which they are.
fn memory_file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for page in 0..2 * PAGES {
        file.write_all(&[page as u8 + 1; PAGE_BYTES]).unwrap();
    }
    file
}

#[test]
fn a_fault_gets_its_page_of_the_file_and_zeroes_after_it_was_given_back() {
    if rustix::param::page_size() != PAGE_BYTES {
        return eprintln!("NOT RUN: pages are not of {PAGE_BYTES} bytes");
    }
    let Some(uffd) = userfault() else { return };
    let (directory, file) = (tempfile::tempdir().unwrap(), memory_file());
    let socket = directory.path().join("uffd.sock");
    let handler = Handler::listen(&socket, file.path()).unwrap();
    let bytes = PAGES * PAGE_BYTES;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping anywhere, which lives as long as the process.
    let start = unsafe {
        rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags).unwrap()
    };
    uffd.register_with_mode(start, bytes, RegisterMode::MISSING).unwrap();
    // The second half of the file, in two parts.
    let stream = UnixStream::connect(&socket).unwrap();
    let text = serde_json::json!([{
        "base_host_virt_addr": start as usize, "size": bytes, "offset": bytes,
        "page_size": PAGE_BYTES, "page_size_kib": PAGE_BYTES,
    }])
    .to_string();
    let (first, second) = text.split_at(20);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [uffd.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let parts = [IoSlice::new(first.as_bytes())];
    sendmsg(&stream, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    (&stream).write_all(second.as_bytes()).unwrap();
    let start = start as usize;
    let read = move |page: usize| {
        // SAFETY: the page is mapped, and lives as long as the process.
        unsafe { std::ptr::read_volatile((start + page * PAGE_BYTES + 77) as *const u8) }
    };
    assert_eq!([5, 0, 7].map(read), [14, 9, 16]);
    // Who gives memory back waits until the handler has heard of it.
    // SAFETY: nobody has a reference into these pages.
    unsafe {
        let place = (start + 5 * PAGE_BYTES) as *mut c_void;
        rustix::mm::madvise(place, PAGE_BYTES, rustix::mm::Advice::LinuxDontNeed).unwrap();
    }
    assert_eq!([5, 6].map(read), [0, 15]);
    drop(handler);
}

#[test]
fn who_describes_no_memory_is_an_error_and_ends_nothing_else() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"[{]").unwrap();
    drop(theirs);
    let error = format!("{:#}", receive(&ours).unwrap_err());
    assert!(error.contains("no description of memory"), "{error}");
    let file = memory_file();
    let memory = MemoryFile::map(file.path()).unwrap();
    assert!(memory.at(15 * 4096, 4096).is_ok());
    assert!(memory.at(15 * 4096, 4097).is_err());
    assert!(memory.at(u64::MAX, 2).is_err());
}
