//! Machines of one snapshot that share its memory through the host's pager.
//!
//! hosts: gicv3, 16k
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::process::Command;

use rotifer_tests::{
    Artifacts, ExitCode, Pager, Vm, copy_snapshot, damage_packs, memory_kib, pack_sizes, place,
    web_app, web_app_snapshot,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a clone may take beyond the pages that it wrote.
const OVERHEAD_KIB: u64 = 3 << 10;

/// What the VMM's program answers.
fn vmm(arguments: &[&str]) -> String {
    let output = Command::new(Artifacts::find().vmm).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn pack_bytes(directory: &Path) -> u64 {
    pack_sizes(directory).iter().sum()
}

#[test]
fn twenty_clones_of_a_web_app_live_side_by_side_in_little_more_than_one() {
    let snapshot = web_app_snapshot();
    let pager = Pager::start();
    let clones = std::thread::scope(|scope| {
        let start = || web_app().restore_shared(snapshot, &pager);
        let starting = [(); 20].map(|()| scope.spawn(start));
        starting.map(|clone| clone.join().unwrap())
    });
    let mut numbers = Vec::new();
    for clone in &clones {
        assert_eq!(clone.visit(), 2, "each goes on from the same memory");
        numbers.push(clone.shell("head -c 16 /dev/urandom | sha256sum"));
    }
    // The first one still lives when the last one does.
    assert_eq!(clones[0].visit(), 3);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), clones.len(), "clones drew the same random numbers");

    let all_kib: u64 = clones.iter().map(|clone| memory_kib(clone.pid(), "Pss")).sum();
    let all_kib = all_kib + memory_kib(pager.pid(), "Pss");
    let written_kib: u64 = clones.iter().map(|clone| memory_kib(clone.pid(), "Anonymous")).sum();
    let base_kib = pack_bytes(snapshot.parent().unwrap()) >> 10;
    let most_kib = base_kib + written_kib + clones.len() as u64 * OVERHEAD_KIB;
    println!(
        "20 clones and the pager: {all_kib} KiB; the image has {base_kib}, they wrote {written_kib}"
    );
    assert!(all_kib < most_kib, "{all_kib} KiB are more than {most_kib}");
}

#[test]
fn a_clone_writes_what_it_changed_and_a_clone_of_that_has_it() {
    let (directory, first) = place();
    copy_snapshot(web_app_snapshot().parent().unwrap(), directory.path());
    let before = pack_bytes(directory.path());
    let pager = Pager::start();
    let clone = web_app().restore_shared(&first, &pager);
    clone.shell("head -c 4194304 /dev/urandom > /tmp/changed");
    let sum = clone.shell("sha256sum < /tmp/changed");
    let second = directory.path().join("second.snap");
    clone.suspend(&second, "Diff");
    clone.signal(libc::SIGKILL);
    drop(clone);
    let written = pack_bytes(directory.path()) - before;
    println!("{written} bytes were written, of an image of {before}");
    assert!(written > 4 << 20 && written < before / 2, "{written} of {before} bytes");
    let clone = web_app().restore_shared(&second, &pager);
    assert_eq!(clone.shell("sha256sum < /tmp/changed"), sum);
    assert_eq!(clone.visit(), 2);
    // A machine of the first one beside it has nothing of that.
    let other = web_app().restore_shared(&first, &pager);
    assert!(other.agent_client().stat(Path::new("/tmp/changed")).is_err());
    assert_eq!(other.visit(), 2);
    // A snapshot of its own stands alone.
    let alone = TempDir::new().unwrap();
    let alone_path = alone.path().join("alone.snap");
    other.suspend(&alone_path, "Full");
    drop((other, clone, directory, pager));
    assert_eq!(web_app().restore(&alone_path).visit(), 3);
}

#[test]
fn a_clone_that_was_suspended_shares_what_it_has_not_changed() {
    let (directory, first) = place();
    copy_snapshot(web_app_snapshot().parent().unwrap(), directory.path());
    let pager = Pager::start();
    let clone = web_app().restore_shared(&first, &pager);
    clone.shell("head -c 4194304 /dev/urandom > /tmp/changed");
    let sum = clone.shell("sha256sum < /tmp/changed");
    assert_eq!(clone.visit(), 2);
    let second = directory.path().join("second.snap");
    clone.suspend(&second, "Diff");
    drop(clone);
    // The same is asked of both.
    let work = |vm: &Vm| {
        assert_eq!(vm.visit(), 3, "it goes on where it was");
        assert_eq!(vm.shell("sha256sum < /tmp/changed"), sum);
        memory_kib(vm.pid(), "Anonymous")
    };
    let alone_kib = work(&web_app().restore(&second));
    let woken = web_app().restore_upon(&second, &first, &pager);
    let woken_kib = work(&woken);
    println!("its own memory: {woken_kib} KiB upon its base, {alone_kib} without");
    // How much is loaded ahead of touches depends on the time that there was.
    assert!(woken_kib < alone_kib / 4 * 3, "{woken_kib} KiB of {alone_kib}");
    // Nobody is needed for it any more, and what it writes is nobody's but its own.
    drop(pager);
    woken.shell("head -c 1048576 /dev/urandom >> /tmp/changed");
    let sum = woken.shell("sha256sum < /tmp/changed");
    let third = directory.path().join("third.snap");
    woken.suspend(&third, "Diff");
    drop(woken);
    let pager = Pager::start();
    for vm in [web_app().restore(&third), web_app().restore_upon(&third, &first, &pager)] {
        assert_eq!(vm.visit(), 4);
        assert_eq!(vm.shell("sha256sum < /tmp/changed"), sum);
    }
    assert_eq!(web_app().restore_shared(&first, &pager).visit(), 2);
}

#[test]
fn a_recorded_working_set_is_in_the_snapshot_and_of_use_to_its_machines() {
    let (directory, recorded) = place();
    let vm = web_app().restore_recording(web_app_snapshot());
    assert_eq!(vm.visit(), 2);
    let paused = json!({ "state": "Paused" });
    assert_eq!(vm.api("PATCH", "/vm", Some(&paused)).0, 204);
    let body = json!({ "snapshot_path": recorded });
    let (status, text) = vm.api("PUT", "/snapshot/working-set", Some(&body));
    assert_eq!(status, 204, "{text}\n{}", vm.report());
    drop(vm);
    let inspection = vmm(&["snapshot", "inspect", "--json", recorded.to_str().unwrap()]);
    let runs = serde_json::from_str::<Value>(&inspection).unwrap()["working_set"].take();
    let runs = runs.as_array().unwrap();
    let pages = |is_written: bool| -> u64 {
        let runs = runs.iter().filter(|run| run["written"] == is_written);
        runs.map(|run| run["page_count"].as_u64().unwrap()).sum()
    };
    println!("read {} pages, wrote {}", pages(false), pages(true));
    assert!(pages(true) > 100 && pages(false) > pages(true), "{runs:?}");
    // It is a snapshot as the other one is, for machines that share and for those that do not.
    assert_eq!(web_app().restore(&recorded).visit(), 2);
    let pager = Pager::start();
    let clones = [(); 3].map(|()| web_app().restore_shared(&recorded, &pager));
    for clone in &clones {
        assert_eq!(clone.visit(), 2);
        clone.shell("head -c 8388608 /dev/urandom | sha256sum");
    }
    // What a machine was recorded for is the snapshot's that it comes from, and no other's.
    let body = json!({ "snapshot_path": directory.path().join("none.snap") });
    assert_eq!(clones[0].api("PATCH", "/vm", Some(&paused)).0, 204);
    let (status, text) = clones[0].api("PUT", "/snapshot/working-set", Some(&body));
    assert!(status == 400 && text.contains("no working set is recorded"), "{text}");
}

#[test]
fn a_machine_ends_when_its_pager_does() {
    let snapshot = web_app_snapshot();
    let pager = Pager::start();
    let mut clone = web_app().restore_shared(snapshot, &pager);
    drop(pager);
    clone.wait_for_exit(ExitCode::VmmFailure);
    assert!(
        clone.messages.all().contains("pager serves this machine no more"),
        "{}",
        clone.report()
    );
}

#[test]
fn damage_ends_a_machine_that_shares_memory_and_not_its_pager() {
    let snapshot = web_app_snapshot();
    let pager = Pager::start();
    let sound = web_app().restore_shared(snapshot, &pager);
    let (directory, copy) = place();
    copy_snapshot(snapshot.parent().unwrap(), directory.path());
    damage_packs(directory.path());
    // Another snapshot than the sound one, so that the pager has to load it.
    let other = Pager::start();
    let mut vm = web_app().start_restore_shared(&copy, &other);
    vm.wait_for_exit(ExitCode::VmmFailure);
    assert!(vm.messages.all().contains("digest"), "{}", vm.report());
    assert_eq!(sound.visit(), 2);
    assert_eq!(web_app().restore_shared(snapshot, &other).visit(), 2, "the pager lives on");
}
