//! Machines and the pager of their host: in one process, and in two that die.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketType, connect, sendmsg,
    socket,
};

use super::{
    snapshot::{BLOCKS, PACK, write},
    *,
};
use crate::{
    PackSearch, PageRun, Snapshot,
    pager::{
        ChunkRun, Mapping, PagerError, Reach,
        service::{Host, Image, Keep, Service, ServiceError},
    },
};

/// Says which of the scenes below a child process plays, and where.
const SCENE: &str = "ROTIFER_SERVICE_SCENE";
/// How a machine ends whose memory cannot be loaded.
const ENDED: i32 = 17;
const KEEP: Keep = Keep { bytes: 1 << 30 };

/// A directory with a snapshot and a pager's socket.
struct Place(PathBuf);

impl Place {
    fn socket(&self) -> PathBuf {
        self.0.join("pager.sock")
    }

    fn snapshot(&self) -> Snapshot {
        let search = PackSearch::new().directory(&self.0);
        Snapshot::open(&self.0.join("manifest"), &search).unwrap()
    }

    fn manifest(&self) -> File {
        File::open(self.0.join("manifest")).unwrap()
    }

    fn open(&self) -> Image {
        let service = Service::connect(&self.socket()).unwrap();
        service.open(&self.snapshot()).unwrap()
    }

    fn host(&self, keep: Keep) {
        let host = Host::listen(&self.socket(), keep).unwrap();
        thread::spawn(move || host.run(|_| {}));
    }
}

fn place() -> (tempfile::TempDir, Place) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), Vec::new());
    let place = Place(directory.path().into());
    (directory, place)
}

fn start_served(place: &Place, memory: &Memory, image: Image, options: Options) -> Option<Pager> {
    let userfault = userfault()?;
    let source = Box::new(place.snapshot().memory().unwrap());
    let options = Options { mapping: Mapping::Service(image), ..options };
    let fail = |error: PagerError| panic!("{error:?}");
    Some(Pager::start(memory, source, || Ok(userfault), options, fail).unwrap())
}

fn check_all(memory: &Memory) {
    pages(BLOCKS).for_each(|page| check(memory, page, some));
}

#[test]
fn machines_of_one_snapshot_share_one_image_and_no_writes() {
    let (_directory, place) = place();
    place.host(KEEP);
    let (first, second) = (memory(BLOCKS), memory(BLOCKS));
    let Some(one) = start_served(&place, &first, place.open(), Options::default()) else {
        return;
    };
    check_all(&first);
    first.write_obj(7_u64, address_of(PageIndex(1))).unwrap();
    wait_until("the pager has nothing to do any more", || one.is_complete());
    drop(one);
    let image = place.open();
    let data = [0, 1, 2].map(BlockIndex);
    assert!(data.iter().all(|block| image.view().is_resident(*block)), "the image was kept");
    let two = start_served(&place, &second, image, Options::default()).unwrap();
    check_all(&second);
    wait_until("there is nothing to load", || two.is_complete());
    drop(two);
    check(&first, PageIndex(2), some);
    assert_eq!(read(&first, PageIndex(1), 0), 7);
}

#[test]
fn machines_that_start_at_once_are_all_served() {
    let (_directory, place) = place();
    place.host(KEEP);
    let Some(_may_have_one) = userfault() else { return };
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let memory = memory(BLOCKS);
                let image = place.open();
                let pager = start_served(&place, &memory, image, Options::default()).unwrap();
                check_all(&memory);
                drop(pager);
            });
        }
    });
}

#[test]
fn the_working_set_is_loaded_before_it_is_touched() {
    let (_directory, place) = place();
    place.host(KEEP);
    let memory = memory(BLOCKS);
    let runs = [(3, 1), (2 * 32, 4), (3 * 32, 7)];
    let working_set = runs.map(|(first, count)| ChunkRun { first: ChunkIndex(first), count });
    let options =
        Options { working_set: working_set.into(), reach: Reach::Chunk, ..Options::default() };
    let Some(_pager) = start_served(&place, &memory, place.open(), options) else { return };
    let image = place.open();
    for block in [0, 2].map(BlockIndex) {
        wait_until("the working set is there", || image.view().is_resident(block));
    }
    assert!(!image.view().is_resident(BlockIndex(1)), "it is none of it");
    check_all(&memory);
}

/// Anonymous kilobytes of the mapping in which a block of guest memory begins.
fn own_kib(memory: &Memory, block: BlockIndex) -> u64 {
    use vm_memory::GuestMemoryBackend;
    let start = memory.get_host_address(address_of(block.first_page())).unwrap() as usize;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let is_address = |word: &str| usize::from_str_radix(word, 16).ok();
    let mut own = None;
    for line in maps.lines() {
        if let Some((first, rest)) = line.split_once('-')
            && let (Some(first), Some(end)) =
                (is_address(first), rest.split(' ').next().and_then(is_address))
        {
            own = (first..end).contains(&start).then_some(0);
        } else if let (Some(_), Some(rest)) = (own, line.strip_prefix("Anonymous:")) {
            return rest.trim().trim_end_matches(" kB").parse().unwrap();
        }
    }
    panic!("the block is in no mapping");
}

#[test]
fn blocks_that_are_written_become_the_machines_own_at_their_first_touch() {
    let (_directory, place) = place();
    place.host(KEEP);
    let (first, second) = (memory(BLOCKS), memory(BLOCKS));
    let options = || Options {
        written: [1, 2, 3, 99].map(BlockIndex).into(),
        reach: Reach::Chunk,
        ..Options::default()
    };
    let Some(one) = start_served(&place, &first, place.open(), options()) else { return };
    let two = start_served(&place, &second, place.open(), options()).unwrap();
    // Both touch the same blocks at once, from several threads, to read and to write.
    thread::scope(|scope| {
        for memory in [&first, &second] {
            for part in 0..3 {
                scope.spawn(move || {
                    for page in pages(BLOCKS).filter(|page| page.0 % 3 == part) {
                        check(memory, page, some);
                        memory.write_obj(u64::from(part), address_of(page)).unwrap();
                    }
                });
            }
        }
    });
    for memory in [&first, &second] {
        for page in pages(BLOCKS) {
            let expected = if some(page) { 0 } else { word_of(page, 1) };
            let found = (read(memory, page, 0), read(memory, page, 1));
            assert_eq!(found, (u64::from(page.0 % 3), expected), "page {page}");
        }
    }
    let third = memory(BLOCKS);
    let three = start_served(&place, &third, place.open(), options()).unwrap();
    check(&third, PageIndex(512 + 9), some);
    assert!(own_kib(&third, BlockIndex(1)) >= 2048, "all of the block is its own");
    check_all(&third);
    drop((one, two, three));
}

#[test]
fn pages_that_are_going_to_be_written_are_copied_before_anything_runs_if_they_are_there() {
    let (_directory, place) = place();
    place.host(KEEP);
    let run = |first_page, page_count| PageRun { first_page, page_count, written: true };
    // In two blocks, in one of zeroes, and nowhere.
    let copied_ahead = vec![run(513, 2), run(600, 1), run(3 * 512, 4), run(9 * 512, 1)];
    let options = || Options {
        copied_ahead: copied_ahead.clone(),
        reach: Reach::Chunk,
        ..Options::default()
    };
    let (first, second) = (memory(BLOCKS), memory(BLOCKS));
    // Nothing is there yet.
    let Some(one) = start_served(&place, &first, place.open(), options()) else { return };
    check_all(&first);
    let two = start_served(&place, &second, place.open(), options()).unwrap();
    let own = own_kib(&second, BlockIndex(1));
    if rustix::param::page_size() == PAGE_BYTES {
        assert_eq!(own, 3 * 4, "of the three pages, and of no others");
    }
    check_all(&second);
    second.write_obj(7_u64, address_of(PageIndex(513))).unwrap();
    check_all(&first);
    drop((one, two));
}

#[test]
fn an_image_that_nobody_uses_goes_when_there_is_no_room_for_it() {
    let (_directory, place) = place();
    place.host(Keep { bytes: 0 });
    let memory = memory(BLOCKS);
    let image = place.open();
    let Some(pager) = start_served(&place, &memory, image, Options::default()) else { return };
    check_all(&memory);
    wait_until("all is there", || pager.is_complete());
    drop(pager);
    wait_until("the image is gone", || !place.open().view().is_resident(BlockIndex(0)));
    check_all(&memory);
}

#[test]
fn two_pagers_do_not_share_a_socket_and_a_dead_ones_is_replaced() {
    let (_directory, place) = place();
    drop(Host::listen(&place.socket(), KEEP).unwrap());
    place.host(KEEP);
    let error = Host::listen(&place.socket(), KEEP).unwrap_err();
    assert!(matches!(error, ServiceError::Busy { .. }), "{error}");
    place.open();
    place.open();
    let mode = std::fs::metadata(place.socket()).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    let error = Service::connect(&place.0.join("nobody")).unwrap_err().to_string();
    assert!(error.contains("nobody"), "{error}");
}

/// A machine that says what it likes.
struct Stranger(OwnedFd);

impl Stranger {
    fn connect(place: &Place) -> Self {
        let stranger = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&stranger, &SocketAddrUnix::new(place.socket()).unwrap()).unwrap();
        Self(stranger)
    }

    fn say(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> String {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(descriptors));
        }
        let bytes = [std::io::IoSlice::new(bytes)];
        sendmsg(&self.0, &bytes, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        let mut answer = vec![0; 4096];
        let count = rustix::io::read(&self.0, &mut answer).unwrap();
        String::from_utf8_lossy(&answer[..count]).into_owned()
    }
}

/// The first byte of an answer.
const BRING: &str = "\0";
const OPENED: &str = "\u{1}";

fn open_message(snapshot: SnapshotId) -> Vec<u8> {
    [&[0, 2][..], &snapshot.0.0].concat()
}

#[test]
fn a_stranger_is_refused_and_the_others_are_served() {
    let (_directory, place) = place();
    place.host(KEEP);
    let manifest = place.manifest();
    let directory = File::open(&place.0).unwrap();
    let (files, serve) = ([1], [2, 0, 0, 0, 0, 0]);
    let endless = [2, 0xff, 0xff, 0xff, 0xff, 0x0f];
    for (bytes, descriptors, expected) in [
        (&[0xff; 40][..], &[][..], "does not begin as version 2 does"),
        (&[0, 1], &[manifest.as_fd()], "does not begin as version 2 does"),
        (&[&[0, 9][..], &[0; 32]].concat(), &[], "speaks version 9"),
        (&files, &[manifest.as_fd()], "Open comes first"),
        (&serve, &[manifest.as_fd()], "Open comes first"),
        (&endless, &[manifest.as_fd()], "does not begin as version 2 does"),
    ] {
        let answer = Stranger::connect(&place).say(bytes, descriptors);
        assert!(answer.contains(expected), "{bytes:?}: {answer}");
    }
    let good = place.snapshot().id();
    let other = SnapshotId(Digest([7; 32]));
    for (wanted, bytes, descriptors, expected) in [
        (good, &files[..], &[][..], "a manifest comes with Files"),
        (good, &files, &[directory.as_fd()], "made of files"),
        (good, &files, &[manifest.as_fd()], "was not found"),
        (good, &serve, &[manifest.as_fd()], "Files were asked for"),
        (other, &files, &[manifest.as_fd()], "was not found"),
    ] {
        let stranger = Stranger::connect(&place);
        assert_eq!(stranger.say(&open_message(wanted), &[]), BRING);
        let answer = stranger.say(bytes, descriptors);
        assert!(answer.contains(expected), "{bytes:?}: {answer}");
    }
    // The files of one snapshot are not taken for another one's.
    let pack = File::open(place.0.join(PACK.file_name())).unwrap();
    let stranger = Stranger::connect(&place);
    assert_eq!(stranger.say(&open_message(other), &[]), BRING);
    let answer = stranger.say(&files, &[manifest.as_fd(), pack.as_fd()]);
    assert!(answer.contains("brings the files of"), "{answer}");
    place.open();
}

#[test]
fn who_names_a_snapshot_that_the_pager_has_needs_no_files() {
    let (_directory, place) = place();
    place.host(KEEP);
    let snapshot = place.snapshot();
    drop(Service::connect(&place.socket()).unwrap().open(&snapshot).unwrap());
    let (opened, memory) = (place.open(), memory(BLOCKS));
    // Its files are gone; the pager has them open.
    for name in ["manifest".to_owned(), PACK.file_name()] {
        std::fs::remove_file(place.0.join(name)).unwrap();
    }
    let answer = Stranger::connect(&place).say(&open_message(snapshot.id()), &[]);
    assert!(answer.starts_with(OPENED), "{answer:?}");
    let Some(userfault) = userfault() else { return };
    let source = Box::new(snapshot.memory().unwrap());
    let options = Options { mapping: Mapping::Service(opened), ..Options::default() };
    let fail = |error: PagerError| panic!("{error:?}");
    let _pager = Pager::start(&memory, source, || Ok(userfault), options, fail).unwrap();
    check_all(&memory);
}

#[test]
fn files_that_are_not_in_order_harm_only_who_brought_them() {
    let (_directory, place) = place();
    let (_bad_directory, bad) = self::place();
    place.host(KEEP);
    // The same manifest, and a pack that begins well.
    let snapshot = bad.snapshot();
    assert_eq!(snapshot.id(), place.snapshot().id());
    damage_all(&bad);
    drop(Service::connect(&place.socket()).unwrap().open(&snapshot).unwrap());
    let memories = [memory(BLOCKS), memory(BLOCKS)];
    for memory in &memories {
        let options = Options { reach: Reach::Chunk, ..Options::default() };
        let Some(pager) = start_served(&place, memory, place.open(), options) else { return };
        check(memory, PageIndex(1), some);
        drop(pager);
    }
    let memory = memory(BLOCKS);
    let pager = start_served(&place, &memory, place.open(), Options::default()).unwrap();
    check_all(&memory);
    drop(pager);
    // One that brings nothing better ends, and it alone.
    let answer = Stranger::connect(&place).say(&open_message(snapshot.id()), &[]);
    assert!(answer.starts_with(OPENED), "{answer:?}");
}

/// A process that plays a scene in a directory.
fn play(scene: &str, directory: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--nocapture", "pager::tests::service::scene"]);
    child.env(SCENE, format!("{scene} {}", directory.display()));
    child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a scene says this word.
fn wait_for(child: &mut Child, word: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with(word)), "{word}");
}

/// Not a test of its own: what a child process does.
#[test]
fn scene() {
    let Ok(scene) = std::env::var(SCENE) else { return };
    let (scene, directory) = scene.split_once(' ').unwrap();
    let place = Place(directory.into());
    if scene == "host" {
        let host = Host::listen(&place.socket(), KEEP).unwrap();
        println!("LISTENS");
        return host.run(|_| {}).unwrap();
    }
    let memory = memory(BLOCKS);
    let source = Box::new(place.snapshot().memory().unwrap());
    let mapping = Mapping::Service(place.open());
    let options = Options { mapping, reach: Reach::Chunk, ..Options::default() };
    let fail = |error: PagerError| {
        eprintln!("{}", crate::report(&error));
        std::process::exit(ENDED);
    };
    let _pager = Pager::start(&memory, source, || Ok(userfault().unwrap()), options, fail).unwrap();
    check(&memory, PageIndex(1), some);
    println!("RUNS");
    // The test has damaged the snapshot, or killed the pager, when it closes our input.
    std::io::stdin().lines().for_each(drop);
    println!("READ {}", read(&memory, PageIndex(2 * 512), 0));
}

/// How a machine ends after `trouble`.
fn end_of_a_machine(trouble: impl FnOnce(&Place, &mut Child)) -> Option<String> {
    userfault()?;
    let (_directory, place) = place();
    let mut host = play("host", &place.0);
    wait_for(&mut host, "LISTENS");
    let mut machine = Command::new(std::env::current_exe().unwrap());
    machine.args(["--exact", "--nocapture", "pager::tests::service::scene"]);
    machine.env(SCENE, format!("machine {}", place.0.display()));
    machine.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut machine = machine.spawn().unwrap();
    wait_for(&mut machine, "RUNS");
    trouble(&place, &mut host);
    drop(machine.stdin.take());
    let output = machine.wait_with_output().unwrap();
    let _it_may_be_dead = host.kill();
    host.wait().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(ENDED), "{text}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("READ"), "nobody reads what was not loaded: {said}");
    Some(text)
}

#[test]
fn a_machine_ends_at_once_when_its_pager_is_killed() {
    let text = end_of_a_machine(|_, host| {
        host.kill().unwrap();
        host.wait().unwrap();
    });
    let Some(text) = text else { return };
    assert!(text.contains("the host's pager serves this machine no more"), "{text}");
}

#[test]
fn a_machine_ends_with_the_reason_when_its_snapshot_is_damaged() {
    let Some(text) = end_of_a_machine(|place, _| damage_all(place)) else { return };
    assert!(text.contains("the host's pager gives up: load the guest's memory at"), "{text}");
    assert!(text.contains("load page 1024 of image ram of snapshot"), "{text}");
}

/// Changes every page of the content.
fn damage_all(place: &Place) {
    let path = place.0.join(PACK.file_name());
    let pack = OpenOptions::new().write(true).open(&path).unwrap();
    for page in 1..pack.metadata().unwrap().len() / 4096 {
        pack.write_all_at(&[0xee; 16], page * 4096).unwrap();
    }
}
