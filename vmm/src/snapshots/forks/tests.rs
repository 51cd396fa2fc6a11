use rotifer_snapshot::Snapshot;

use super::*;
use crate::api::{SnapshotCreate, SnapshotKind};
use crate::config::Vsock;
use crate::snapshots::create;
use crate::snapshots::take::tests::{copied, memory, pages, write};

fn config() -> Config {
    let vsock = Vsock { vsock_id: None, guest_cid: 3, uds_path: "v.sock".into() };
    Config { vsock: Some(vsock), ..Config::default() }
}

fn hold(forks: &mut Forks, taken: Taken<'_>, origin: Option<&Origin>) -> ForkDescription {
    forks.hold(taken, origin, &config(), Duration::from_millis(3)).unwrap().clone()
}

fn open(fork: &ForkDescription) -> Origin {
    let host = HostFile::read(fork.host_file_path.clone()).unwrap();
    assert!(host.config.vsock.is_some());
    Origin::open(&fork.snapshot_path, None, &host).unwrap()
}

fn snapshot(directory: &Path, kind: SnapshotKind) -> SnapshotCreate {
    SnapshotCreate {
        mem_file_path: directory.into(),
        snapshot_path: directory.join("vm.snap"),
        snapshot_type: kind,
        live: true,
    }
}

fn descriptors(name: &str) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().contains(name)).count()
}

#[test]
fn a_fork_is_opened_by_the_paths_of_its_description_until_it_is_let_go_of() {
    let mut forks = Forks::default();
    let memory = memory(&[(1, 10), (600, 20)]);
    let first = hold(&mut forks, copied(&memory), None);
    write(&memory, &[(1, 11)]);
    let second = hold(&mut forks, copied(&memory), None);
    assert_eq!(pages(&open(&first).snapshot), [(1, 10), (600, 20)]);
    let child = open(&second);
    assert_eq!(pages(&child.snapshot), [(1, 11), (600, 20)]);
    assert_eq!((second.fork_id.as_str(), second.pause_us), ("2", 3000));
    assert!(second.held_bytes > 8192 && second.held_bytes < 64 << 10, "{second:?}");
    assert_eq!(forks.list().collect::<Vec<_>>(), [&first, &second]);

    drop(child);
    assert_eq!(descriptors("rotifer-fork"), 6);
    forks.let_go(&first.fork_id).unwrap();
    forks.let_go(&second.fork_id).unwrap();
    assert_eq!(descriptors("rotifer-fork"), 0, "files of forks are left open");
    let error = forks.let_go("2").unwrap_err();
    assert!(error.to_string().contains("no fork \"2\""), "{error}");
    // A fork that is made later is not taken for one of them.
    assert_eq!(hold(&mut forks, copied(&memory), None).fork_id, "3");
}

#[test]
fn a_fork_of_a_machine_that_comes_from_a_snapshot_has_what_it_changed_and_needs_its_pack() {
    let directory = tempfile::tempdir().unwrap();
    let base: Vec<_> = (0..300).map(|page| (page, page + 1)).collect();
    let memory = memory(&base);
    let full = snapshot(directory.path(), SnapshotKind::Full);
    let origin = create(&full, copied(&memory), None, &config()).unwrap();
    write(&memory, &[(5, 99)]);
    let mut forks = Forks::default();
    let fork = hold(&mut forks, copied(&memory), Some(&origin));
    assert!(fork.held_bytes < 64 << 10, "{fork:?}");
    let mut expected = base;
    expected[5].1 = 99;
    // Whatever becomes of the file's name.
    std::fs::remove_file(directory.path().join("vm.snap")).unwrap();
    let child = open(&fork);
    assert_eq!(pages(&child.snapshot), expected);

    // What a child writes must not need the memory of its parent.
    let child_directory = tempfile::tempdir().unwrap();
    let diff = snapshot(child_directory.path(), SnapshotKind::Diff);
    let written = create(&diff, copied(&memory), Some(&child), &config()).unwrap();
    drop((child, forks, origin, directory));
    assert!(written.snapshot.is_durable().unwrap());
    let host = HostFile::beside(&diff.snapshot_path).unwrap().unwrap();
    assert_eq!(host.packs.len(), 1, "{:?}", host.packs);
    let alone: Snapshot = Origin::open(&diff.snapshot_path, None, &host).unwrap().snapshot;
    assert_eq!(pages(&alone), expected);
}

#[test]
fn no_more_forks_are_held_than_there_may_be() {
    let mut forks = Forks::default();
    let memory = memory(&[(1, 10)]);
    for _ in 0..FORKS_MAX {
        hold(&mut forks, copied(&memory), None);
    }
    let error = forks.hold(copied(&memory), None, &config(), Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "16 forks are held: let go of one with DELETE /fork/ID");
    forks.let_go("1").unwrap();
    forks.check(0).unwrap();
    forks.held[0].description.held_bytes = FORKS_BYTES_MAX;
    let error = forks.hold(copied(&memory), None, &config(), Duration::ZERO).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("have 32768 MiB, and may have 32768 together with 0 more"), "{text}");
}
