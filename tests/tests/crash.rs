//! A suspend that is killed, or finds the disk full, at every effect that it has on files: nothing is
//! lost, and the machine can be had as it was before or as it is after: its memory, and its disk.
//!
//! hosts: gicv3
#![cfg(target_arch = "aarch64")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rotifer_agent::exec::ExecRequest;
use rotifer_agent::process::Exit;
use rotifer_agent::process::spec::Capabilities;
use rotifer_tests::{Artifacts, Met, Trouble, Vm, VmBuilder, trace};
use serde_json::json;
use tempfile::{NamedTempFile, TempDir};

/// More effects than any suspend has, so that a test that goes wrong ends.
const EFFECTS_MAX: usize = 500;

/// A static busybox: that of the emulated host, or Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";
/// The guest's disk.
const DISK: &str = "/dev/vda";

/// Where a machine and its snapshot are.
struct Place {
    snapshots: TempDir,
    disk: NamedTempFile,
}

impl Place {
    /// With a snapshot of a guest that remembers a word.
    fn with_snapshot() -> Self {
        let (snapshots, disk) = (TempDir::new().unwrap(), NamedTempFile::new().unwrap());
        fs::write(disk.path(), [0xee; 1 << 20]).unwrap();
        let place = Self { snapshots, disk };
        let mut vm = place.builder().start();
        vm.agent();
        let busybox = fs::read(BUSYBOX).expect("read a static busybox, for the guest");
        let length = busybox.len() as u64;
        vm.agent_client()
            .put_file(Path::new("/busybox"), "mode=755", &busybox[..], length)
            .unwrap();
        remember(&vm, "first");
        vm.suspend(&place.snapshot(), "Full");
        place
    }

    fn builder(&self) -> VmBuilder {
        VmBuilder::new().memory_mib(128).overlaid_drive("data", self.disk.path())
    }

    fn snapshot(&self) -> PathBuf {
        self.snapshots.path().join("vm.snap")
    }

    fn restore(&self) -> Vm {
        self.builder().restore(&self.snapshot())
    }

    /// The word that a machine of the snapshot remembers.
    fn word(&self) -> String {
        word(&self.restore())
    }
}

fn busybox(vm: &Vm, script: &str) -> String {
    let command = ["/busybox", "sh", "-c", script].map(String::from).to_vec();
    let capabilities = Some(Capabilities::All);
    let request = ExecRequest { command, capabilities, ..ExecRequest::default() };
    let done = vm.agent_client().exec(&request).unwrap();
    assert_eq!(done.report.exit, Exit::Code(0), "{script}: {}\n{}", done.stderr, vm.report());
    done.stdout
}

/// In a file of the guest's memory, and on its disk.
fn remember(vm: &Vm, word: &str) {
    let agent = vm.agent_client();
    agent.put_file(Path::new("/word"), "", word.as_bytes(), word.len() as u64).unwrap();
    let copy = format!("conv=notrunc,fsync if=/word of={DISK} seek=100");
    busybox(vm, &format!("/busybox dd {copy} 2>/dev/null"));
}

/// What the guest remembers in memory, which must be what its disk has, if it is asked.
fn word(vm: &Vm) -> String {
    let mut bytes = Vec::new();
    vm.agent_client().get_file(Path::new("/word"), &mut bytes).unwrap();
    let word = String::from_utf8(bytes).unwrap();
    let on_disk = busybox(
        vm,
        &format!(
            "echo 3 > /proc/sys/vm/drop_caches; \
             /busybox dd if={DISK} skip=100 count=1 2>/dev/null | /busybox head -c {}",
            word.len()
        ),
    );
    assert_eq!(on_disk, word, "memory and disk are of one moment");
    word
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
    let place = Place::with_snapshot();
    let snapshot = place.snapshot();
    let mut known = "first".to_owned();
    let mut outcomes = Vec::new();
    for at in 0..EFFECTS_MAX {
        let mut vm = place.restore();
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
        let found = place.word();
        assert!(found == known || found == new, "{found:?} instead of {known:?} or {new:?}");
        outcomes.push(if found == new { "new" } else { "old" });
        known = found;
    }
    panic!("no end of effects");
}

#[test]
fn a_disk_that_is_full_at_any_moment_costs_nothing_and_the_machine_goes_on() {
    let place = Place::with_snapshot();
    let snapshot = place.snapshot();
    let vm = place.restore();
    let mut known = "first".to_owned();
    let files = || fs::read_dir(place.snapshots.path()).unwrap().count();
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
            assert_eq!(place.word(), new);
            return;
        }
        assert_intact(&snapshot);
        let found = place.word();
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
