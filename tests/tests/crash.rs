//! A suspend that is killed, or finds the disk full, at every effect that it has on files: nothing is
//! lost, and the machine can be had as it was before or as it is after.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::process::Command;

use rotifer_tests::{Artifacts, Met, Trouble, Vm, VmBuilder, trace};
use serde_json::json;
use tempfile::TempDir;

/// More effects than any suspend has, so that a test that goes wrong ends.
const EFFECTS_MAX: usize = 500;

fn builder() -> VmBuilder {
    VmBuilder::new().memory_mib(128)
}

/// A snapshot of a guest that remembers a word.
fn snapshot() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let snapshot = directory.path().join("vm.snap");
    let mut vm = builder().start();
    vm.agent();
    remember(&vm, "first");
    vm.suspend(&snapshot, "Full");
    (directory, snapshot)
}

fn remember(vm: &Vm, word: &str) {
    let agent = vm.agent_client();
    agent.put_file(Path::new("/word"), "", word.as_bytes(), word.len() as u64).unwrap();
}

fn word(vm: &Vm) -> String {
    let mut bytes = Vec::new();
    vm.agent_client().get_file(Path::new("/word"), &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Suspends the machine over its old snapshot while `trace` watches its process. What the API
/// answered, if it did.
fn suspend(vm: &Vm, snapshot: &Path, at: usize, trouble: Trouble) -> (Met, Option<(u16, String)>) {
    assert_eq!(vm.api("PATCH", "/vm", Some(&json!({ "state": "Paused" }))).0, 204);
    let directory = snapshot.parent().unwrap();
    let body = json!({
        "snapshot_path": snapshot,
        "mem_file_path": directory,
        "snapshot_type": "Diff",
    });
    std::thread::scope(|scope| {
        let (sender, is_traced) = std::sync::mpsc::channel();
        let ready = move || sender.send(()).unwrap();
        let tracing = scope.spawn(move || trace(vm.pid(), directory, at, trouble, ready));
        is_traced.recv().unwrap();
        let answer = vm.try_api("PUT", "/snapshot/create", Some(&body));
        (tracing.join().unwrap(), answer)
    })
}

fn assert_intact(snapshot: &Path) {
    let verify = ["snapshot", "verify"].map(String::from);
    let output = Command::new(Artifacts::find().vmm).args(verify).arg(snapshot).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_suspend_that_is_killed_anywhere_leaves_the_old_machine_or_the_new_one() {
    let (_directory, snapshot) = snapshot();
    let mut known = "first".to_owned();
    let mut outcomes = Vec::new();
    for at in 0..EFFECTS_MAX {
        let mut vm = builder().restore(&snapshot);
        assert_eq!(word(&vm), known);
        let new = format!("word {at}");
        remember(&vm, &new);
        let (met, answer) = suspend(&vm, &snapshot, at, Trouble::Kill);
        if let Met::Answer { effects } = met {
            assert_eq!(answer.map(|(status, _)| status), Some(204));
            println!("killed at each of {effects} effects: {outcomes:?}");
            assert!(effects == at && effects > 10, "{effects} effects");
            return;
        }
        assert_eq!(answer, None, "it was dead");
        vm.await_death();
        assert_intact(&snapshot);
        let found = word(&builder().restore(&snapshot));
        assert!(found == known || found == new, "{found:?} instead of {known:?} or {new:?}");
        outcomes.push(if found == new { "new" } else { "old" });
        known = found;
    }
    panic!("no end of effects");
}

#[test]
fn a_disk_that_is_full_at_any_moment_costs_nothing_and_the_machine_goes_on() {
    let (directory, snapshot) = snapshot();
    let vm = builder().restore(&snapshot);
    let mut known = "first".to_owned();
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    let before = files();
    for at in 0..EFFECTS_MAX {
        let new = format!("word {at}");
        remember(&vm, &new);
        let (met, answer) = suspend(&vm, &snapshot, at, Trouble::FullDisk);
        let (status, text) = answer.unwrap_or_else(|| panic!("it lives\n{}", vm.report()));
        if let Met::Answer { effects } = met {
            assert_eq!(status, 204, "{text}");
            println!("the disk was full at each of {effects} effects");
            assert!(effects == at && effects > 10, "{effects} effects");
            assert_eq!(word(&builder().restore(&snapshot)), new);
            return;
        }
        assert_intact(&snapshot);
        let found = word(&builder().restore(&snapshot));
        assert!(found == known || found == new, "{found:?} instead of {known:?} or {new:?}");
        if status == 204 {
            // What could not be done was not needed.
            assert_eq!(found, new);
        } else {
            assert!(status == 400 && text.contains("No space left"), "{at}: {status} {text}");
        }
        if found == known {
            assert_eq!(files(), before, "at {at} something was left behind");
        }
        known = found;
        let resumed = vm.api("PATCH", "/vm", Some(&json!({ "state": "Resumed" })));
        assert_eq!(resumed.0, 204, "{resumed:?}");
        assert_eq!(word(&vm), new, "the machine goes on");
    }
    panic!("no end of effects");
}
